# What a training job runs in on TPUs. From the repository's root:
#   docker build -f tpu_launch/containers/tpu.Dockerfile -t IMAGE .
FROM python:3.12.12-slim-bookworm

WORKDIR /opt/musiclm
COPY locks/python3.12.txt tpu_launch/containers/tpu.txt locks/
COPY setup.py pyproject.toml README.md LICENSE ./
COPY src src
COPY data_pipelines data_pipelines
COPY tpu_launch tpu_launch
RUN pip install --no-cache-dir --constraint locks/python3.12.txt --constraint locks/tpu.txt \
    ".[train,tpu]" && pip check
# Jobs name gin files relative to this folder.
COPY gin gin

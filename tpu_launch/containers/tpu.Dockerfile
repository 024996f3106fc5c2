# What a training job runs in on TPUs. From the repository's root:
#   docker build -f tpu_launch/containers/tpu.Dockerfile -t IMAGE .
FROM python:3.12.12-slim-bookworm

# Each host mounts the job's buckets: `Job.mounting_command` in tpu_launch/job.py.
ADD --chmod=644 https://packages.cloud.google.com/apt/doc/apt-key.gpg \
    /usr/share/keyrings/cloud.google.asc
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates \
    && echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]" \
    "https://packages.cloud.google.com/apt gcsfuse-bookworm main" \
    >/etc/apt/sources.list.d/gcsfuse.list \
    && apt-get update && apt-get install -y --no-install-recommends gcsfuse=3.8.5 \
    && rm -rf /var/lib/apt/lists/*

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

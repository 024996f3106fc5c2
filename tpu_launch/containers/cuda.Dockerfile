# What a training job runs in on NVIDIA GPUs. From the repository's root:
#   docker build -f tpu_launch/containers/cuda.Dockerfile -t IMAGE .
# CUDA, cuDNN and NCCL come as Python packages; the driver is the host's (580 or newer, for CUDA 13).
FROM python:3.12.12-slim-bookworm

WORKDIR /opt/musiclm
COPY locks/python3.12.txt tpu_launch/containers/cuda.txt locks/
COPY setup.py pyproject.toml README.md LICENSE ./
COPY src src
COPY data_pipelines data_pipelines
COPY tpu_launch tpu_launch
RUN pip install --no-cache-dir --constraint locks/python3.12.txt --constraint locks/cuda.txt \
    ".[train,gpu]" && pip check
# Jobs name gin files relative to this folder.
COPY gin gin
# What the host's container runtime is to mount.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The demo on a CPU:
#   docker build -t mmrlhf . && docker run --rm -v "$PWD/outputs:/app/outputs" mmrlhf
# Training on a GPU, from any image with a CUDA runtime and Python 3.11 or newer:
#   docker build -t mmrlhf-gpu --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
#   docker run --rm --gpus all --shm-size 16g -v DIR:/data -v "$PWD/outputs:/app/outputs" mmrlhf-gpu \
#       python run.py experiment=mmdpo_llava data.root=/data
ARG BASE=python:3.11-slim
FROM ${BASE}

# git: results name the commit; ca-certificates: the hub; the rest where the base image has no Python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git \
    && (command -v python3 && python3 -c 'import venv, ensurepip' \
        || apt-get install --yes --no-install-recommends python3 python3-venv) \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# dependencies first, so that a change of the code does not fetch them again
COPY pyproject.toml constraints.txt setup.py README.md LICENSE ./
COPY conf ./conf
COPY mmrlhf/__init__.py ./mmrlhf/
RUN pip install --no-cache-dir -c constraints.txt -e ".[remote,sweeps]"

COPY . .

# what `make demo` runs
CMD ["python", "run.py"]

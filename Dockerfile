# One image per process: docker build --target server --tag attune-server:0.1.0 .
# Targets: server, worker, beat, ui. The chart runs the store from a public image.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# Everything but torch and numba, which beat and ui never load.
FROM ${PYTHON_IMAGE} AS libraries
WORKDIR /build
COPY requirements.lock .
RUN python -m venv /venv \
    && grep -vE '^(torch|numba|llvmlite)==' requirements.lock > light.lock \
    && /venv/bin/pip install --no-cache-dir --no-deps --requirement light.lock

FROM libraries AS libraries-torch
# For NVIDIA GPUs: --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN grep -E '^(torch|numba|llvmlite)==' requirements.lock > heavy.lock \
    && /venv/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" --requirement heavy.lock

FROM ${PYTHON_IMAGE} AS base
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin attune \
    && install --directory --owner 10001 --group 10001 /data
# /tmp is the home, because libraries keep caches there and the chart makes everything else read-only.
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ATTUNE_DATA_DIR=/data
WORKDIR /app
COPY LICENSE ./
COPY rlhf_core rlhf_core
USER 10001:10001

FROM base AS server
COPY --from=libraries-torch /venv /venv
COPY server server
EXPOSE 8000
CMD ["python", "-m", "server"]

FROM base AS worker
COPY --from=libraries-torch /venv /venv
COPY workers workers
# SIGTERM as a soft shutdown, which puts unfinished tasks back.
ENV REMAP_SIGTERM=SIGQUIT
CMD ["python", "-m", "celery", "-A", "workers.app", "worker", "--loglevel", "INFO", "--pool", "prefork", "--concurrency", "2", "--queues", "ingest,train", "--without-gossip", "--without-mingle"]

FROM base AS beat
COPY --from=libraries /venv /venv
COPY workers workers
CMD ["python", "-m", "celery", "-A", "workers.app", "beat", "--loglevel", "INFO", "--pidfile=", "--schedule", "/data/beat-schedule"]

FROM base AS ui
COPY --from=libraries /venv /venv
COPY ui ui
EXPOSE 7860
CMD ["python", "-m", "ui"]

# syntax=docker/dockerfile:1
# The GPU side. torch's wheels bring CUDA's libraries: the host needs the driver and its container
# toolkit alone. PIP_TORCH_ARGS chooses another build of torch, such as the CPU one (see README).
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_TORCH_ARGS=""
# `video` (MP4) brings FFmpeg with x264, which is under the GPL; `faces` brings OpenCV.
ARG EXTRAS="worker,video,faces"
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/pip PIP_CACHE_DIR=/var/cache/pip docker/install.sh worker /opt/readout "/src[${EXTRAS}]"

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 readout && useradd --uid 10001 --gid 10001 --no-create-home readout \
    && install -d -o readout -g readout /var/lib/readout/hub
COPY --from=build /opt/readout /opt/readout
ENV PATH=/opt/readout/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/readout/hub
USER 10001:10001
WORKDIR /
VOLUME /var/lib/readout/hub
HEALTHCHECK --interval=15s --timeout=10s --start-period=180s CMD ["readout", "worker", "--check"]
CMD ["readout", "worker"]

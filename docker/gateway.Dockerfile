# syntax=docker/dockerfile:1
# The HTTP side, without torch; `readout reconciler` runs from the same image.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/var/cache/pip PIP_CACHE_DIR=/var/cache/pip docker/install.sh gateway /opt/readout

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 readout && useradd --uid 10001 --gid 10001 --no-create-home readout
COPY --from=build /opt/readout /opt/readout
ENV PATH=/opt/readout/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=3)"]
CMD ["readout", "gateway", "--host", "0.0.0.0", "--port", "8000"]

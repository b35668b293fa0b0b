# syntax=docker/dockerfile:1
# rclone's own image, made to run as a user of no rights with a volume of its own.
FROM rclone/rclone:1.75.2
RUN adduser -D -H -u 10001 readout && mkdir -p /data && chown 10001:10001 /data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 9000
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["nc", "-z", "127.0.0.1", "9000"]
CMD ["serve", "s3", "--config", "", "--addr", ":9000", "/data"]

"""Prometheus metrics of the gateway; one registry per app, never a job id as a label."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """What the gateway counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "readout_http_requests_total",
            "HTTP requests by route and status",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "readout_http_request_seconds",
            "Time to answer by route",
            ["route"],
            registry=self._registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )
        self._jobs = Gauge(
            "readout_jobs", "Job records by state", ["state"], registry=self._registry
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def set_jobs(self, counts: dict[str, int]) -> None:
        """Say how many records are in each state."""
        for state, count in counts.items():
            self._jobs.labels(state).set(count)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

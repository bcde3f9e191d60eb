"""Figures for Prometheus at `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from cxr_edge.serve.body import Held
    from cxr_edge.serve.pool import Pool

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters and gauges of one service."""

    def __init__(self, pool: Pool, held: Held) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "cxr_edge_requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "cxr_edge_request_seconds", "Time of a request.", ("route",), buckets=SECONDS, registry=registry
        )
        self.images = Counter("cxr_edge_images", "Images by answer.", ("answer",), registry=registry)
        self.strange = Counter("cxr_edge_images_unlike", "Images that are unlike the training set.", registry=registry)
        self.work = Histogram(
            "cxr_edge_worker_seconds", "Time of an image in its worker.", buckets=SECONDS, registry=registry
        )
        for name, text, value in (
            ("queue", "Images that wait for a worker.", lambda: pool.waiting),
            ("workers_ready", "Workers that are ready.", lambda: pool.ready),
            ("workers_lost", "Workers that ended and were replaced.", lambda: pool.lost),
            ("held_bytes", "Bytes of request bodies in memory.", lambda: held.total),
        ):
            Gauge(f"cxr_edge_{name}", text, registry=registry).set_function(value)

    def count_image(self, reply: Mapping[str, Any]) -> None:
        """Count the answer of a worker to an image."""
        self.images.labels(reply.get("answer", "error")).inc()
        self.work.observe(reply["seconds"])
        if reply.get("in_distribution") is False:
            self.strange.inc()

    def page(self) -> bytes:
        """The figures as text for Prometheus."""
        return generate_latest(self._registry)

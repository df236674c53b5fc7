"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts of one server; no label has values that clients choose."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "avl_requests",
            "Requests by route and status.",
            ("route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "avl_request_seconds",
            "Time of requests, their bodies included.",
            ("route",),
            registry=self._registry,
            buckets=SECONDS,
        )
        self._first = Histogram(
            "avl_first_token_seconds",
            "Time to the first token.",
            ("model",),
            registry=self._registry,
            buckets=SECONDS,
        )
        self._tokens = Counter(
            "avl_tokens", "Tokens read and written.", ("model", "kind"), registry=self._registry
        )

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Tell what `value` gives whenever somebody asks."""
        Gauge(name, meaning, registry=self._registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first(self, model: str, seconds: float) -> None:
        """Note how long a first token took to come."""
        self._first.labels(model).observe(seconds)

    def used(self, model: str, prompt: int, prefix: int, completion: int) -> None:
        """Count tokens; `prefix` of the prompt's were not read, as others had left their rows."""
        self._tokens.labels(model, "prompt").inc(prompt)
        self._tokens.labels(model, "prefix").inc(prefix)
        self._tokens.labels(model, "completion").inc(completion)

    def page(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

"""Traces of requests for OpenTelemetry, where the operator chooses to have them.

One span a request, after the semantic conventions for HTTP servers and for generative AI; names of
avl's own begin with `avl.`. Where spans go the standard environment variables say
(`OTEL_EXPORTER_OTLP_ENDPOINT` and its like). No span holds a text or a picture.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from avl_plugins.errors import AvlError, quoted
from avl_runtime import __version__
from avl_runtime.machine.installation import need
from avl_runtime.serve.http.exchange import Exchange

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.util.types import AttributeValue

NAME: Final = "avl-serve"  # of the service, unless the environment names it
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"
PACKAGES: Final = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
DISABLED: Final = "OTEL_SDK_DISABLED"
# What notes of a request are called in a span.
NOTED: Final[Mapping[str, str]] = {
    "model": "gen_ai.response.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "prefix_tokens": "gen_ai.usage.cache_read.input_tokens",
    "finish": "gen_ai.response.finish_reasons",
    "error": "error.type",
    "policy": "avl.policy",
    "visual_tokens": "avl.visual_tokens",
    "visual_tokens_read": "avl.visual_tokens_read",
    "kv_bytes": "avl.kv_bytes",
    "queue_ms": "avl.queue_ms",
    "first_ms": "avl.first_token_ms",
    "prefill_ms": "avl.prefill_ms",
    "decode_ms": "avl.decode_ms",
    "cut": "avl.cut",
}


class TelemetryError(AvlError):
    """Traces cannot be sent as the environment says."""


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for traces: it says where they go, and not that none do."""
    disabled = environment.get(DISABLED, "").strip().lower() == "true"
    return not disabled and any(environment.get(name, "").strip() for name in ENDPOINTS)


class Spans:
    """Tells a collector of requests, from a thread of its own."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """
        Args:
            exporter: where spans go; None for where the environment says, by OTLP over HTTP.

        Raises:
            MissingError: the extra telemetry is not installed.
            TelemetryError: the environment asks for another protocol.
        """
        need("telemetry", *PACKAGES, what_for="--telemetry")
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        own = Resource({"service.name": NAME, "service.version": __version__})
        said = OTELResourceDetector().detect()  # by the environment, whose word counts more
        self._provider = TracerProvider(resource=own.merge(said), shutdown_on_exit=False)
        sending = _otlp() if exporter is None else exporter
        self._provider.add_span_processor(BatchSpanProcessor(sending))
        self._tracer = self._provider.get_tracer("avl", __version__)

    def add(self, exchange: Exchange, route: str, status: int, seconds: float) -> None:
        """Tell of a request that has been answered."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        model = exchange.notes.get("model")
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{exchange.method} {route}" if model is None else f"chat {model}",
            TraceContextTextMapPropagator().extract(exchange.headers),
            SpanKind.SERVER,
            attributes=attributes(exchange, route, status),
            start_time=end - int(seconds * 1e9),
        )
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(end)

    def close(self) -> None:
        """Send what has not been sent; waits as long as the exporter may take."""
        self._provider.shutdown()


def attributes(exchange: Exchange, route: str, status: int) -> dict[str, AttributeValue]:
    """What a span says of a request."""
    found: dict[str, Any] = {
        "http.request.method": exchange.method,
        "http.route": route,
        "http.response.status_code": status,
        "avl.request_id": exchange.id,
    }
    notes = exchange.notes
    if notes.get("model") is not None:
        found |= {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "avl"}
        found["gen_ai.request.model"] = notes["model"]
    named = {key: notes.get(name) for name, key in NOTED.items()}
    found |= {key: value for key, value in named.items() if value is not None}
    if "error.type" in found:
        found["error.type"] = str(found["error.type"])
    return found


def _otlp() -> SpanExporter:
    for name in PROTOCOLS:
        asked = os.environ.get(name, PROTOCOL)
        if asked != PROTOCOL:
            raise TelemetryError(
                f"{name}: expected {PROTOCOL}, found {quoted(asked)}; have the collector take it, "
                f"or set {DISABLED}=true"
            )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()

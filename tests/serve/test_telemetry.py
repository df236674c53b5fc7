"""Traces of requests, as a collector gets them; without the choice nothing of them is there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from avl_runtime.cli.serve import main
from avl_runtime.machine.installation import MissingError
from avl_runtime.serve.app import App
from avl_runtime.serve.http.guard import Guard
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.shelf import Shelf
from avl_runtime.serve.telemetry import Spans, TelemetryError, wanted

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = "/v1/chat/completions"
is_there = find_spec("opentelemetry") is not None
needs_it = pytest.mark.skipif(not is_there, reason="the extra telemetry is not installed here")


class Collector(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    got: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
    got: list[tuple[str, bytes]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Kept", (Collector,), {"got": got}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    try:
        yield got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(one) for one in value.array_value.values]
    return getattr(value, kind)


def named(attributes: Any) -> dict[str, Any]:
    return {one.key: value_of(one.value) for one in attributes}


async def asked(app: App, bodies: Mapping[str, object]) -> None:
    """Post bodies, without a connection, as a part of somebody's trace; then close."""
    headers = [
        (b"content-type", b"application/json"),
        (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()),
    ]
    for path, body in bodies.items():
        waiting = [{"type": "http.request", "body": json.dumps(body).encode()}]

        async def receive(waiting: list[Any] = waiting) -> Any:
            if waiting:
                return waiting.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            pass

        method = "GET" if body is None else "POST"
        await app(
            {"type": "http", "method": method, "path": path, "headers": headers}, receive, send
        )
    await app.close()


@needs_it
def test_a_collector_is_told_of_each_request(
    collector: list[tuple[str, bytes]], tiny_package: Path
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    assert wanted()
    limits = Limits()
    shelf = Shelf({"tiny": tiny_package}, limits, backend="ort-cpu")
    app = App(shelf, limits, Guard((), None), None, spans=Spans())
    message = [{"role": "user", "content": "A text that no trace holds."}]
    asking = {"model": "tiny", "messages": message, "max_tokens": 4, "min_new_tokens": 4}
    bodies = {CHAT: asking | {"n": 2, "policy": "avl"}, "/health": None, "/metrics": None}
    asyncio.run(asked(app, bodies | {"/v1/responses": asking}))
    spans: list[Any] = []
    for path, body in collector:
        assert path == "/v1/traces" and b"A text that" not in body
        (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
        about = named(resource.resource.attributes)
        assert about["service.name"] == "avl-serve"
        assert about["deployment.environment.name"] == "test"
        spans += [span for scope in resource.scope_spans for span in scope.spans]
    answered, refused = spans  # nothing of /health and /metrics
    for span in spans:
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert span.start_time_unix_nano < span.end_time_unix_nano
        assert span.kind == span.SPAN_KIND_SERVER
    assert (answered.name, refused.name) == ("chat tiny", "POST /v1/responses")
    found = named(answered.attributes)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "http.route": CHAT,
        "http.response.status_code": 200,
        "avl.visual_tokens": 0,
        "avl.visual_tokens_read": 0,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["avl.policy"].startswith("avl") and found["avl.request_id"].startswith("req-")
    assert found["gen_ai.usage.input_tokens"] > 0 and found["avl.kv_bytes"] > 0
    times = [found[f"avl.{name}_ms"] for name in ("queue", "first_token", "prefill", "decode")]
    assert times[0] >= 0 and all(time > 0 for time in times[1:])
    told = named(refused.attributes)
    assert (told["http.response.status_code"], told["error.type"]) == (400, "400")


@needs_it
def test_what_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(TelemetryError, match="expected http/protobuf, found 'grpc'"):
        Spans()


@pytest.mark.parametrize(
    ("environment", "asks"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({ENDPOINT: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_the_environment_may_ask(environment: dict[str, str], asks: bool) -> None:
    assert wanted(environment) == asks


def test_what_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("avl_runtime.machine.installation._is_there", lambda module: (
        not module.startswith("opentelemetry")
    ))  # fmt: skip
    with pytest.raises(MissingError, match="--telemetry: expected opentelemetry-sdk, "):
        Spans()
    assert main(["nothing.avl", "--telemetry"]) == 1
    assert "found no opentelemetry-sdk, opentelemetry-exp" in capsys.readouterr().err


def test_without_the_choice_nothing_is_imported() -> None:
    code = (
        "import sys, avl_runtime.cli.serve, avl_runtime.serve.app, avl_runtime.serve.run; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

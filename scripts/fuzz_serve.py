#!/usr/bin/env python
"""Send a server requests that are nearly right for minutes: none may end in a fault of the server.

    .venv/bin/python scripts/fuzz_serve.py build/avl-tiny.avl --json benchmarks/fuzz-serve.json

Starts avl-serve on this machine and changes requests that are right: fields replaced, moved, left
out and added, bytes cut and overwritten, other paths, methods and headers. Every answer must be
whole, of a status that is no fault, and if it is an error an error object that names no path.
Hypothesis draws and shrinks. Exits with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from avl_runtime.bench.surroundings import machine
from avl_runtime.serve.asked.fields import KNOWN
from started import served

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
OPTIONS = "--quiet --backend ort-cpu --max-new-tokens 4 --max-body 200000 --timeout 30"
ROUND = 200  # examples between two looks at the clock
SLOW_S = 60.0  # an answer that takes longer is a finding too
RIGHT = (200, 400, 401, 403, 404, 405, 408, 413, 415, 429)
PATHS = (
    CHAT,
    RESPONSES,
    RESPONSES,
    "/tokenize",
    "/v1/models",
    "/v1/models/x",
    "/health",
    "/metrics",
    "/",
    "/page/main.js",
    "/v1/../x",
)
HEADERS = ("Content-Type", "Content-Encoding", "Authorization", "Host", "Expect", "Accept", "X")

Asked = tuple[str, str, bytes, dict[str, str]]
Send = Callable[[Asked], tuple[int, bytes]]


def bases(model: str) -> list[dict[str, Any]]:
    """Requests that are right."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 5), "red").save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
    ]
    plain: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello."}],
        "max_tokens": 3,
    }
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", 1]}, "b": {"type": "integer", "minimum": 3}},
        "required": ["a"],
        "additionalProperties": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/c"}]},
        "$defs": {"c": {"type": "string", "maxLength": 3, "pattern": "^a+$"}},
    }
    named = {"name": "n", "schema": schema, "strict": True}
    function = {"type": "function", "function": {"name": "f", "parameters": schema}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    told = {"role": "tool", "tool_call_id": "c", "content": "x"}
    flat = {"type": "function", "name": "f", "parameters": schema}
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "x"}
    return [
        plain,
        {"model": model, "input": [*plain["messages"], item, output], "tools": [flat]},
        plain | {"tools": [function], "tool_choice": "required", "parallel_tool_calls": False},
        plain | {"messages": [*plain["messages"], called, told], "tools": [function]},
        plain | {"response_format": {"type": "json_schema", "json_schema": named}},
        {
            "model": model,
            "input": "Hello.",
            "max_output_tokens": 3,
            "text": {"format": {"type": "json_schema", **named}},
        },
        plain | {"messages": [{"role": "system", "content": "Be brief."}, *plain["messages"]]},
        plain | {"messages": [{"role": "user", "content": parts}], "policy": "avl"},
        plain | {"stream": True, "placements": "stream", "policy": "avl:refresh=1"},
        plain | {"stream": True, "stream_options": {"include_usage": True}, "n": 2, "seed": 1},
        plain | {"logprobs": True, "top_logprobs": 3, "temperature": 0.5, "top_p": 0.5},
        {"model": model, "input": "Hello.", "max_output_tokens": 3, "instructions": "Be brief."},
        plain | {"stop": ["a", "b"], "logit_bias": {"5": 2}, "placements": True, "top_k": 3},
    ]


def values() -> st.SearchStrategy[Any]:
    """Any JSON."""
    words = st.sampled_from(
        ["user", "text", "image_url", "auto", "avl", "dense", "data:,", "\ud800"]
    )
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | words
    return st.recursive(
        leaves,
        lambda one: st.lists(one, max_size=3) | st.dictionaries(names(), one, max_size=3),
        max_leaves=6,
    )


def names() -> st.SearchStrategy[str]:
    """Names of fields, known ones as a rule."""
    inner = ["role", "content", "type", "text", "image_url", "url", "detail", "include_usage"]
    inner += ["schema", "strict", "properties", "items", "anyOf", "allOf", "enum", "$ref"]
    inner += ["function", "name", "parameters", "arguments", "id", "tool_calls", "tool_call_id"]
    inner += ["multipleOf", "pattern", "maxLength", "minItems", "format"]
    return st.sampled_from([*sorted(KNOWN), *inner]) | st.text(max_size=6)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document."""
    yield path
    if not isinstance(value, (dict, list)):
        return
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(one, (*path, key))


@st.composite
def bodies(draw: st.DrawFn, model: str) -> bytes:
    """A body that was changed in places, or bytes of one that were."""
    document: Any = copy.deepcopy(draw(st.sampled_from(bases(model))))
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(list(places(document))[1:] or [()]))
        if not path or not isinstance(document, dict):
            return json.dumps(draw(values())).encode()
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        kind = draw(st.sampled_from(("replace", "drop", "add")))
        if kind == "replace":
            holder[path[-1]] = draw(values())
        elif kind == "drop":
            holder.pop(path[-1])
        elif isinstance(holder, dict):
            holder[draw(names())] = draw(values())
    data = bytearray(json.dumps(document).encode())
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(data)


@st.composite
def requests(draw: st.DrawFn, model: str) -> Asked:
    """A method, a path, a body and headers."""
    usual = draw(st.integers(0, 5)) > 0
    body = draw(bodies(model))
    method = "POST" if usual else draw(st.sampled_from(("GET", "POST", "HEAD", "PUT", "OPTIONS")))
    path = (RESPONSES if b'"input"' in body else CHAT) if usual else draw(st.sampled_from(PATHS))
    headers = {"Content-Type": "application/json"}
    if not usual:
        word = st.text("abc/;= \u00e9\u00ff-", max_size=9)
        headers |= draw(st.dictionaries(st.sampled_from(HEADERS), word, max_size=2))
    return method, path, body, headers


def sender(port: int) -> Send:
    """Sends to a server of this machine; each request has a connection of its own."""

    def send(asked: Asked) -> tuple[int, bytes]:
        method, path, body, headers = asked
        connection = HTTPConnection("127.0.0.1", port, timeout=SLOW_S)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    return send


def checked(asked: Asked, status: int, said: bytes) -> None:
    """Refuse an answer that is none.

    Raises:
        AssertionError: it is one of a fault, not whole, or names a path.
    """
    text = said.decode("utf-8")
    assert status in RIGHT, (status, text)
    assert "Traceback" not in text and ".py" not in text and "/home" not in text, text
    # What is no HTTP is answered by uvicorn itself, without an object.
    if status != 200 and asked[0] != "HEAD" and text != "Invalid HTTP request received.":
        error = json.loads(text)["error"]
        assert error.keys() == {"message", "type", "param", "code"}, text
        assert "expected" in error["message"], text
    if status == 200 and text.startswith(("data:", "event:")):
        assert text.endswith("\n\n"), text
        for event in text.removesuffix("\n\n").split("\n\n"):
            data = event.partition("data: ")[2]
            assert data == "[DONE]" or json.loads(data).get("error") is None, text


def search(send: Send, model: str, examples: int, number: int) -> Counter[int]:
    """Try requests; returns how often each status came.

    Raises:
        AssertionError: an answer is none; Hypothesis has printed the smallest request.
    """
    counts: Counter[int] = Counter()

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(requests(model))
    def once(asked: Asked) -> None:
        status, said = send(asked)
        counts[status] += 1
        checked(asked, status, said)

    once()
    return counts


@contextmanager
def started(package: Path) -> Iterator[int]:
    """The port of a server of a package."""
    with served([f"fuzzed={package}"], OPTIONS.split()) as process:
        yield process.port


def main(arguments: Sequence[str] | None = None) -> int:
    """Search until the time is up; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="of avl-tiny")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was done there")
    parsed = parser.parse_args(arguments)
    until = time.monotonic() + 60 * parsed.minutes
    counts: Counter[int] = Counter()
    try:
        with started(parsed.package) as port:
            number = parsed.seed
            while time.monotonic() < until:
                counts += search(sender(port), "fuzzed", ROUND, number)
                number += 1
    except (AssertionError, HTTPException, OSError, UnicodeDecodeError, ValueError) as error:
        print(f"found: {error!r}", file=sys.stderr)
        return 1
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "minutes": parsed.minutes,
        "seeds": [parsed.seed, number - 1],
        "requests": counts.total(),
        "by_status": dict(sorted(counts.items())),
    }
    print(json.dumps(report))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

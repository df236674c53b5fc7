"""A real server process, and what is asked of it."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.client import HTTPMessage as Message
from pathlib import Path
from typing import Any

import openai
from PIL import Image

from avl_runtime.tasks import sample

MODEL = "model"  # the package that the tests export lies in model.avl
KEY = "a-key-of-the-tests-0123456789"
CHAT = "/v1/chat/completions"
START = "import sys; from avl_runtime.cli.start import serve; sys.exit(serve())"
ONE = sample("ocr", "held-out", 40)
TWO = sample("vqa", "held-out", 41)


def data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def picture(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def question(one: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [picture(one.image), said(one.prompt)]}]


# An answer that takes long enough to be disturbed.
LONG = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Go on."}],
    "max_tokens": 1500,
    "min_new_tokens": 1500,
}


def head(body: bytes, length: int | None = None) -> bytes:
    """A request with a body, as it goes over the wire."""
    return (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    ).encode() + body


class Running:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str], port: int, lines: list[str]) -> None:
        self.process, self.port, self.lines = process, port, lines
        self.base = f"http://127.0.0.1:{port}"

    @property
    def options(self) -> dict[str, Any]:
        return {"base_url": f"{self.base}/v1", "api_key": KEY, "max_retries": 0}

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(**self.options)

    def send(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Message, bytes]:
        """Ask by hand; a body that is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, given | named)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def ask(self, body: object, **headers: str) -> tuple[int, Message, bytes]:
        """Send a body to where questions go."""
        return self.send("POST", CHAT, body, **headers)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)

    def metric(self, name: str) -> float:
        text = self.send("GET", "/metrics")[2].decode()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, text
        return float(found[1])

    def logged(self, request_id: str | None) -> dict[str, Any]:
        """The line of the log that tells of a request."""
        assert request_id is not None
        for _ in range(600):
            for line in self.lines:
                if request_id in line:
                    return dict(json.loads(line))
            time.sleep(0.05)
        raise AssertionError(request_id)

    def until(self, **metrics: float) -> None:
        """Wait until metrics have these values."""
        for _ in range(600):
            if all(self.metric(name) == value for name, value in metrics.items()):
                return
            time.sleep(0.05)
        raise AssertionError({name: self.metric(name) for name in metrics})


@contextmanager
def started(package: Path, *options: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-c", START, "--port", "0", str(package), *options],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    lines: list[str] = []
    ready = threading.Event()
    port = 0

    def read() -> None:
        nonlocal port
        assert process.stderr is not None
        for line in process.stderr:
            found = re.match(r"avl-serve: http://127\.0\.0\.1:(\d+)/v1", line)
            if found is not None:
                port = int(found[1])
                ready.set()
            lines.append(line)
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(300) and port, "".join(lines)
        yield Running(process, port, lines)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()

"""A client that asks a server; no two prompts are alike."""

from __future__ import annotations

import base64
import io
import json
import random
import sys
import threading
import time
from collections.abc import Mapping
from http.client import HTTPConnection
from typing import Any, Final

from greedy_requests import GREEDY
from speed_worker import noise

MODEL: Final = "served"
FIRST, WORDS = 20, 200  # of the words w0, w1, ... of make_random.py's tokenizers


class Client:
    """Asks a server; each request is unlike any other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._random = random.Random(0)
        self._lock = threading.Lock()

    def body(self, tokens: int, side: int = 0) -> dict[str, Any]:
        """A request whose prompt has so many tokens.

        Raises:
            SystemExit: there is none.
        """
        made = self._messages(tokens, side)
        missing = tokens - self._count(made)
        made = self._messages(tokens + missing, side)
        found = self._count(made)
        if found != tokens:
            sys.exit(f"expected a prompt of {tokens} tokens, found {found}")
        return made

    def whole(self, body: Mapping[str, Any], new: int) -> None:
        """Have so many tokens, whole.

        Raises:
            SystemExit: it is no such answer.
        """
        asked = {**body, **GREEDY, "max_tokens": new, "min_new_tokens": new}
        found = json.loads(self._send("/v1/chat/completions", asked))
        if found.get("usage", {}).get("completion_tokens") != new:
            sys.exit(f"expected {new} new tokens, found {json.dumps(found)[:300]}")

    def first(self, body: Mapping[str, Any], new: int = 2) -> float:
        """Seconds to the first token of a stream, which then is read to its end."""
        asked = {**body, **GREEDY, "max_tokens": new, "min_new_tokens": new, "stream": True}
        begun = time.perf_counter()
        connection = self._asking("/v1/chat/completions", asked)
        try:
            answer = connection.getresponse()
            while b'"content":"' not in (line := answer.readline()):
                if not line:
                    sys.exit(f"expected a token, found status {answer.status}")
            seconds = time.perf_counter() - begun
            answer.read()
            return seconds
        finally:
            connection.close()

    def _messages(self, tokens: int, side: int) -> dict[str, Any]:
        with self._lock:
            draws = [FIRST + self._random.randrange(WORDS) for _ in range(max(1, tokens))]
            seed = self._random.randrange(1 << 30)
        parts: list[dict[str, Any]] = []
        if side:
            stream = io.BytesIO()
            noise(side, seed).save(stream, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        parts.append({"type": "text", "text": " ".join(f"w{one}" for one in draws)})
        return {"model": MODEL, "messages": [{"role": "user", "content": parts}]}

    def _count(self, body: Mapping[str, Any]) -> int:
        found: int = json.loads(self._send("/tokenize", body))["count"]
        return found

    def _send(self, path: str, body: Mapping[str, Any]) -> bytes:
        connection = self._asking(path, body)
        try:
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            sys.exit(f"expected an answer, found {answer.status}: {said[:300]!r}")
        return said

    def _asking(self, path: str, body: Mapping[str, Any]) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return connection

"""A few seconds of what scripts/fuzz_serve.py does for minutes."""

from __future__ import annotations

from fuzz_serve import Asked, search
from support.server import KEY, MODEL, Running


def test_requests_that_are_nearly_right(server: Running) -> None:
    def send(asked: Asked) -> tuple[int, bytes]:
        method, path, body, headers = asked
        given = {"Authorization": f"Bearer {KEY}"} | headers
        found = server.send(method, path, body, **given)
        return found[0], found[2]

    counts = search(send, MODEL, 150, 0)
    assert counts[200] > 10 and counts[400] > 30

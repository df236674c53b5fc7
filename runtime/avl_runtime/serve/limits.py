"""How much a client may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes of one request, and of all together.

    Attributes:
        body: bytes of a request's body.
        bodies: bytes of all bodies that are held at one time.
        marks: brackets, commas and colons of a body, which memory grows by.
        images: pictures of a request.
        pixels: of all pictures of a request together.
        decoding: seconds that all pictures of a request together may take to be decoded.
        text: characters of all texts of a request.
        parts: messages of a request, and parts of a message.
        prompt: tokens of a prompt; None for as many as the model takes.
        new_tokens: that a choice may have, and has where the request says nothing.
        choices: of a request.
        placements: bytes of what a request's placements are, all choices together.
        running: choices that are read and decoded at one time.
        queue: requests that wait for their turn.
        kv_bytes: of cached rows that all answers at one time may need; None for what the machine's
            memory and the weights leave.
        seconds: for a request, from its last byte to the answer's last one.
        body_seconds: for a body to come.
        connections: at one time.
        rest: seconds without a question after which freed memory goes back to the system.
    """

    body: int = 32 << 20
    bodies: int = 256 << 20
    marks: int = 200_000
    images: int = 16
    pixels: int = 64_000_000
    decoding: float = 30.0
    text: int = 1 << 20
    parts: int = 1024
    prompt: int | None = None
    new_tokens: int = 4096
    choices: int = 8
    placements: int = 64 << 20
    running: int = 8
    queue: int = 64
    kv_bytes: int | None = None
    seconds: float = 600.0
    body_seconds: float = 60.0
    connections: int = 512
    rest: float = 300.0

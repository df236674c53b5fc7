"""A model made of a few fixed answers; it stands for LVLM, its chats remember as real ones do."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from avl_plugins.errors import AvlError
from avl_plugins.policies import Policy, parse
from avl_runtime.generate.results import Placement, Result, Stats
from avl_runtime.package.generation_defaults import NEUTRAL
from avl_runtime.vision import Cells
from face.support import tiny_processor

PIECES = ("a red", " circle", " é日")
ANSWER = "".join(PIECES)


@dataclass
class FakeModel:
    """Records what it is asked.

    Asked "long", the answer was cut; asked "forever", it goes on until it is stopped.
    """

    fails: AvlError | None = None
    raises: BaseException | None = None
    given: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    films: list[int] = field(default_factory=list)
    chats: list[FakeChat] = field(default_factory=list)

    processor = tiny_processor()
    package = SimpleNamespace(manifest=SimpleNamespace(generation=NEUTRAL))
    loaded = SimpleNamespace(backend=SimpleNamespace(name="ort-cpu"))

    def load(self, folder: Path, **options: Any) -> FakeModel:
        self.given = {"folder": folder, **options}
        if self.fails is not None:
            raise self.fails
        return self

    def chat(
        self,
        policy: str | Policy | None = None,
        system: str | None = None,
        messages: Sequence[dict[str, Any]] = (),
    ) -> FakeChat:
        chosen = parse(policy) if isinstance(policy, str) else policy
        chat = FakeChat(self, chosen or parse("dense"), list(messages))
        if system is not None:
            chat.set_system(system)
        self.chats.append(chat)
        return chat

    def pieces(self, prompt: str, images: int) -> Generator[str, None, Result]:
        yield PIECES[0]
        if self.raises is not None:
            raise self.raises
        while prompt == "forever":
            time.sleep(0.01)
            yield " and on"
        yield from PIECES[1:]
        core = np.ones((2, 144 * images), np.bool_)
        sizes = (1000, 4_000_000, 5_000_000)
        stats = Stats("dense", "ort-cpu", 150, 144, 4, 20.0, 2.5, *sizes, visual_tokens_read=144)
        places = (Placement(0, core, ~core),)
        visuals = (Cells((12, 12), np.arange(144)),) * images
        reason = "length" if prompt == "long" else "eos"
        return Result(ANSWER, (5, 6, 7, 2), reason, None, stats, places, visuals)


@dataclass
class FakeChat:
    """A chat of a `FakeModel`."""

    model: FakeModel
    policy: Policy
    messages: list[dict[str, Any]]

    @property
    def media(self) -> tuple[str, ...]:
        parts = [part for message in self.messages for part in message["content"]]
        return tuple(part["type"] for part in parts if part["type"] != "text")

    def stream(
        self, prompt: str, images: list[Any], videos: list[Any], **options: Any
    ) -> Generator[str, None, Result]:
        self.model.asked.append((prompt, len(images), options))
        self.model.films.append(len(videos))
        parts = [{"type": "image", "image": one} for one in images]
        parts += [{"type": "video", "video": one} for one in videos]
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}
        return self._turn(prompt, asked)

    def _turn(self, prompt: str, asked: dict[str, Any]) -> Generator[str, None, Result]:
        reply = ""
        count = len(self.media) + len(asked["content"]) - 1
        turn = self.model.pieces(prompt, count)
        try:
            while True:
                try:
                    piece = next(turn)
                except StopIteration as end:
                    return end.value
                reply += piece
                yield piece
        finally:
            if not isinstance(self.model.raises, AvlError):
                said = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
                self.messages += [asked, said]

    def undo(self) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise AvlError("expected something said to take back, found nothing; ask first")
        del self.messages[-2:]

    def clear(self) -> None:
        self.messages = self.messages[:1] if self._has_system() else []

    def set_policy(self, policy: str | Policy) -> None:
        self.policy = parse(policy) if isinstance(policy, str) else policy

    def set_system(self, text: str | None) -> None:
        del self.messages[: int(self._has_system())]
        if text is not None:
            self.messages[:0] = [{"role": "system", "content": [{"type": "text", "text": text}]}]

    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"

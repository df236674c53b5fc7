"""Questions to a model, whose answers are printed as they come."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from PIL import Image

from avl_runtime.chat import Chat
from avl_runtime.cli.output import as_json, certainty_line, save_picture, stats_lines
from avl_runtime.cli.talk.sources import Shown
from avl_runtime.evaluate.certainty import Certainty, certainty
from avl_runtime.generate.results import Result
from avl_runtime.model import LVLM
from avl_runtime.show.grid import grids
from avl_runtime.show.heatmap import draw


@dataclass(frozen=True, slots=True)
class Extras:
    """What is told besides the text, and where.

    Attributes:
        notes: whether an answer that was cut is said to be.
        certainty: whether the answer is read again, behind masked pictures.
    """

    stats: bool
    json: bool
    show: bool
    heatmap: Path | None
    stream: TextIO = field(repr=False)
    notes: bool = True
    certainty: bool = False


class Session:
    """Asks a model and prints its answers as they come.

    Args:
        options: generation options as `LVLM.stream` takes them.

    Attributes:
        chat: the conversation; another one may be put in its place.
    """

    def __init__(
        self, model: LVLM, options: dict[str, Any], extras: Extras, system: str | None = None
    ) -> None:
        self.model = model
        self.chat: Chat = model.chat(system=system)
        self.extras = extras
        self._options, self._system = options, system
        self._interrupted = False

    def ask(self, prompt: str, shown: Shown) -> None:
        """Put one question and print the answer and what else was asked for.

        Raises:
            AvlError: the model refuses the question, or a file cannot be written.
        """
        extras = self.extras
        traced = extras.show or extras.heatmap is not None
        noted: dict[str, Any] = {"return_logits": True} if extras.certainty else {}
        stream = self.chat.stream(
            prompt,
            list(shown.images),
            list(shown.videos),
            return_placements=traced,
            **noted,
            **self._options,
        )
        result: Result | None = None
        self._interrupted = False
        while not self._interrupted:
            try:
                piece = next(stream)
            except StopIteration as end:
                result = end.value
                break
            if not extras.json:
                print(piece, end="", flush=True)
        stream.close()
        if not extras.json:
            print(flush=True)
        if result is None:
            print("[stopped]", file=extras.stream)
        else:
            found = None
            if extras.certainty:
                asked = prompt, shown.images, result, self.chat.policy, self._system
                found = certainty(self.model, *asked)
            self._report(result, prompt, found)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C end the answer between two tokens, where the cache is whole.

        The second one ends it at once.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _views(self) -> list[Image.Image]:
        """What the model sees of all pictures and videos, in the order of its tokens."""
        processor = self.model.processor
        found: dict[str, list[Image.Image]] = {"image": [], "video": []}
        for message in self.chat.messages:
            parts = message["content"]
            images = [part["image"] for part in parts if part["type"] == "image"]
            found["image"] += [processor.view(image, len(images)) for image in images]
            videos = [part["video"] for part in parts if part["type"] == "video"]
            found["video"] += [processor.view_video(video) for video in videos]
        return [found[kind].pop(0) for kind in self.chat.media]

    def _report(self, result: Result, prompt: str, certain: Certainty | None) -> None:
        extras, visuals = self.extras, result.visuals
        steps, places = result.stats.new_tokens - 1, self.chat.policy.places
        if extras.json:
            print(json.dumps(as_json(result, certain), ensure_ascii=False), flush=True)
        elif result.finish_reason == "length" and extras.notes:
            print(
                f"[cut after {result.stats.new_tokens} tokens; --max-new-tokens allows more]",
                file=extras.stream,
            )
        if visuals and extras.show:
            colour = extras.stream.isatty() and not os.environ.get("NO_COLOR")
            shown, dropped = result.placements, result.dropped_before
            told = grids(shown, visuals, steps, colour=colour, places=places, dropped=dropped)
            print(told, file=extras.stream)
        if visuals and extras.heatmap is not None:
            title = f"{result.stats.policy} · {prompt}"
            views = self._views()
            shown, dropped = result.placements, result.dropped_before
            sheet = draw(views, shown, visuals, steps, title, result.text, places, dropped)
            save_picture(sheet, extras.heatmap)
        if extras.stats:
            print(stats_lines(result.stats), file=extras.stream)
        if certain is not None:
            print(certainty_line(certain), file=extras.stream)

"""A conversation in the terminal: one question, or one after another."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime.cli.output import as_json, save_picture, stats_lines
from avl_runtime.cli.show import grids
from avl_runtime.heatmap import draw
from avl_runtime.images import ImageLike, load_image
from avl_runtime.model import LVLM
from avl_runtime.results import Result
from avl_runtime.videos import Video, load_video

HELP = (
    "/image PATH or URL and /video PATH add a picture or a video to the next question, "
    "/quit or Ctrl-D leaves"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Pictures and videos that go with a question."""

    images: tuple[Image.Image, ...] = ()
    videos: tuple[Video, ...] = ()


@dataclass(frozen=True, slots=True)
class Extras:
    """What is told besides the text, and where."""

    stats: bool
    json: bool
    show: bool
    heatmap: Path | None
    stream: TextIO


class Session:
    """Asks a model and prints its answers as they come.

    Args:
        options: generation options as `LVLM.stream` takes them.
    """

    def __init__(self, model: LVLM, options: dict[str, Any], extras: Extras) -> None:
        self._model = model
        self._chat = model.chat()
        self._options = options
        self._extras = extras
        self._seen: list[Image.Image] = []  # every picture so far, as the model sees it
        self._interrupted = False

    def ask(self, prompt: str, shown: Shown) -> None:
        """Put one question and print the answer and what else was asked for.

        Raises:
            AvlError: the model refuses the question, or a file cannot be written.
        """
        extras = self._extras
        traced = extras.show or extras.heatmap is not None
        images: list[ImageLike] = list(shown.images)
        stream = self._chat.stream(
            prompt, images, shown.videos, return_placements=traced, **self._options
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
        if traced:
            self._look(shown)
        if result is not None:
            self._report(result, prompt)

    def talk(self, shown: Shown) -> None:
        """Answer questions typed in the terminal until its end; `shown` goes with the first.

        Ctrl-C ends an answer early, and leaves when there is none.
        """
        with suppress(ImportError):
            importlib.import_module("readline")  # where there is one, input() can edit lines
        print(HELP, file=self._extras.stream)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            if line in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    shown = self._command(line, shown)
                elif line:
                    asked, shown = shown, Shown()
                    with self._interruptible():
                        self.ask(line, asked)
            except AvlError as error:
                print(f"avl-run: {error}", file=self._extras.stream)

    def _look(self, shown: Shown) -> None:
        """Note what the model sees of new pictures and videos, in the order of its tokens."""
        processor = self._model.processor
        views = {
            "image": [processor.view(image, len(shown.images)) for image in shown.images],
            "video": [processor.view_video(video) for video in shown.videos],
        }
        self._seen += [views[kind].pop(0) for kind in self._chat.media[len(self._seen) :]]

    def _report(self, result: Result, prompt: str) -> None:
        extras, visuals = self._extras, result.visuals
        steps = result.stats.new_tokens - 1
        if extras.json:
            print(json.dumps(as_json(result), ensure_ascii=False), flush=True)
        if extras.show and self._seen:
            colour = extras.stream.isatty() and not os.environ.get("NO_COLOR")
            told = grids(result.placements, visuals, steps, colour=colour)
            print(told, file=extras.stream)
        if extras.heatmap is not None and self._seen:
            title = f"{result.stats.policy} · {prompt}"
            sheet = draw(self._seen, result.placements, visuals, steps, title, result.text)
            save_picture(sheet, extras.heatmap)
        if extras.stats:
            print(stats_lines(result.stats), file=extras.stream)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C end the answer between two tokens, where the cache is whole."""

        def stop(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, before)
            self._interrupted = True

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _command(self, line: str, shown: Shown) -> Shown:
        """`shown` and what a command adds."""
        name, _, rest = line.partition(" ")
        source = rest.strip()
        if name == "/image" and source:
            return Shown((*shown.images, load_image(source)), shown.videos)
        if name == "/video" and source:
            return Shown(shown.images, (*shown.videos, load_video(source)))
        print(HELP, file=self._extras.stream)
        return shown

"""A conversation in the terminal: one question, or one after another."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime.cli.output import as_json, save_picture, stats_lines
from avl_runtime.cli.show import grids
from avl_runtime.heatmap import draw
from avl_runtime.images import ImageLike, load_image
from avl_runtime.model import LVLM
from avl_runtime.results import Result

HELP = "/image PATH or URL adds a picture to the next question, /quit or Ctrl-D leaves"


@dataclass(frozen=True, slots=True)
class Extras:
    """What is told besides the text."""

    stats: bool
    json: bool
    show: bool
    heatmap: Path | None


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

    def ask(self, prompt: str, images: list[Image.Image]) -> None:
        """Put one question and print the answer and what else was asked for.

        Raises:
            AvlError: the model refuses the question, or a file cannot be written.
        """
        extras = self._extras
        traced = extras.show or extras.heatmap is not None
        sources: list[ImageLike] = list(images)
        stream = self._chat.stream(prompt, sources, return_placements=traced, **self._options)
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
        self._seen += [self._model.processor.view(image) for image in images]
        if result is not None:
            self._report(result, prompt)

    def talk(self, images: list[Image.Image]) -> None:
        """Answer questions typed in the terminal until its end; `images` go with the first.

        Ctrl-C ends an answer early, and leaves when there is none.
        """
        with suppress(ImportError):
            importlib.import_module("readline")  # where there is one, input() can edit lines
        print(HELP, file=sys.stderr)
        images = list(images)
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
                    images += _command(line)
                elif line:
                    asked, images = images, []
                    with self._interruptible():
                        self.ask(line, asked)
            except AvlError as error:
                print(f"avl-run: {error}", file=sys.stderr)

    def _report(self, result: Result, prompt: str) -> None:
        extras, grid = self._extras, self._model.package.manifest.vision.grid
        steps = result.stats.new_tokens - 1
        if extras.json:
            print(json.dumps(as_json(result), ensure_ascii=False), flush=True)
        if extras.show and self._seen:
            colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
            told = grids(result.placements, grid, len(self._seen), steps, colour=colour)
            print(told, file=sys.stderr)
        if extras.heatmap is not None and self._seen:
            title = f"{result.stats.policy} · {prompt}"
            save_picture(draw(self._seen, result.placements, grid, steps, title), extras.heatmap)
        if extras.stats:
            print(stats_lines(result.stats), file=sys.stderr)

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


def _command(line: str) -> list[Image.Image]:
    """Pictures that a command adds."""
    name, _, rest = line.partition(" ")
    if name == "/image" and rest.strip():
        return [load_image(rest.strip())]
    print(HELP, file=sys.stderr)
    return []

"""avl-run: ask a package about pictures and videos.

The answer goes to stdout as it is generated, everything else to stderr.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from types import FrameType
from typing import Any

from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime.cli.arguments import make_parser, parse_arguments
from avl_runtime.cli.generation import generation_options, without_effect
from avl_runtime.cli.output import check_apart, check_picture
from avl_runtime.cli.session import Extras, Session
from avl_runtime.cli.status import exit_status
from avl_runtime.cli.talk.loop import Talk
from avl_runtime.cli.talk.sources import Shown, Sources
from avl_runtime.execute.choose import ENGINES
from avl_runtime.model import LVLM
from avl_runtime.prompts.processor import PromptError
from avl_runtime.vision.load.images import MAX_BYTES, ImageError, load_image
from avl_runtime.vision.load.videos import load_video

TERMINATED = 128 + signal.SIGTERM  # what shells report for a program ended by a polite kill


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parser = make_parser()
    arguments = parse_arguments(parser, argv)
    try:
        options = generation_options(arguments)
    except AvlError as error:
        parser.error(str(error))
    return exit_status("avl-run", lambda: _run(arguments, options), on_term=_terminate)


def _run(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    extras = Extras(
        arguments.stats,
        arguments.json,
        arguments.show,
        arguments.heatmap,
        sys.stderr,
        notes=not arguments.quiet,
        certainty=arguments.certainty,
    )
    hushed = redirect_stderr(io.StringIO()) if arguments.quiet else nullcontext()
    with hushed:
        # Whatever can be refused is refused before the model is loaded.
        if extras.heatmap is not None:
            check_picture(extras.heatmap)
            check_apart([extras.heatmap], arguments.image + arguments.video)
        sources = Sources()
        shown = Shown(tuple(map(_image, arguments.image)), tuple(map(load_video, arguments.video)))
        given = zip(shown.images + shown.videos, arguments.image + arguments.video, strict=True)
        for loaded, source in given:
            sources.note(loaded, source)
        prompt = arguments.prompt
        if prompt is None and not arguments.talk:
            prompt = _stdin_prompt()
        model = LVLM.load(
            arguments.package,
            backend=arguments.backend,
            policy=arguments.policy,
            threads=arguments.threads,
            verify=arguments.verify,
            park=arguments.park,
            kv=arguments.kv,
            compute=arguments.compute,
        )
        _tell_what_is_idle(model, arguments, options)
        session = Session(model, options, extras, arguments.system)
        if prompt is None:
            Talk(session, shown, sources).run()
        else:
            session.ask(prompt, shown)
    return 0


def _tell_what_is_idle(model: LVLM, arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Say which options do nothing with this package, on this backend."""
    idle = without_effect(options, model.package.manifest.generation)
    if idle:
        print(
            f"avl-run: {', '.join(idle)}: without effect on greedy answers; add --temperature T",
            file=sys.stderr,
        )
    backend = model.loaded.backend.name
    if arguments.threads is not None and backend in ENGINES:
        print(f"avl-run: --threads: without effect, {backend} runs on the GPU", file=sys.stderr)


def _image(source: str) -> Image.Image:
    if source != "-":
        return load_image(source)
    if sys.stdin is None or sys.stdin.isatty():
        raise ImageError("stdin: expected an image, found none; pipe one in, as avl-run … < FILE")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(f"stdin: expected at most {MAX_BYTES >> 20} MiB; scale the image down")
    return load_image(data)


def _stdin_prompt() -> str:
    try:
        return sys.stdin.read().strip() if sys.stdin is not None else ""
    except UnicodeDecodeError:
        raise PromptError(
            "expected a prompt in UTF-8 on stdin, found other data; for a picture use --image -"
        ) from None


def _terminate(number: int, frame: FrameType | None) -> None:
    """End a conversation too, which Ctrl-C would not."""
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())

"""avl-run: ask a package about pictures and videos.

The answer goes to stdout as it is generated, everything else to stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from avl_plugins.errors import AvlError, shown
from avl_runtime.backends.protocol import BACKENDS, PARKS
from avl_runtime.cli.generation import add_generation, generation_options
from avl_runtime.cli.output import check_picture
from avl_runtime.cli.session import Extras, Session, Shown
from avl_runtime.images import MAX_BYTES, ImageError, load_image
from avl_runtime.model import LVLM
from avl_runtime.processor import PromptError
from avl_runtime.videos import load_video

INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows a question mark.
        sys.stdout.reconfigure(errors="replace")
    try:
        _run(_parser(), argv)
        sys.stdout.flush()
    except AvlError as error:
        print(f"avl-run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        print(f"avl-run: expected to read and write, found: {shown(error)}", file=sys.stderr)
        _drop_output()
        return 1
    return 0


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
    arguments = parser.parse_args(argv)
    sources: list[str] = arguments.image
    terminal = sys.stdin is not None and sys.stdin.isatty()
    talk = arguments.prompt is None and terminal
    if sources.count("-") > 1 or ("-" in sources and arguments.prompt is None):
        parser.error("--image - takes the one picture on stdin, so the prompt must be an argument")
    if arguments.json and talk:
        parser.error("--json needs a prompt, as an argument or on stdin")
    if arguments.heatmap is not None and not sources and not arguments.video and not talk:
        parser.error("--heatmap needs an image or a video, add --image PATH or --video PATH")
    if arguments.logprobs is not None and not arguments.json:
        parser.error("--logprobs needs --json, which prints them")
    options = generation_options(arguments)
    extras = Extras(arguments.stats, arguments.json, arguments.show, arguments.heatmap)
    # Whatever can be refused is refused before the model is loaded.
    if extras.heatmap is not None:
        check_picture(extras.heatmap)
    shown = Shown(tuple(map(_image, sources)), tuple(map(load_video, arguments.video)))
    prompt = arguments.prompt
    if prompt is None and not talk:
        prompt = _stdin_prompt()
    model = LVLM.load(
        arguments.package,
        backend=arguments.backend,
        policy=arguments.policy,
        verify=arguments.verify,
        park=arguments.park,
    )
    session = Session(model, options, extras)
    if prompt is None:
        session.talk(shown)
    else:
        session.ask(prompt, shown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avl-run",
        description="Ask a package made by avl-export about pictures and videos.",
        epilog="Without PROMPT it is read from stdin, or a conversation begins in a terminal.",
    )
    parser.add_argument("package", metavar="PACKAGE", type=Path, help="folder with avl.json")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the question")
    parser.add_argument(
        "--image",
        metavar="PATH|URL|-",
        action="append",
        default=[],
        help="a picture; repeat it for several, - reads one from stdin",
    )
    parser.add_argument(
        "--video",
        metavar="PATH",
        action="append",
        default=[],
        help="a video file; repeat it for several",
    )
    parser.add_argument(
        "--policy",
        help="dense, avl, fastv, avl+fastv or random, with options as avl:keep=0.5,core=0.3 "
        "(default: the package's)",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="default: auto, the best that works"
    )
    parser.add_argument(
        "--park",
        choices=PARKS,
        default="device",
        help="where rows that only refreshes read lie between them (default: device)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare all weights with their recorded hashes"
    )
    parser.add_argument("--stats", action="store_true", help="speed and memory at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--show", action="store_true", help="print which image tokens were kept, as a grid"
    )
    parser.add_argument(
        "--heatmap", metavar="FILE.png", type=Path, help="draw what was kept over the pictures"
    )
    add_generation(parser)
    return parser


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


def _drop_output() -> None:
    """Send what is still buffered nowhere, or Python would complain at exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())

"""The command line of avl-run."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from avl_plugins.policies import USUAL
from avl_runtime.cli.generation import add_generation
from avl_runtime.cli.lists import path_name, picture_name, policy, threads
from avl_runtime.cli.parser import CommandParser
from avl_runtime.execute.protocol import BACKENDS, COMPUTES, KV, PARKS

SEVERAL = ("--image", "--video")  # take more files after the first
# What is meant as a file even where there is none: a wrong name shall not become the question.
FILE = re.compile(
    r"-|data:.*|[a-z][a-z0-9+.]*://\S+"
    r"|\S+\.(png|jpe?g|webp|avif|gif|bmp|tiff?|p[bgpn]m|jp2|hei[cf]|mp4|mov|mkv|webm|avi|m4v)",
    re.IGNORECASE | re.DOTALL,
)
FRAME = re.compile(r"#frame=\d+$")  # which picture of a file


def parse_arguments(
    parser: argparse.ArgumentParser, given: Sequence[str] | None
) -> argparse.Namespace:
    """Read what avl-run was given; anything that cannot be used ends with exit status 2.

    Beside the options, `talk` says whether a conversation in a terminal begins.
    """
    words = list(sys.argv[1:] if given is None else given)
    spread = _spread(words)
    # Words between options are PACKAGE and PROMPT; behind a lone -- all words are.
    split = spread.index("--") if "--" in spread else len(spread)
    read = parser.parse_args if len(spread) > split + 2 else parser.parse_intermixed_args
    arguments = read(spread)
    _check_usage(parser, arguments)
    return arguments


def _check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    sources: list[str] = arguments.image
    terminal = sys.stdin is not None and sys.stdin.isatty()
    arguments.talk = arguments.prompt is None and terminal
    if sources.count("-") > 1 or ("-" in sources and arguments.prompt is None):
        parser.error("--image - takes the one picture on stdin, so the prompt must be an argument")
    if arguments.json and arguments.talk:
        parser.error("--json needs a prompt, as an argument or on stdin")
    for option in ("heatmap", "show"):
        if getattr(arguments, option) and not (sources or arguments.video or arguments.talk):
            parser.error(f"--{option} needs an image or a video, add --image PATH or --video PATH")
    if arguments.certainty and arguments.talk:
        parser.error("--certainty needs a prompt, as an argument or on stdin")
    if arguments.certainty and (arguments.video or not sources):
        parser.error(
            "--certainty masks pictures: expected --image PATH and no --video; ask about frames of "
            "a video as pictures"
        )
    if arguments.system is not None and not arguments.system.strip():
        parser.error("argument --system: expected a text, found none; leave it out")
    if arguments.logprobs is not None and not arguments.json:
        parser.error("--logprobs needs --json, which prints them")


def _spread(words: Sequence[str]) -> list[str]:
    """`--image a.png b.png` as `--image a.png --image b.png`.

    What follows the first file is another one if it is a file, an address or named like one;
    otherwise it is PACKAGE or PROMPT, which may stand there too.
    """
    found: list[str] = []
    option, first = "", False
    for place, word in enumerate(words):
        if word == "--":
            return [*found, *words[place:]]
        if word.startswith("-") and word != "-" and " " not in word:
            name = word.partition("=")[0]
            option = next((one for one in SEVERAL if _is_short_for(name, one)), "")
            first = "=" not in word
        elif option and not first and _is_file(word):
            found.append(option)
        else:
            first = False
        found.append(word)
    return found


def _is_short_for(name: str, option: str) -> bool:
    return len(name) > len("--v") and option.startswith(name)


def _is_file(word: str) -> bool:
    name = FRAME.sub("", word)
    if FILE.fullmatch(word) or FILE.fullmatch(name):
        return True
    try:
        return Path(word).is_file() or Path(name).is_file()
    except OSError:  # too long for a name
        return False


def make_parser() -> CommandParser:
    """The parser of avl-run."""
    parser = CommandParser(
        "avl-run",
        "Ask a package made by avl-export about pictures and videos.",
        'avl-run avl-tiny.avl "Read the text." --image samples/page.png --policy avl --stats',
        "Without PROMPT it is read from stdin, or a conversation begins in a terminal.",
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", type=path_name, help="folder with avl.json")
    add(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="the question; -- comes before one like -x or a file's name",
    )
    add(
        "--image",
        metavar="PATH|URL|data:|-",
        action="append",
        default=[],
        help="a picture, or several one after another; NAME#frame=N is frame N of an animation, "
        "- reads one from stdin",
    )
    add(
        "--video",
        metavar="PATH",
        action="append",
        default=[],
        help="a video file or an animated picture, or several one after another",
    )
    add("--system", metavar="TEXT", help="a system prompt, in front of all that is said")
    add(
        "--policy",
        type=policy,
        help=f"{', '.join(USUAL[:-1])} or {USUAL[-1]}, with options as avl:keep=0.5,core=0.3 "
        "(default: the package's)",
    )
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what runs the graphs (default: auto, the best that works)",
    )
    add("--threads", metavar="N", type=threads, help="CPU threads (default: all processors)")
    add(
        "--compute",
        choices=COMPUTES,
        default="auto",
        help="what prompts and pictures are multiplied in on ort-cpu; bf16 needs AMX, is faster "
        "and rounds; linears of quantized weights take AMX in any case (default: auto, bf16 for "
        "attention of quantized packages, else fp32)",
    )
    add(
        "--park",
        choices=PARKS,
        default="device",
        help="where rows that only refreshes read lie between them (default: device)",
    )
    add(
        "--kv",
        choices=KV,
        default="auto",
        help="how cached rows are kept: fp16 takes half of the memory, int8 a quarter, int8-int4 "
        "and int8-int2 less for rows that a policy parks, on ort-cpu (default: auto, as the "
        "package computes or as avl-tune wrote)",
    )
    add(
        "--verify",
        action="store_true",
        help="compare all weights with their recorded hashes, or a sample where an export recorded "
        "none, and say so",
    )
    add("--stats", action="store_true", help="speed and memory at the end")
    add(
        "--certainty",
        action="store_true",
        help="how sure the answer is of the pictures, by reading it again behind masked ones",
    )
    add("--json", action="store_true", help="print one JSON object instead")
    add("--show", action="store_true", help="print which image tokens were kept, as a grid")
    add(
        "--heatmap",
        metavar="FILE.png",
        type=picture_name,
        help="draw what was kept over the pictures",
    )
    add("--quiet", action="store_true", help="nothing on stderr but failures and what is asked for")
    add_generation(parser)
    return parser

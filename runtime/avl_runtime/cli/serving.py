"""Options that commands which answer OpenAI's protocol share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, Final

from avl_runtime.cli.lists import (
    count,
    none_or_more,
    path_name,
    policy,
    prefix_bytes,
    some_name,
    some_seconds,
    threads,
)
from avl_runtime.cli.parser import CommandParser
from avl_runtime.execute.protocol import BACKENDS, COMPUTES, KV
from avl_runtime.serve.limits import Limits

USUAL: Final = Limits()
LOADING = (
    "backend",
    "policy",
    "threads",
    "kv",
    "compute",
    "prefix_cache",
    "cache_dir",
    "cache_limit",
)
Add = Callable[..., argparse.Action]


def add_package(add: Add, name: str, **more: Any) -> None:
    """What is loaded."""
    add(
        name,
        metavar="PACKAGE",
        type=some_name,
        help="folder with avl.json, called as it is without .avl, or NAME=FOLDER",
        **more,
    )


def add_answering(add: Add, timeout: float | None) -> None:
    """How packages are loaded and asked, and how much a request may ask for.

    Args:
        timeout: seconds that a request has where the command line says nothing; None for no end.
    """
    add(
        "--allow-url-host",
        metavar="HOST",
        action="append",
        default=[],
        help="fetch pictures from http and https addresses of this host, NAME or NAME:PORT, as "
        "long as it has public addresses; may be given again (default: nothing is fetched)",
    )
    add("--policy", type=policy, help="of requests that name none (default: the package's)")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the graphs")
    add("--threads", metavar="N", type=threads, help="CPU threads (default: all processors)")
    add("--kv", choices=KV, default="auto", help="how cached rows are kept")
    add("--compute", choices=COMPUTES, default="auto", help="what prompts are multiplied in")
    add(
        "--prefix-cache",
        metavar="BYTES|off",
        default="auto",
        type=prefix_bytes,
        help="of rows that each model keeps for prompts that begin as an earlier one did, on "
        "ort-cpu (default: auto, an eighth of the memory, 1 GiB at most)",
    )
    add(
        "--cache-dir",
        metavar="DIR",
        type=path_name,
        help="keep these rows in files too, which outlive the process and which several may share; "
        "DIR tells whoever reads it of prompts (default: nothing is written)",
    )
    add(
        "--cache-limit",
        metavar="BYTES",
        type=count,
        help="of the files in --cache-dir; those that were not used for the longest go first "
        "(default: 10 GiB)",
    )
    add("--running", metavar="N", default=USUAL.running, type=count, help="answers at one time")
    add(
        "--kv-bytes",
        metavar="BYTES",
        type=count,
        help="of cached rows that answers at one time may need, prompts included; others wait. "
        "avl-serve holds that memory from its start on (default: half of the memory that weights "
        "leave, taken as it is needed, and no limit on a GPU)",
    )
    add(
        "--choices",
        metavar="N",
        type=count,
        help=f"answers of one request (default: {USUAL.choices}, or --running if that is less)",
    )
    most = USUAL.new_tokens
    add("--max-new-tokens", metavar="N", default=most, type=count, help="of an answer, at most")
    add("--max-prompt", metavar="N", type=count, help="tokens (default: the model's context)")
    add("--max-body", metavar="BYTES", default=USUAL.body, type=count, help="of a request")
    add("--max-images", metavar="N", default=USUAL.images, type=none_or_more, help="of a request")
    add("--max-pixels", metavar="N", default=USUAL.pixels, type=count, help="of all its pictures")
    add("--timeout", metavar="S", default=timeout, type=some_seconds, help="for a request")


def check_choices(parser: CommandParser, parsed: argparse.Namespace) -> None:
    """Refuse requests of more choices than can run; end with exit status 2 where they are asked."""
    if parsed.choices is None:
        parsed.choices = min(parsed.running, USUAL.choices)
    elif parsed.choices > parsed.running:
        parser.error(
            f"--choices {parsed.choices}: expected at most --running {parsed.running}, which all "
            "choices of a request take at one time"
        )


def loading_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `LVLM.load`."""
    return {name: getattr(parsed, name) for name in LOADING}


def limits_of(parsed: argparse.Namespace, **others: Any) -> Limits:
    """The limits that a command line gives, and others that it does not."""
    named = {
        "body": parsed.max_body,
        "bodies": max(parsed.max_body, USUAL.bodies),
        "images": parsed.max_images,
        "pixels": parsed.max_pixels,
        "prompt": parsed.max_prompt,
        "new_tokens": parsed.max_new_tokens,
        "choices": parsed.choices,
        "running": parsed.running,
        "kv_bytes": parsed.kv_bytes,
        "seconds": math.inf if parsed.timeout is None else parsed.timeout,
    }
    return Limits(**named | others)

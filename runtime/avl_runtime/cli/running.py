"""How a package is run, on the command lines that measure policies."""

from __future__ import annotations

import argparse

from avl_runtime.execute.protocol import BACKENDS, COMPUTES, KV


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add `--backend`, `--kv` and `--compute`."""
    add = parser.add_argument
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what runs the graphs (default: auto, the best that works)",
    )
    add("--kv", choices=KV, default="auto", help="how cached rows are kept (default: auto)")
    add(
        "--compute",
        choices=COMPUTES,
        default="auto",
        help="what prompts and pictures are multiplied in on ort-cpu (default: auto)",
    )

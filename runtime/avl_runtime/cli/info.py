"""avl-info: what a package holds, and what it does by default."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from avl_runtime.cli.lists import path_name
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.status import exit_status
from avl_runtime.package.info import describe, info_text
from avl_runtime.package.package import load_package


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parsed = make_parser().parse_args(arguments)
    return exit_status("avl-info", lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> int:
    found = describe(load_package(parsed.package))
    print(json.dumps(found, ensure_ascii=False) if parsed.json else info_text(found))
    return 0


def make_parser() -> CommandParser:
    """The parser of avl-info."""
    parser = CommandParser(
        "avl-info",
        "Say what a package holds: its model, its policies, how it generates by default, where its "
        "weights are. Nothing is loaded.",
        "avl-info avl-tiny.avl --json",
    )
    parser.add_argument("package", metavar="PACKAGE", type=path_name, help="folder with avl.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())

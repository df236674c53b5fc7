"""avl-doctor: what this machine has for each backend, and the command that installs the rest."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from avl_runtime.cli.diagnosis import Finding, diagnose
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.status import exit_status
from avl_runtime.machine.probe import probe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 whatever is missing, as ort-cpu needs none of it."""
    parsed = make_parser().parse_args(arguments)
    return exit_status("avl-doctor", lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> int:
    findings = diagnose(probe())
    if parsed.json:
        print(json.dumps({"findings": [dataclasses.asdict(one) for one in findings]}))
    else:
        print("\n".join(_lines(findings)))
    return 0


def _lines(findings: Sequence[Finding]) -> list[str]:
    width = max(len(one.name) for one in findings)
    lines = []
    for number, one in enumerate(findings):
        mark = "ok" if one.fix is None else "--"
        lines.append(f"{mark}  {one.name:<{width}}  {one.found}  (for {one.needed_for})")
        following = findings[number + 1].fix if number + 1 < len(findings) else None
        if one.fix is not None and one.fix != following:  # once for neighbours with the same
            lines.append(f"    {'':<{width}}  -> {one.fix}")
    return lines


def make_parser() -> CommandParser:
    """The parser of avl-doctor."""
    parser = CommandParser(
        "avl-doctor",
        "Say what this machine has for each backend and how to install the rest.",
        "avl-doctor --json",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())

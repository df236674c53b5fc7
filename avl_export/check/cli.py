"""avl-check: whether a package, on a backend, computes what it should."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from avl_export.check.table import HEADER, CheckError, Row
from avl_export.options import GGUF, OptionsError
from avl_export.progress import COMMAND
from avl_runtime.cli.lists import path_name, some_name
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.status import exit_status
from avl_runtime.execute.protocol import BACKENDS
from avl_runtime.machine.installation import shortage
from avl_runtime.package.package import load_package


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a difference), 2 (usage) or 130."""
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    _check_usage(parser, parsed)
    COMMAND.set("avl-check")
    return exit_status("avl-check", lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> int:
    lacking = shortage("export")
    if lacking is not None:
        raise OptionsError(lacking)
    load_package(parsed.package)  # what is no package is said before torch is imported
    from avl_export.check.recheck import recheck

    try:
        found = recheck(
            parsed.package,
            teller(parsed.json),
            parsed.layers,
            parsed.backend,
            parsed.model,
            parsed.lora,
            parsed.mmproj,
            parsed.config,
        )
    except CheckError as error:
        if parsed.json and error.rows:
            _print_json(parsed, error.rows, None)
        raise
    if parsed.json:
        _print_json(parsed, found.rows, found.quantization)
    elif parsed.layers:
        print(f"{len(found.rows)} layers and parts compared, none differs")
    else:  # the rows above are only the worst of them
        print(f"{len(found.rows)} outputs compared, none differs")
        if not parsed.backend:
            print(found.line())
    return 0


def _print_json(
    parsed: argparse.Namespace, rows: Sequence[Row], quantization: float | None
) -> None:
    report: dict[str, Any] = {
        "package": str(parsed.package),
        "layers": parsed.layers,
        "backends": parsed.backend,
        "against": parsed.backend[0] if len(parsed.backend) == 2 else "transformers",
        "quantization": quantization,
        "differs": next((row.name for row in rows if not row.ok), None),
        "rows": [{name: _finite(value) for name, value in asdict(row).items()} for row in rows],
    }
    print(json.dumps(report, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no number for a difference that is without end."""
    return value if not isinstance(value, float) or math.isfinite(value) else None


def teller(quiet: bool) -> Callable[[Row], None]:
    """Prints rows as they come, below their header."""
    begun = False

    def tell(row: Row) -> None:
        nonlocal begun
        if quiet:
            return
        if not begun:
            print(HEADER)
        begun = True
        print(row.line(), flush=True)

    return tell


def _check_usage(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    backends = parsed.backend
    if parsed.layers and backends:
        parser.error("--layers looks at the graphs themselves: expected no --backend beside it")
    if len(backends) > 2 or len(set(backends)) < len(backends):
        parser.error("--backend: expected one to compare with transformers, or two different ones")
    for option in ("mmproj", "config"):
        if getattr(parsed, option) and not str(parsed.model).lower().endswith(GGUF):
            parser.error(f"--{option}: expected a GGUF file as --model with it, found none")
    for option in ("model", "lora"):
        if len(backends) == 2 and getattr(parsed, option) is not None:
            parser.error(
                f"--{option} is for a comparison with transformers, not for one of two backends"
            )


def make_parser() -> CommandParser:
    """The parser of avl-check."""
    parser = CommandParser(
        "avl-check",
        "Compare a package with transformers in fp32, or two backends on one package, and name "
        "the first tensor or layer that differs.",
        "avl-check avl-tiny.avl --backend ort-cpu",
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", type=path_name, help="folder with avl.json")
    add("--layers", action="store_true", help="compare layer by layer, in little memory")
    add(
        "--backend",
        action="append",
        choices=[name for name in BACKENDS if name != "auto"],
        default=[],
        help="compare all outputs of this backend; given twice, two backends with each other "
        "(default: the package's graphs by themselves)",
    )
    add(
        "--model",
        metavar="MODEL",
        type=some_name,
        help="the checkpoint, as avl-export takes it (default: the name in the package, or the "
        "folder that it reads weights from; one that holds its own weights tells none)",
    )
    add("--lora", type=path_name, metavar="DIR", help="folder of the LoRA adapter that was merged")
    add(
        "--mmproj",
        type=path_name,
        metavar="FILE",
        help="as avl-export takes it, where --model is a GGUF file",
    )
    add(
        "--config",
        type=some_name,
        metavar="MODEL",
        help="as avl-export takes it, where --model is a GGUF file",
    )
    add("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())

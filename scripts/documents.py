"""Write what documents take from elsewhere: docs/cli.md, from the commands' parsers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cli_reference

ROOT = Path(__file__).parents[1]


def wanted() -> dict[Path, str]:
    """The text of every document that holds something written here, by its path."""
    return {ROOT / "docs" / "cli.md": cli_reference.reference()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the documents, or name those that differ; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if one differs")
    parsed = parser.parse_args(arguments)
    different = {
        path: text
        for path, text in wanted().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in different.items():
        print(f"{path.relative_to(ROOT)}: {'differs' if parsed.check else 'written'}")
        if not parsed.check:
            path.write_text(text, encoding="utf-8")
    return 1 if parsed.check and different else 0


if __name__ == "__main__":
    sys.exit(main())

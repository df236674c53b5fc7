"""Documents say what the parsers, the records and the code say."""

from __future__ import annotations

import tomllib
from pathlib import Path

import cli_reference
import documents
from avl_runtime.cli.parser import CommandParser

ROOT = Path(__file__).parents[2]


def test_documents_are_as_their_script_writes_them() -> None:
    """`python scripts/documents.py` mends it."""
    for path, text in documents.wanted().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run scripts/documents.py"


def test_every_command_is_described() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    made = [maker.make_parser().prog for maker in cli_reference.MAKERS]
    assert sorted(made) == sorted(scripts)


def test_a_parser_becomes_a_page() -> None:
    parser = CommandParser("avl-x", "Does x.", "avl-x it --n 3", "Some more.")
    parser.add_argument("it", metavar="IT", nargs="?", help="what <to> do")
    parser.add_argument("--n", type=int, default=4, help="how many")
    parser.add_argument("--kind", choices=("a", "b"), help="which")
    parser.add_argument("--flag", action="store_true", help="whether")
    text = cli_reference.reference([parser])
    for part in (
        "## avl-x\n\nDoes x.\n\nSome more.\n\n    avl-x [IT] [options]\n",
        "For example:\n\n    avl-x it --n 3\n",
        "| `IT` | what &lt;to> do |",
        "| `--n N` | how many (default: 4) |",
        "| `--kind a\\|b` | which (default: none) |",
        "| `--flag` | whether |",
    ):
        assert part in text
    after = text.partition("## avl-x")[2]
    assert "--help" not in after and "--version" not in after

"""Documents say what the parsers, the records and the code say."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import cli_reference
import documents
from avl_export.checkpoint.aliases import BUNDLED, HUB_IDS, known_files
from avl_export.families import SUPPORTED
from avl_plugins.policies import parse
from avl_runtime.cli.parser import CommandParser
from bench_targets import targets
from peer_targets import FILES

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
MOST_WORDS = 1300  # of README
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^    (?:\$ )?(?:\S*/)?(avl-[a-z]+)( .*)?$", re.MULTILINE)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_documents_are_as_their_script_writes_them() -> None:
    """`python scripts/documents.py` mends it."""
    for path, text in documents.wanted().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run scripts/documents.py"


def test_every_block_is_somewhere_and_ends() -> None:
    texts = [page.read_text(encoding="utf-8") for page in documents.pages()]
    found = [name for text in texts for _, name, _ in documents.BLOCK.findall(text)]
    assert sorted(found) == sorted(documents.BLOCKS)
    assert sum(text.count("<!-- ") for text in texts) == 2 * len(found)


def test_a_block_is_filled_and_links_lead_a_folder_up() -> None:
    text = "Before.\n\n<!-- begin overhead -->\nold\n<!-- end overhead -->\n\nAfter.\n"
    filled = documents.filled(text, in_docs=True)
    assert filled.startswith("Before.\n\n<!-- begin overhead -->\n\nMedian time")
    assert "](../benchmarks/overhead.json)" in filled and "old" not in filled
    assert documents.filled(filled, in_docs=True) == filled
    assert "](benchmarks/overhead.json)" in documents.filled(text, in_docs=False)


def test_every_command_is_described() -> None:
    scripts = tomllib.loads(text_of("pyproject.toml"))["project"]["scripts"]
    made = [maker.make_parser().prog for maker in cli_reference.MAKERS]
    assert sorted(made) == sorted(scripts)
    assert set(cli_reference.NOTES) <= set(made)


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


def shown_commands() -> list[tuple[str, str]]:
    """The commands in blocks of code, but for those that stand for others."""
    return [
        (page.name, found.group().strip())
        for page in PAGES
        for found in COMMAND.finditer(page.read_text(encoding="utf-8"))
        if not found.group().endswith(" [options]")
    ]


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_commands_shown_are_ones_that_parse(page: str, line: str) -> None:
    parsers = {parser.prog: parser for parser in map(_made, cli_reference.MAKERS)}
    program, *words = shlex.split(line.removeprefix("$ "), comments=True)
    parsers[program.rpartition("/")[2]].parse_args(words)


def _made(maker: object) -> CommandParser:
    parser: CommandParser = maker.make_parser()  # type: ignore[attr-defined]
    return parser


def test_commands_are_found() -> None:
    found = shown_commands()
    assert {page for page, _ in found} >= {"README.md", "cli.md", "families.md", "gpu.md"}
    assert len(found) > 15


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            if target.startswith(("https://", "http://")):
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), (page.name, target)
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), (page.name, target)


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_page_and_picture_is_linked() -> None:
    readme = text_of("README.md")
    linked = {target.partition("#")[0] for target in LINK.findall(readme)}
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked
    everything = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (ROOT / "docs").glob("*.png"):
        assert f"{picture.name})" in everything


def test_readme_is_short() -> None:
    assert len(text_of("README.md").split()) <= MOST_WORDS


@pytest.mark.parametrize("package", ["avl_export", "runtime/avl_runtime", "plugins/avl_plugins"])
def test_the_folders_described_are_those_that_are_there(package: str) -> None:
    name = Path(package).name
    table = text_of("docs/architecture.md").partition(f"| folder of `{name}` |")[2]
    rows = table.partition("\n\n")[0].splitlines()[2:]
    described = [folder for row in rows for folder in re.findall(r"`(\w+)`", row.split("|")[1])]
    cache = "__pycache__"  # may be all that is left of a folder
    there = {path.parent.name for path in (ROOT / package).glob("*/*") if path.name != cache}
    assert sorted(described) == sorted(there - {cache})


def test_the_table_of_models_is_complete() -> None:
    lines = text_of("docs/families.md").splitlines()
    rows = [line for line in lines if line.startswith("| ") and "(`" in line]
    for model_type in SUPPORTED:
        assert sum(f"`{model_type}`" in row for row in rows) == 1
    for alias in (*BUNDLED, *HUB_IDS):
        kind = "llava" if alias in BUNDLED else known_files(alias)["config.json"]["model_type"]
        (row,) = (row for row in rows if f"`{alias}`" in row)
        assert f"`{kind}`" in row


def test_the_defaults_of_policies_are_those_of_the_code() -> None:
    row = re.compile(r"^\| `(\w+)` \|.*\| `([a-zA-Z_0-9=.,/]+)` \|$", re.MULTILINE)
    rows = row.findall(text_of("docs/policies.md"))
    names = {"akvq", "fastv", "avl", "random", "mmtok", "cdpruner", "dart"}
    names |= {"visionzip", "vispruner", "hiprune", "scope", "holov"}
    names |= {"pyramiddrop", "sparsevlm", "snapkv", "pyramidkv", "zipvl", "caac"}
    assert {name for name, _ in rows} == names
    budget = {"keep", "tokens", "positions", "gamma"}  # said once for all of them
    for name, options in rows:
        policy = parse(f"{name}:{options}")
        assert policy.actions() == parse(name).actions()
        named = {option.partition("=")[0] for option in options.split(",")}
        assert named | budget == {field.name for field in dataclasses.fields(policy)} | budget


def test_the_targets_are_those_of_the_records() -> None:
    names = [path.stem for path in (ROOT / "benchmarks").glob("bench-*.json")]
    records = {
        name.removeprefix("bench-"): documents.record(name)
        for name in names
        if name != "bench-targets"
    }
    there = [name for name in FILES if (ROOT / "benchmarks" / f"{name}.json").is_file()]
    others = {name: documents.record(name) for name in there}
    found = targets(records, documents.record("attention-part"), others)
    assert found == documents.record("bench-targets")["targets"]


def test_what_records_must_hold() -> None:
    """Memory that a user with a small machine has, and runs of whole models."""
    evaluated, quantized = documents.record("evaluation"), documents.record("quantization")
    assert evaluated["samples_per_task"] == quantized["samples_per_task"] == 100
    for page in ("README.md", "docs/benchmarks.md", "docs/quantization.md"):
        assert "100 held-out samples a task" in text_of(page)
    sizes = documents.record("quantize-size")
    assert sizes["arguments"] == ["--quantize", "int4"] and sizes["layers"] is None
    assert sizes["models"]["llava-7b"]["peak_rss_bytes"]["max"] < 1.5e9
    checked = documents.record("check-layers")
    assert "--layers" in checked["arguments"] and checked["layers"] is None
    assert checked["models"]["llava-7b"]["peak_rss_bytes"]["max"] < 8e9
    built = documents.record("build-7b")
    found = built["runs"]["int4"]
    assert built["layers"] is None and found["engine_over_weights"] < 1.05
    assert found["build_peak_rss_bytes"] < 24 << 30
    assert max(found["export_peak_rss_bytes"], found["dry_run_peak_rss_bytes"]) < 2 << 30

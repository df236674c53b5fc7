"""Write what documents take from elsewhere: docs/cli.md from the parsers, figures and docs/zoo.svg
from records.

Figures stand between `<!-- begin NAME -->` and `<!-- end NAME -->`, NAME being one of BLOCKS.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attention_part
import bench_targets
import build_7b
import choosing_cost
import cli_reference
import exact_speed
import export_size
import family_speed
import few_bits
import kept_rows
import layer_budgets
import linear_part
import lookup_speed
import merged_rows
import overhead
import own_scores
import prefix_speed
import quantization
import restored_scores
import short_tables
import state_bytes
import zoo_jobs
import zoo_picture
import zoo_table
from avl_runtime.evaluate import report as evaluation

ROOT = Path(__file__).parents[1]
CLI = ROOT / "docs" / "cli.md"
ZOO = ROOT / "docs" / "zoo.svg"
BLOCK = re.compile(r"(<!-- begin ([a-z0-9-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def record(name: str) -> Any:
    """What `benchmarks/NAME.json` holds."""
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def families(name: str) -> str:
    """Tables of a record of family_speed.py."""
    return "\n\n".join(family_speed.table(alias, one) for alias, one in record(name).items())


BLOCKS: Mapping[str, Callable[[], str]] = {
    "quality-short": lambda: short_tables.quality(record("evaluation")),
    "speed-short": lambda: short_tables.speed(record("bench-peers-int4")),
    "quality": lambda: evaluation.table(record("evaluation")["policies"]),
    "speed": lambda: bench_targets.table(record("bench-targets")["targets"]),
    "state-bytes": lambda: state_bytes.sentence(record("bench-qwen3.5")),
    "spread": lambda: bench_targets.spread(record("bench-s1")),
    "computed": lambda: bench_targets.computed(record("bench-s1-computed")),
    "exchange": lambda: attention_part.sentence(record("attention-part"), record("churn")),
    "linears": lambda: linear_part.sentence(record("linear-part")),
    "few-bits": lambda: few_bits.table(record("few-bits")),
    "family-speed": lambda: families("family-speed"),
    "family-speed-no-amx": lambda: families("family-speed-no-amx"),
    "exact-speed": lambda: exact_speed.sentence(record("exact-speed-int8")),
    "prefix-speed": lambda: prefix_speed.sentences(record("prefix-speed")),
    "prefix-speed-no-amx": lambda: prefix_speed.sentences(record("prefix-speed-no-amx")),
    "kept-rows": lambda: kept_rows.sentence(record("kept-rows")),
    "choosing-cost": lambda: choosing_cost.sentence(record("choosing-cost")),
    "overhead": lambda: overhead.sentence(record("overhead")),
    "layer-budgets": lambda: layer_budgets.sentence(record("layer-budgets")),
    "merged-rows": lambda: merged_rows.sentence(record("merged-rows")),
    "lookup-speed": lambda: lookup_speed.sentence(record("lookup-speed")),
    "own-scores": lambda: own_scores.sentence(record("own-scores")),
    "restored": lambda: restored_scores.table(record("restore")),
    "merged": lambda: restored_scores.table(record("restore"), "merged"),
    "caac": lambda: restored_scores.sentence(record("restore")),
    "quantization": lambda: quantization.table(record("quantization")),
    "export-size": lambda: export_size.sentence(record("export-size")),
    "export-size-layers": lambda: export_size.sentence(
        record("export-size-layers"), "export-size-layers"
    ),
    "check-layers": lambda: export_size.checked_sentence(record("check-layers")),
    "quantize-size": lambda: export_size.quantized_sentence(record("quantize-size")),
    "zoo": lambda: zoo_table.table(record("zoo")),
    "zoo-best": lambda: zoo_table.sentence(record("zoo")),
    "zoo-whole": lambda: zoo_table.whole(record("zoo")),
    "zoo-of": lambda: zoo_table.surroundings(record("zoo")),
    "zoo-long": lambda: zoo_jobs.long_table(record("zoo-jobs")),
    "zoo-turns": lambda: zoo_jobs.turns_table(record("zoo-jobs")),
    "build-7b": lambda: build_7b.sentence(record("build-7b")),
}


def pages() -> list[Path]:
    """The documents that people write, in which blocks may stand."""
    return [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {CLI})]


def filled(text: str, in_docs: bool) -> str:
    """A page with its blocks as the records have them.

    Args:
        in_docs: whether it lies in docs/, from where records are a folder up.

    Raises:
        KeyError: there is no block of a name.
    """

    def fill(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        inside = BLOCKS[name]()
        if in_docs:
            inside = inside.replace("](benchmarks/", "](../benchmarks/")
        return f"{begin}\n{inside}\n\n{end}"

    return BLOCK.sub(fill, text)


def wanted() -> dict[Path, str]:
    """The text that every document should have, by its path."""
    written = {
        page: filled(page.read_text(encoding="utf-8"), page.parent != ROOT) for page in pages()
    }
    return written | {CLI: cli_reference.reference(), ZOO: zoo_picture.picture(record("zoo"))}


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

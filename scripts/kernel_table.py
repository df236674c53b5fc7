#!/usr/bin/env python
"""Registers, shared memory and instruction mix of the packaged PTX, as JSON and Markdown.

    .venv/bin/python scripts/kernel_table.py

Assembles every packaged file with Triton's ptxas for every architecture it serves. Writes
benchmarks/kernels-ptx.json and benchmarks/kernels-ptx.md. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from avl_plugins.cuda.packaged import PackagedKernel, index, kernel
from avl_plugins.kernels import aot
from avl_plugins.kernels.catalog import VARIANTS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COLUMNS = ("wgmma", "mma", "ldmatrix", "cp_async_16", "load_16", "load", "store_16", "store")


def measured(packaged: PackagedKernel, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """One row: what ptxas says of a file on each architecture, and what is in the text."""
    ptx = packaged.ptx()
    exact = packaged.target.endswith("a")
    names = [packaged.target if exact else f"sm_{c}" for c in packaged.capabilities]
    results = list(pool.map(lambda name: aot.assemble(ptx, name), names))
    return {
        "kernel": packaged.variant.name,
        "target": packaged.target,
        "registers": {name: one.registers for name, one in zip(names, results, strict=True)},
        "spilled_bytes": {name: one.spilled for name, one in zip(names, results, strict=True)},
        "shared_bytes": packaged.shared,
        "threads": packaged.threads,
        "sha256": packaged.sha256,
        "instructions": aot.instructions(ptx),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, one row a file; registers as a range over architectures."""
    head = ("kernel", "target", "threads", "registers", "spills", "shared", *COLUMNS)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in report["kernels"]:
        counts = sorted(set(row["registers"].values()))
        registers = f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else str(counts[0])  # noqa: RUF001
        cells = [row["kernel"], row["target"], row["threads"], registers]
        cells += [max(row["spilled_bytes"].values()), row["shared_bytes"]]
        cells += [row["instructions"][name] for name in COLUMNS]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = [
            measured(kernel(name, file["capabilities"][0]), pool)
            for name in VARIANTS
            for file in index()["kernels"][name]["files"]
        ]
    report = {"triton": index()["triton"], "kernels": rows}
    (BENCHMARKS / "kernels-ptx.json").write_text(json.dumps(report, indent=1) + "\n")
    (BENCHMARKS / "kernels-ptx.md").write_text(markdown(report))


if __name__ == "__main__":
    main()

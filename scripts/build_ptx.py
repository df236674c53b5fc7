#!/usr/bin/env python
"""Compile every kernel to PTX, gate it for every architecture, and package it with an index.

    .venv/bin/python scripts/build_ptx.py            write plugins/avl_plugins/ptx/
    .venv/bin/python scripts/build_ptx.py --check    compile anew and compare, byte for byte

Needs Triton, no GPU. A kernel is compiled for sm_80, whose PTX every later GPU assembles, and for
sm_90a where that gives matrix instructions which sm_80 has not. Each file is assembled for every
architecture it serves and refused if it spills, needs more than 48 KB of shared memory, lacks
16-byte cp.async or loads, or has parameters of Triton's own.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError
from avl_plugins.kernels.catalog import CAPABILITIES, GRIDS, VARIANTS, Variant

FOLDER = Path(__file__).parents[1] / "plugins" / "avl_plugins" / "ptx"


@dataclass(frozen=True, slots=True)
class Built:
    """One PTX text, its entries in the index and what ptxas says for each architecture."""

    name: str
    ptx: str
    common: dict[str, Any]
    file: dict[str, Any]
    assembled: dict[int, tuple[int, int]]  # registers and spilled bytes


def served(variant: Variant, target: int) -> tuple[int, ...]:
    """The compute capabilities that a variant's PTX for `target` is chosen for."""
    if target != 80:
        return (target,)
    return tuple(c for c in CAPABILITIES if c == 80 or c not in variant.targets)


def architecture(capability: int, target: str) -> str:
    """What ptxas calls a capability: PTX for sm_90a assembles for nothing else."""
    return target if target.endswith("a") else f"sm_{capability}"


def source_digest(variant: Variant) -> str:
    """SHA-256 of what a variant is compiled from: code without comments, and choices.

    A test compares it with the index, so that a kernel cannot change without its PTX.
    """
    modules, code = [variant.module.rpartition(".")[2], "tiles"], []
    for module in modules:
        tree = ast.parse((FOLDER.parent / "kernels" / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        code.append(ast.unparse(tree))
    choices = {
        "kernel": variant.kernel,
        "dtype": variant.dtype,
        "constants": dict(variant.constants),
        "warps": variant.warps,
        "stages": variant.stages,
        "registers": variant.registers,
        "targets": variant.targets,
    }
    return hashlib.sha256("\n".join([*code, repr(choices)]).encode()).hexdigest()


def build(name: str, target: int) -> Built:
    """Compile and gate one variant for one target."""
    from avl_plugins.kernels import aot

    variant = VARIANTS[name]
    made = aot.compile_variant(variant, target)
    assembled = {}
    for capability in served(variant, target):
        sm = architecture(capability, made.target)
        result = aot.assemble(made.ptx, sm)
        aot.check(variant, made, sm, result)
        assembled[capability] = (result.registers, result.spilled)
    common = {
        "kernel": variant.kernel,
        "dtype": variant.dtype,
        "head_dim": variant.head_dim,
        "entry": made.entry,
        "constants": dict(variant.constants),
        "arguments": [[n.removesuffix("_ptr"), kind] for n, kind in made.arguments],
        "grid": list(GRIDS[variant.kernel]),
        "threads": made.threads,
        "source_sha256": source_digest(variant),
    }
    file = {
        "file": f"{name}.{made.target}.ptx.gz",
        "target": made.target,
        "capabilities": list(assembled),
        "shared": made.shared,
        "sha256": hashlib.sha256(made.ptx.encode()).hexdigest(),
    }
    return Built(name, made.ptx, common, file, assembled)


def build_all(names: list[str], jobs: int) -> list[Built]:
    """Every variant and target, in the order of the catalog."""
    work = [(name, target) for name in names for target in VARIANTS[name].targets]
    context, done, failed = get_context("spawn"), [], []
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(jobs, context, _prepare, (cache,)) as pool,
    ):
        tasks = [pool.submit(build, *one) for one in work]
        for task, (name, target) in zip(tasks, work, strict=True):
            try:
                done.append(task.result())
            except AvlError as error:
                failed.append(str(error))
            print(f"{len(done)}/{len(work)} {name} for {target}", file=sys.stderr)
    if failed:
        sys.exit("\n".join(f"error: {one}" for one in failed))
    return done


def _prepare(cache: str) -> None:
    """Make a process one that compiles: not interpreting, nothing cached."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache


def index_of(built: list[Built]) -> dict[str, Any]:
    """The index: launch recipes, and which file serves which architecture."""
    from importlib.metadata import version

    kernels: dict[str, Any] = {}
    for one in built:
        kernels.setdefault(one.name, {**one.common, "files": []})["files"].append(one.file)
    return {"format": 1, "triton": version("triton"), "kernels": kernels}


def write(built: list[Built], folder: Path) -> None:
    """Write the set; files whose PTX is the same stay as they are, others are removed."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.ptx.gz"):
        if path.name not in {one.file["file"] for one in built}:
            path.unlink()
    for one in built:
        path = folder / one.file["file"]
        if packaged_text(path) != one.ptx:
            path.write_bytes(gzip.compress(one.ptx.encode(), 9, mtime=0))
    (folder / "index.json").write_text(json.dumps(index_of(built), indent=1) + "\n")


def packaged_text(path: Path) -> str | None:
    """The PTX in a packaged file, or None if there is no such file."""
    return gzip.decompress(path.read_bytes()).decode() if path.is_file() else None


def differences(built: list[Built], folder: Path) -> list[str]:
    """What in `folder` is not what was just built."""
    found = [
        one.file["file"] for one in built if packaged_text(folder / one.file["file"]) != one.ptx
    ]
    index = json.loads((folder / "index.json").read_text())
    made = index_of(built)
    found += [
        f"index.json: {name}"
        for name, entry in made["kernels"].items()
        if index["kernels"].get(name) != entry
    ]
    found += [f"index.json: {key}" for key in ("format", "triton") if index[key] != made[key]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="check these alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.only and not args.check:
        parser.error("--only goes with --check: a set is written whole")
    built = build_all(args.only or list(VARIANTS), args.jobs)
    if not args.check:
        write(built, FOLDER)
        return
    found = differences(built, FOLDER)
    if found:
        sys.exit(f"error: not what is packaged: {', '.join(found)}; run scripts/build_ptx.py")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Have the tools that people quantize with pack a small model, and avl-export read it.

    ./scripts/packers_check.sh        # installs the tools, then runs this

For each case of packers_pack.py: the weights in the package, rounded to the dtype in which the tool
has its own, must be these bit for bit; and logits those of transformers with these weights, not
rounded. Prints a line for each; exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from avl_export.check.compare import check_package
from avl_export.check.reference import Reference, tensors
from avl_export.check.walk import check_prompt
from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.checkpoint.safetensors_header import read_header
from avl_export.checkpoint.source import Source
from avl_export.export import export
from avl_export.families import load_family
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_export.quantize.packaged import read_packaged
from avl_export.quantize.reading import read_weight
from avl_export.quantize.store import PLAIN
from avl_runtime.bench.surroundings import machine
from avl_runtime.package.package import load_package
from make_random import PRESETS, write
from packers_pack import PACKERS
from random_config import Shape

HERE = Path(__file__).parent
SAMPLE = "0.self_attn.k_proj"  # the linear that --sample keeps
SECONDS = 600  # that a tool may take
MOST = 2e-5  # of the largest logit, as the exporter's own tests
SHAPE = Shape(
    **{
        **{name: getattr(PRESETS["small"], name) for name in Shape.__slots__},
        "hidden": 64,
        "intermediate": 128,
        "layers": 2,
        "heads": 2,
        "kv_heads": 2,
        "dtype": "fp16",
    }
)


def held(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Every weight of the decoder's layers in a package, by its name from the layer's number on."""
    package = load_package(folder)
    found: dict[str, NDArray[np.float32]] = {}
    if package.manifest.quantization is None:
        path = folder / PLAIN
        plain = {name: Source(name, path, record) for name, record in read_header(path).items()}
    else:
        packaged = read_packaged(package)
        plain = dict(packaged.plain)
        found = {name: read_weight(folder, place) for name, place in packaged.linears.items()}
    found |= {name: s.read_floats(0, s.record.shape[0]) for name, s in plain.items()}
    return {
        name.partition(".layers.")[2]: weight
        for name, weight in found.items()
        if "language_model" in name and ".layers." in name
    }


def different(own: Mapping[str, NDArray[np.float32]], meant: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a weight from the tool's, in the tool's dtype."""
    largest = 0.0
    for name, weight in meant.items():
        found = torch.from_numpy(np.array(own[name])).to(weight.dtype)
        largest = max(largest, float((found.float() - weight.float()).abs().max()))
    return largest


def logits(folder: Path, packed: Path, own: Mapping[str, NDArray[np.float32]]) -> float:
    """How far logits are from transformers' with the same weights, by the largest of these."""
    dense = packed.with_name("dense")
    dense.mkdir()
    every: dict[str, torch.Tensor] = {}
    for path in packed.iterdir():
        if path.suffix == ".safetensors":
            every |= load_file(path)
        elif not path.name.endswith(".index.json"):
            shutil.copy(path, dense)
    stems = {key.rpartition(".")[0] for key in every if key.endswith((".qweight", ".W_q"))}
    plain = {key: value for key, value in every.items() if key.rpartition(".")[0] not in stems}
    wide = {f"{stem}.weight": own[f"{stem.partition('.layers.')[2]}.weight"] for stem in stems}
    read = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in wide.items()}
    save_file({**plain, **read}, dense / "model.safetensors", {"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]
    (dense / "config.json").write_text(json.dumps(config))
    model = LlavaForConditionalGeneration.from_pretrained(
        dense, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    package = load_package(folder)
    family = load_family(open_checkpoint(str(packed)), torch.float32)
    report = check_package(package, Reference(tensors(family, model, check_prompt(package))))
    return report.logits / report.logit_scale


def sample(place: Path, case: str, version: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """One linear as the tool stores it, what it means, and what config.json says, for a test."""
    every: dict[str, torch.Tensor] = {}
    for path in (place / "checkpoint").glob("*.safetensors"):
        every |= load_file(path)
    ours = (key for key in every if "language_model" in key and SAMPLE in key)
    own = {key.rpartition(".")[2]: every[key] for key in ours}
    own["meant"] = load_file(place / "meant.safetensors")[f"{SAMPLE}.weight"]
    config = json.loads((place / "checkpoint" / "config.json").read_text())
    told = json.dumps({"version": version, "config": config["quantization_config"]})
    return {f"{case}/{part}": v.contiguous() for part, v in own.items()}, {case: told}


def check(python: Path, source: Path, place: Path, case: str) -> dict[str, Any]:
    """What a case shows.

    Raises:
        SystemExit: the tool fails.
    """
    script = str(HERE / "packers_pack.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [python, script, source, place, case],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=environment,
        cwd=place.parent,  # GPTQModel writes logs there
    )
    if run.returncode:
        raise SystemExit(f"{case}: expected packed weights, found {run.stderr[-2000:]}")
    packed, out = place / "checkpoint", place / "model.avl"
    meant = load_file(place / "meant.safetensors")
    plan = make_plan(Options(str(packed), out, dtype="fp32", check=False))
    export(plan)
    assert plan.store is not None
    own = held(out)
    return {
        **json.loads(run.stdout.splitlines()[-1]),
        "weights": len(meant),
        "codes": len(plan.store.linears),
        "floats": len(plan.store.kept),
        "weight_difference": different(own, meant),
        "logit_difference": logits(out, packed, own),
    }


def record(path: Path, results: Mapping[str, Any]) -> None:
    """Write what has been found so far."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    found = {"machine": machine(), "versions": versions, "cases": results}
    path.write_text(json.dumps(found, indent=1) + "\n")


def earlier(
    arguments: argparse.Namespace,
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, str]]:
    """Results, samples and what is said of them in the files already: some cases are run again."""
    results, kept, told = {}, {}, {}
    if arguments.json is not None and arguments.json.exists():
        results = json.loads(arguments.json.read_text())["cases"]
    if arguments.sample is not None and arguments.sample.exists():
        kept = load_file(arguments.sample)
        with safe_open(arguments.sample, "pt") as opened:
            told = dict(opened.metadata())
    return results, kept, told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of an environment of tools")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--sample", type=Path, help="file for a linear of each case, for tests")
    parser.add_argument("cases", nargs="*", default=[*PACKERS], help="those of packers_pack.py")
    arguments = parser.parse_args()
    results, kept, told = (
        earlier(arguments) if len(arguments.cases) < len(PACKERS) else ({}, {}, {})
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        write(source, SHAPE)
        for number, case in enumerate(arguments.cases):
            place = Path(folder) / str(number)
            found = check(arguments.python.absolute(), source, place, case)
            found["passed"] = not found["weight_difference"] and found["logit_difference"] <= MOST
            results[case] = found
            part, said = sample(place, case, found["version"])
            kept, told = kept | part, told | said
            if arguments.sample is not None:
                save_file(kept, arguments.sample, told)
            if arguments.json is not None:
                record(arguments.json, results)
            print("passed" if found["passed"] else "FAILED", case, json.dumps(found), flush=True)
    failed = [case for case, found in results.items() if not found["passed"]]
    print(f"{len(results) - len(failed)} of {len(results)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""What an export of a full-size checkpoint costs: time, memory and bytes written.

    .venv/bin/python scripts/export_size.py --json benchmarks/export-size.json

Makes checkpoints of real shape from the configurations that avl knows, as sparse files: all of
their size is holes, so a 7B model takes kilobytes of disk. Exports each in a process of its own
and reports the median and the extremes of all runs. Anything after `--` goes to avl-export.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import struct
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avl_export.checkpoint.aliases import HUB_IDS, known_files
from avl_runtime.machine.resources import cores
from measured import run_measured, split_arguments

SHARD = 5 << 30  # bytes; transformers' own bound
KINDS = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
LAYERS = "num_hidden_layers"
MODELS = "llava-7b,llava-13b,internvl3.5-8b,smolvlm2-2.2b,ministral-3-8b,qwen2-vl-7b,glm-4.6v-flash"
MEASURES = ("wall_s", "user_s", "system_s", "peak_rss_bytes", "package_bytes", "graph_bytes")


def write_sparse(
    folder: Path,
    alias: str,
    layers: int | None = None,
    vision: Mapping[str, Any] | None = None,
) -> int:
    """A checkpoint as `alias` has it, without data; returns its weights' bytes.

    Args:
        layers: decoder layers, if not all.
        vision: changes to the vision tower's configuration.
    """
    files: dict[str, Any] = json.loads(json.dumps(known_files(alias)))
    config = files["config.json"]
    text = config if LAYERS in config else config["text_config"]
    text[LAYERS] = layers or text[LAYERS]
    config["vision_config"] |= vision or {}
    return write_shapes(folder, files)


def write_shapes(folder: Path, files: Mapping[str, Any]) -> int:
    """A checkpoint of these JSON files, its weights holes; returns the weights' bytes."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = files["config.json"]
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    write_tokenizer(folder / "tokenizer.json", special_tokens(files))
    with torch.device("meta"):
        built = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        model = AutoModelForImageTextToText.from_config(built)
    kind, width = KINDS[config.get("dtype", "float32")]  # PaliGemma's names none
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    shapes = {k: list(t.shape) for k, t in model.state_dict().items() if k not in tied}
    shards: list[dict[str, Any]] = [{}]
    end = total = 0
    for key, shape in shapes.items():
        nbytes = width * int(torch.Size(shape).numel())
        if end + nbytes > SHARD and shards[-1]:
            shards.append({})
            end = 0
        shards[-1][key] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + nbytes]}
        end, total = end + nbytes, total + nbytes
    weight_map = dict[str, str]()
    for number, header in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(header, name)
        text_header = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        text_header += b" " * (-len(text_header) % 8)  # as safetensors does: tensors lie aligned
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text_header)) + text_header)
            data = max(entry["data_offsets"][1] for entry in header.values())
            file.truncate(8 + len(text_header) + data)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def special_tokens(files: Mapping[str, Any]) -> dict[int, str]:
    """Id -> text of the special tokens that a checkpoint's JSON files name."""
    named = {token["id"]: token["content"] for token in files["tokenizer.json"]["added_tokens"]}
    for name, token in files.get("generation_config.json", {}).items():
        for number in token if isinstance(token, list) else [token]:
            named.setdefault(number, f"<{name}>")
    return named


def write_tokenizer(path: Path, special: Mapping[int, str]) -> None:
    """A tokenizer that knows the model's special tokens and takes every text for one token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    unknown = next(number for number in range(1000) if number not in special)
    words = {"unknown": unknown, **{text: number for number, text in special.items()}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="unknown"))
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(path))


def measure(checkpoint: Path, out: Path, arguments: list[str]) -> dict[str, float]:
    """One export in a process of its own."""
    command = [sys.executable, "-m", "avl_export.cli", "--model", str(checkpoint)]
    used = run_measured([*command, "--out", str(out), *arguments])
    sizes = {path: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    return {
        "wall_s": used.wall_s,
        "user_s": used.user_s,
        "system_s": used.system_s,
        "peak_rss_bytes": used.peak_rss_bytes,
        "package_bytes": sum(sizes.values()),
        "graph_bytes": sum(size for path, size in sizes.items() if path.suffix == ".onnx"),
    }


def sentence(report: dict[str, Any], name: str = "export-size") -> str:
    """The figures as the documents quote them; `name` is the record's."""

    def told(alias: str) -> str:
        found = report["models"][alias]
        return (
            f"{found['wall_s']['median']:.0f} s, {found['peak_rss_bytes']['max'] / 1e9:.2f} GB at "
            f"its peak and {found['package_bytes']['max'] / 1e6:.2f} MB written"
        )

    first, *others = report["models"]
    runs = len(report["models"][first]["runs"])
    of = f"medians of {runs}" if runs > 1 else "one run each"
    more = "".join(f", `{alias}` {told(alias)}" for alias in others)
    return (
        f"Exporting the full size of `{first}` takes {told(first)}{more} (two CPU cores, sparse "
        f"checkpoints of these shapes, {of}; `scripts/export_size.py`, "
        f"[JSON](benchmarks/{name}.json))."
    )


def quantized_sentence(report: dict[str, Any]) -> str:
    """The figures of `-- --quantize int4` as the documents quote them."""
    found = report["models"]["llava-7b"]
    return (
        f"With `--quantize int4`, `llava-7b` takes {found['user_s']['median']:.0f} s of processor "
        f"time, {found['peak_rss_bytes']['max'] / 1e9:.2f} GB at its peak, and the package holds "
        f"{found['package_bytes']['max'] / 1e9:.1f} GB "
        "(`scripts/export_size.py --models llava-7b --repeats 1 -- --quantize int4`, "
        "[JSON](benchmarks/quantize-size.json))."
    )


def checked_sentence(report: dict[str, Any]) -> str:
    """The figures of `-- --check --layers` as the documents quote them."""
    peak = report["models"]["llava-7b"]["peak_rss_bytes"]["max"]
    arguments = " ".join(report["arguments"])
    return (
        f"For the full size of `llava-7b` that takes {peak / 1e9:.1f} GB at the peak "
        f"(`scripts/export_size.py --models llava-7b --repeats 1 -- {arguments}`, "
        "[JSON](benchmarks/check-layers.json))."
    )


def run(alias: str, layers: int | None, repeats: int, arguments: list[str]) -> dict[str, Any]:
    """All runs of one model, with their median and extremes."""
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place) / "checkpoint"
        nbytes = write_sparse(checkpoint, alias, layers)
        runs = [
            measure(checkpoint, Path(place) / f"package-{number}", arguments)
            for number in range(repeats)
        ]
        disk = sum(path.stat().st_blocks * 512 for path in checkpoint.iterdir())
    summary = {
        name: {
            "median": statistics.median(r[name] for r in runs),
            "min": min(r[name] for r in runs),
            "max": max(r[name] for r in runs),
        }
        for name in MEASURES
    }
    return {"checkpoint_bytes": nbytes, "checkpoint_disk_bytes": disk, **summary, "runs": runs}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a line a model, and return what --json writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=MODELS, help=", ".join(HUB_IDS))
    parser.add_argument("--layers", type=int, help="decoder layers (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    own, rest = split_arguments(arguments)
    parsed = parser.parse_args(own)
    report: dict[str, Any] = {
        "machine": {
            "cpus": cores(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "load_average_before": os.getloadavg()[0],
            **{name: version(name) for name in ("torch", "transformers", "onnxscript")},
        },
        "arguments": rest,
        "layers": parsed.layers,
        "models": {},
    }
    for alias in parsed.models.split(","):
        found = run(alias, parsed.layers, parsed.repeats, rest)
        report["models"][alias] = found
        print(
            f"{alias}: {found['checkpoint_bytes'] / 1e9:.1f} GB of weights, "
            f"{found['wall_s']['median']:.1f} s ({found['wall_s']['min']:.1f} to "
            f"{found['wall_s']['max']:.1f}), {found['user_s']['median']:.1f} s of CPU, peak "
            f"{found['peak_rss_bytes']['median'] / 1e9:.2f} GB, wrote "
            f"{found['package_bytes']['median'] / 1e6:.2f} MB"
        )
        if parsed.json:  # what has been measured is kept, whatever the next model does
            parsed.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()

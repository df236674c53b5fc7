#!/usr/bin/env python
"""Write a random-weight checkpoint of any family and size, for avl-export and for transformers.

    .venv/bin/python scripts/make_random.py build/s1 --preset S1
    .venv/bin/python scripts/make_random.py build/qwen --family qwen3_vl --hidden 512 --layers 4

The folder is laid out as on the Hugging Face hub: JSON files, tokenizer.json and safetensors
shards, whose weights are drawn piece by piece, so that memory stays small. The same seed gives the
same bytes. Every ordinary token is a word of its own, w0, w1, …; what is not said is as in the
family's smallest known model, the vision tower aside, which is small.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avl_export.checkpoint.aliases import known_files
from export_size import special_tokens, write_shapes
from random_config import DTYPES, FAMILIES, Shape, files_of
from random_weights import fill, like_trained, like_trained_gemma4

# S1 with five pictures of 576 tokens is what LLaVA-NeXT makes of one large picture.
PRESETS = {
    "S1": Shape(),
    # With a tower of the sizes of CLIP-L, 576 tokens a picture.
    "S1-vision": Shape(vision_hidden=1024, vision_layers=24),
    "S2": Shape(kv_heads=4),
    "S3": Shape(hidden=512, intermediate=1408, heads=8, kv_heads=8),
    # FastV's prefill over many layers of half the width.
    "deep": Shape(hidden=512, intermediate=1408, heads=8, kv_heads=8, layers=24),
    # To see that something works.
    "small": Shape(
        hidden=256,
        intermediate=704,
        layers=4,
        heads=4,
        kv_heads=2,
        vocabulary=1024,
        context=2048,
        image_tokens=16,
        vision_hidden=64,
        vision_layers=1,
    ),
    # 0.55 billion parameters.
    "half-billion": Shape(hidden=1536, intermediate=4096, heads=24, kv_heads=24, layers=16),
}


def write(folder: Path, shape: Shape, seed: int = 0) -> int:
    """Write the checkpoint; returns its weights' bytes.

    Raises:
        ShapeError: the family cannot have this shape.
        FileExistsError: there is something at `folder` already.
    """
    return _write(folder, files_of(shape), seed)


def write_known(folder: Path, alias: str, seed: int = 0, dtype: str | None = None) -> int:
    """Write a checkpoint in the full size of one that avl knows; returns its weights' bytes.

    Args:
        dtype: of `DTYPES`, in place of its own.

    Raises:
        FileExistsError: there is something at `folder` already.
    """
    files = json.loads(json.dumps(known_files(alias)))
    if dtype is not None:
        config = files["config.json"]
        config["dtype"] = config["text_config"]["dtype"] = DTYPES[dtype]
    return _write(folder, files, seed)


def _write(folder: Path, files: dict[str, Any], seed: int) -> int:
    total = write_shapes(folder, files)
    is_gemma4 = files["config.json"]["model_type"] == "gemma4"
    spread = like_trained_gemma4 if is_gemma4 else like_trained
    for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
        fill(path, 1000 * seed + number, spread)
    text = files["config.json"].get("text_config", files["config.json"])
    _write_words(folder / "tokenizer.json", special_tokens(files), text["vocab_size"])
    if "tokenizer_config.json" not in files:
        longest = text["max_position_embeddings"]
        named = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return total


def _write_words(path: Path, special: Mapping[int, str], vocabulary: int) -> None:
    """A tokenizer in which every ordinary token is a word between spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split

    words = {special.get(number, f"w{number}"): number for number in range(vocabulary)}
    unknown = next(word for word, number in words.items() if number not in special)
    tokenizer = Tokenizer(WordLevel(words, unk_token=unknown))
    # A line break is a token, as everywhere: it keeps pictures apart.
    tokenizer.pre_tokenizer = Sequence([Split("\n", "isolated"), Split(" ", "removed")])
    tokenizer.add_special_tokens([special[number] for number in sorted(special)])
    tokenizer.save(str(path))


def main(arguments: list[str] | None = None) -> None:
    """Write a checkpoint and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, help="a shape; options change parts of it")
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--vocab", dest="vocabulary", type=int)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    said = ("family", "vocabulary", "dtype")
    for field in dataclasses.fields(Shape):
        if field.name not in said:
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=int)
    parsed = vars(parser.parse_args(arguments))
    shape = PRESETS[parsed["preset"]] if parsed["preset"] else Shape()
    changes = {
        field.name: parsed[field.name]
        for field in dataclasses.fields(Shape)
        if parsed[field.name] is not None
    }
    shape = dataclasses.replace(shape, **changes)
    total = write(parsed["folder"], shape, parsed["seed"])
    print(f"{parsed['folder']}: {shape.family}, {total / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()

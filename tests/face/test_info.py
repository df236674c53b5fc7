"""avl-info says what a package holds and does by default."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avl_runtime.cli.info import main
from avl_runtime.package.package import MANIFEST

KEYS = [
    "package",
    "model",
    "family",
    "dtype",
    "layers",
    "experts",
    "kv",
    "checked_rows",
    "split",
    "context",
    "policies",
    "default_policy",
    "generation",
    "chat_template",
    "image",
    "video",
    "vision_attention",
    "restores",
    "weights",
    "weights_folder",
    "weights_found",
    "weight_bytes",
    "package_bytes",
    "quantization",
    "engines",
    "format_version",
    "producer",
]


@pytest.fixture
def changed(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any], str]]:
    """What the command tells of avl-tiny's package with some fields of its manifest changed."""

    def tell(**fields: Any) -> tuple[dict[str, Any], str]:
        place = tmp_path / "p.avl"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tiny_package, place)
        manifest = json.loads((place / MANIFEST).read_text())
        (place / MANIFEST).write_text(json.dumps(manifest | fields))
        assert main([str(place), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert main([str(place)]) == 0
        return json.loads(out), capsys.readouterr().out

    return tell


def test_what_avl_tiny_is(
    changed: Callable[..., tuple[dict[str, Any], str]], tiny_checkpoint: Path
) -> None:
    told, text = changed()
    assert list(told) == KEYS
    shard = tiny_checkpoint / "model.safetensors"
    assert (told["model"], told["family"], told["dtype"]) == ("avl-tiny", "llava", "fp32")
    assert (told["layers"], told["split"], told["default_policy"]) == (6, [2], "dense")
    assert told["policies"] == ["dense", "avl", "avl:exact", "akvq", "fastv", "avl+fastv", "random"]
    assert told["kv"] == ["fp32", "fp16", "int8", "int8-int4", "int8-int2"]
    assert "cached rows:   in fp32, fp16, int8, int8-int4 or int8-int2 (--kv)\n" in text
    assert (told["weights"], told["weights_found"]) == ("linked", True)
    assert told["weight_bytes"] == shard.stat().st_size
    assert (told["image"], told["video"], told["quantization"]) == ("fixed", None, None)
    assert told["generation"]["temperature"] == 0 and told["engines"] == []
    for part in ("avl-tiny (llava), takes images (fixed)", "6 layers, cut after 2, in fp32"):
        assert part in text
    assert "generation:    greedy\n" in text and f"linked to {tiny_checkpoint}" in text
    assert "chat template: yes\n" in text and "engines:       none\n" in text


def test_rows_that_were_found_harmless_are_told(
    changed: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    rows = {"rows": "int8", "policy": "avl", "questions": 200, "tokens": 900}
    rows |= {"apart": 0.0, "divergence": 1e-6}
    told, text = changed(checked_rows=rows)
    assert told["checked_rows"] == rows
    assert "(--kv); int8 unless said, harmless in 200 questions of avl-tune\n" in text


def test_defaults_of_generation_are_told(
    changed: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    settings = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}
    settings |= {"suppress_tokens": list(range(9)), "begin_suppress_tokens": [2]}
    told, text = changed(generation=settings, default_policy="avl:keep=0.5", chat_template=None)
    assert {name: told["generation"][name] for name in settings} == settings
    line = (
        "generation:    drawn at temperature 0.7, top_k 20, repetition_penalty 1.05, "
        "suppress_tokens 9 of them, begin_suppress_tokens [2]\n"
    )
    assert line in text and "(default: avl:keep=0.5)" in text
    assert "chat template: none" in text


def test_quantized_copied_and_built(changed: Callable[..., tuple[dict[str, Any], str]]) -> None:
    quantization = {
        "method": "clip",
        "bits": 4,
        "block_size": 64,
        "parts": ["decoder", "lm_head"],
        "zero_points": False,
        "embedding": None,
    }
    limits = {"decode_rows": 1, "prompt_rows": 256, "cache_rows": 2048, "batch": 1}
    engines = {
        "backend": "tensorrt-rtx",
        "version": "1.7.1",
        "targets": [89, 120],
        "cuda": 13,
        "platform": "linux-x86_64",
        "plugins": False,
        "row_block": 1,
        "limits": limits,
        "files": [{"graph": "vision.onnx", "path": "engines/x", "size": 5, "sha256": "0"}],
    }
    shards = [{"path": "gone.safetensors", "size": 7, "header_sha256": "0", "sha256": None}]
    told, text = changed(
        quantization=quantization,
        engines=[engines],
        weights={"folder": None, "shards": shards},
        embedding={"file": "gone.safetensors", "offset": 0, "dtype": "F32", "shape": [386, 192]},
    )
    assert told["quantization"] == {
        name: quantization[name] for name in ("method", "bits", "block_size", "parts")
    }
    assert (told["weights"], told["weights_found"], told["weight_bytes"]) == ("copied", False, 7)
    assert told["engines"][0]["targets"] == [89, 120] and told["engines"][0]["bytes"] == 5
    for part in (
        "quantized:     int4 (clip, blocks of 64): decoder, lm_head\n",
        "7 B, in the package, which lacks some of them",
        "tensorrt-rtx 1.7.1 on linux-x86_64, a GPU of compute capability 8.9 or 12.0",
    ):
        assert part in text


def test_policies_are_those_that_the_cut_allows(
    changed: Callable[..., tuple[dict[str, Any], str]], tiny_package: Path
) -> None:
    first, second = json.loads((tiny_package / MANIFEST).read_text())["segments"]
    told, text = changed(
        segments=[
            first | {"last_layer": 3, "kinds": ["full"] * 3},
            second | {"first_layer": 3, "kinds": ["full"] * 3},
        ]
    )
    assert told["split"] == [3] and "cut after 3" in text
    assert "dense" in told["policies"] and "fastv" not in told["policies"]


def test_no_package_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("avl-info: ") and len(err.splitlines()) == 1

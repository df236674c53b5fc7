"""Bad input ends in exit 1 and one line, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from export.checkpoints import join_file, split_file

Refused = Callable[..., str]
SHARD = "model.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value | changes))


def damage_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    header, data = split_file(folder / SHARD)
    change(header)
    join_file(folder / SHARD, header, data)


def first(header: dict[str, Any], part: str) -> str:
    return next(key for key in header if part in key)


def test_no_folder(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "hf download" in refused("no/such")
    assert "expected a checkpoint folder" in refused("/no/such/folder")


def test_no_config(checkpoint: Path, refused: Refused) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json" in refused(checkpoint)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff", "[" * 100_000])
def test_damaged_config(text: str, checkpoint: Path, refused: Refused) -> None:
    (checkpoint / "config.json").write_bytes(text.encode("latin-1"))
    assert "expected a JSON object" in refused(checkpoint)


def test_truncated_weights(checkpoint: Path, refused: Refused) -> None:
    path = checkpoint / SHARD
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut short" in refused(checkpoint)


def test_missing_weights(checkpoint: Path, refused: Refused) -> None:
    (checkpoint / SHARD).unlink()
    assert "found neither" in refused(checkpoint)


def test_only_pickles(checkpoint: Path, refused: Refused) -> None:
    (checkpoint / SHARD).rename(checkpoint / "pytorch_model.bin")
    assert "safe_serialization=True" in refused(checkpoint)


def test_lying_header(checkpoint: Path, refused: Refused) -> None:
    def lie(header: dict[str, Any]) -> None:
        begin, end = header[first(header, "q_proj")]["data_offsets"]
        header[first(header, "q_proj")]["data_offsets"] = [begin + 4, end + 4]

    damage_header(checkpoint, lie)
    assert "overlap" in refused(checkpoint) or "gap" in refused(checkpoint)


def test_unmapped_key(checkpoint: Path, refused: Refused) -> None:
    damage_header(checkpoint, lambda h: h.update(stranger=h.pop(first(h, "v_proj"))))
    assert "stranger" in refused(checkpoint)


def test_missing_key(checkpoint: Path, refused: Refused) -> None:
    """The bytes stay, under a name that loaders ignore."""
    damage_header(
        checkpoint, lambda h: h.update({"x.rotary_emb.inv_freq": h.pop(first(h, "k_proj"))})
    )
    line = refused(checkpoint)
    assert "k_proj" in line
    assert "found none" in line


def test_wrong_shape(checkpoint: Path, refused: Refused) -> None:
    damage_header(checkpoint, lambda h: h[first(h, "up_proj")]["shape"].reverse())
    line = refused(checkpoint)
    assert "[64, 48]" in line
    assert "[48, 64]" in line


def test_wrong_dtype(checkpoint: Path, refused: Refused) -> None:
    damage_header(checkpoint, lambda h: h[first(h, "down_proj")].update(dtype="I32"))
    line = refused(checkpoint)
    assert "down_proj" in line
    assert "found I32" in line


def test_same_weight_twice(checkpoint: Path, refused: Refused) -> None:
    def twice(header: dict[str, Any]) -> None:
        old = header.pop(first(header, "layers.0.self_attn.q_proj"))
        header["model.language_model.layers.1.self_attn.q_proj.weight"] = old

    damage_header(checkpoint, twice)
    assert "expected one key" in refused(checkpoint)


def test_unknown_architecture(checkpoint: Path, refused: Refused) -> None:
    edit_json(checkpoint / "config.json", model_type="florence2")
    line = refused(checkpoint)
    assert "llava" in line
    assert "florence2" in line


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_unknown_part(part: str, checkpoint: Path, refused: Refused) -> None:
    edit_json(checkpoint / "config.json", **{part: {"model_type": "gpt2"}})
    assert "gpt2" in refused(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [{"vision_feature_layer": 9}, {"vision_feature_layer": "last"}, {"text_config": 3}],
    ids=str,
)
def test_invalid_config(changes: dict[str, Any], checkpoint: Path, refused: Refused) -> None:
    edit_json(checkpoint / "config.json", **changes)
    assert "config.json" in refused(checkpoint)


def test_quantized(checkpoint: Path, refused: Refused) -> None:
    edit_json(checkpoint / "config.json", quantization_config={"quant_method": "awq"})
    assert "quantized" in refused(checkpoint)


def test_rope_that_changes_with_the_length(checkpoint: Path, refused: Refused) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 2.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 128,
    }
    edit_json(checkpoint / "config.json", **config)
    assert "rope_type" in refused(checkpoint)


def test_no_tokenizer(checkpoint: Path, refused: Refused) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "AutoTokenizer" in refused(checkpoint)


def test_no_image_processor(checkpoint: Path, refused: Refused) -> None:
    (checkpoint / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in refused(checkpoint)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/x.safetensors", "a\\b"])
def test_index_leaves_the_folder(name: str, checkpoint: Path, refused: Refused) -> None:
    (checkpoint / SHARD).unlink()  # beside it no index is read
    edit_json(checkpoint / "model.safetensors.index.json", weight_map={"w": name})
    assert "do not use" in refused(checkpoint)


def test_missing_shard(checkpoint: Path, refused: Refused) -> None:
    (checkpoint / SHARD).unlink()
    edit_json(checkpoint / "model.safetensors.index.json", weight_map={"w": "gone.safetensors"})
    assert "gone.safetensors" in refused(checkpoint)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--split", "3"), "1 to 2"),
        (("--split", "0"), "1 to 2"),
        (
            ("--quantize", "int4", "--block-size", "128"),
            "48 inputs are no multiple of 128; pass --quantize int8",
        ),
        (("--dtype", "bf16", "--check"), "--no-check"),
    ],
    ids=str,
)
def test_options(arguments: tuple[str, ...], part: str, master: Path, refused: Refused) -> None:
    assert part in refused(master, *arguments)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--split", "2,1"), "ascending"),
        (("--split", "two"), "two"),
        (("--policy", "avl:keep=2"), "keep"),
        (("--policy", "magic"), "magic"),
        (("--layers", "--no-check"), "leave one out"),
        (("--dry-run", "--check"), "--dry-run makes nothing that --check could look at"),
        (("--dry-run", "--layers"), "--dry-run makes nothing that --layers could look at"),
    ],
    ids=str,
)
def test_options_that_are_wrong_on_any_checkpoint(
    arguments: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from avl_export.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(list(arguments))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("avl-export: error: ") and part in line


def test_place_is_taken(master: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "choose another --out" in refused(master)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_place_holds_the_weights(checkpoint: Path, refused: Refused) -> None:
    (checkpoint / "avl.json").write_text("{}")
    shutil.move(checkpoint, checkpoint.parent / "out")
    assert "weights inside" in refused(checkpoint.parent / "out")

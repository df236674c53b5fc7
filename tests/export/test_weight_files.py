"""Where several files may hold the weights, those count that transformers reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from avl_export.checkpoint import hub as avl_hub
from avl_export.checkpoint.checkpoint import find_checkpoint, open_checkpoint
from avl_export.cli import main
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan
from export.layouts import assert_reads_as_transformers, split_shards

Refused = Callable[..., str]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-0000{}-of-00003.safetensors"


def planned(folder: Path, tmp_path: Path) -> Plan:
    return make_plan(Options(str(folder), tmp_path / "out", split=(1,)))


def change_weights(path: Path) -> dict[str, torch.Tensor]:
    """Other values for every tensor of the file, as training on gives them."""
    tensors = {key: tensor + 1 for key, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return tensors


def save_beside_shards(folder: Path) -> None:
    """A checkpoint in shards, then saved again as one file: nobody removes the shards."""
    shutil.copy(folder / SINGLE, folder / "kept")
    split_shards(folder)
    (folder / "kept").rename(folder / SINGLE)
    change_weights(folder / SINGLE)


def test_one_file_beside_old_shards(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_beside_shards(checkpoint)
    plan = planned(checkpoint, tmp_path)
    assert list(plan.checkpoint.shards) == [SINGLE]
    assert_reads_as_transformers(plan)
    arguments = ["--model", str(checkpoint), "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    line, *_ = err.splitlines()
    assert f"read from {SINGLE}" in line
    assert f"{SHARD.format(1)}, {SHARD.format(2)}, {SHARD.format(3)} and 1 more" in line
    note, *_ = json.loads(out)["notes"]
    assert line == f"avl-export: {note}"


def test_an_index_whose_shards_are_gone(checkpoint: Path, tmp_path: Path) -> None:
    save_beside_shards(checkpoint)
    for number in (1, 2, 3):
        (checkpoint / SHARD.format(number)).unlink()
    plan = planned(checkpoint, tmp_path)
    assert_reads_as_transformers(plan)
    assert INDEX in plan.notes[0]


def test_shards_with_nothing_beside_them(checkpoint: Path, tmp_path: Path) -> None:
    split_shards(checkpoint)
    plan = planned(checkpoint, tmp_path)
    assert len(plan.checkpoint.shards) == 3
    assert not [note for note in plan.notes if "left aside" in note]


def test_variants_and_pickles_are_left_aside(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / SINGLE, checkpoint / "model.fp16.safetensors")
    change_weights(checkpoint / "model.fp16.safetensors")
    (checkpoint / "pytorch_model.bin").write_bytes(b"pickle")
    plan = planned(checkpoint, tmp_path)
    assert_reads_as_transformers(plan)
    assert "model.fp16.safetensors, pytorch_model.bin" in plan.notes[0]


@pytest.mark.parametrize("kept", ["model.fp16.safetensors", SHARD.format(1)])
def test_no_file_that_counts(kept: str, checkpoint: Path, refused: Refused) -> None:
    (checkpoint / SINGLE).rename(checkpoint / kept)
    line = refused(checkpoint)
    assert f"found only {kept}" in line
    assert f"rename the file to {SINGLE}" in line


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_links_of_a_cache_that_was_cleared(name: str, checkpoint: Path, refused: Refused) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to("../../blobs/none")
    line = refused(checkpoint)
    assert "a link that leads to no file; fetch the checkpoint again" in line


def test_the_file_that_the_config_names(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / SINGLE, checkpoint / "best.safetensors")
    change_weights(checkpoint / "best.safetensors")
    edit(checkpoint / "config.json", transformers_weights="best.safetensors")
    plan = planned(checkpoint, tmp_path)
    assert list(plan.checkpoint.shards) == ["best.safetensors"]
    assert_reads_as_transformers(plan)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/x.safetensors"])
def test_a_file_outside_the_folder(name: str, checkpoint: Path, refused: Refused) -> None:
    edit(checkpoint / "config.json", transformers_weights=name)
    assert "do not use" in refused(checkpoint)


def test_a_named_file_that_is_missing(checkpoint: Path, refused: Refused) -> None:
    edit(checkpoint / "config.json", transformers_weights="gone.safetensors")
    assert "gone.safetensors" in refused(checkpoint)
    edit(checkpoint / "config.json", transformers_weights="model.gguf")
    assert "found 'model.gguf'" in refused(checkpoint)


def test_a_tensor_in_two_shards(checkpoint: Path, tmp_path: Path) -> None:
    """transformers reads every tensor of every shard, whatever the index says of it."""
    split_shards(checkpoint)
    first, last = load_file(checkpoint / SHARD.format(1)), load_file(checkpoint / SHARD.format(3))
    key = next(key for key in first if "proj" in key)
    save_file(last | {key: first[key] + 1}, checkpoint / SHARD.format(3), {"format": "pt"})
    plan = planned(checkpoint, tmp_path)
    assert_reads_as_transformers(plan)
    assert plan.checkpoint.tensors[key][0] == SHARD.format(3)
    assert f"tensors of {SHARD.format(1)} lie in a later shard too" in plan.notes[0]
    assert f"left aside: {key}" in plan.notes[0]


def test_a_configuration_for_newer_versions(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.5.0.0.json").write_text(json.dumps(config))
    (checkpoint / "config.99.0.0.json").write_text("{}")
    config["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 77.0}
    files = ["config.json", "config.5.0.0.json", "config.99.0.0.json"]
    (checkpoint / "config.json").write_text(json.dumps({**config, "configuration_files": files}))
    reference: Any = planned(checkpoint, tmp_path).family.reference()
    rope = reference.config.text_config.rope_parameters
    assert rope["rope_theta"] != 77.0
    family: Any = planned(checkpoint, tmp_path).family
    assert family.config.text_config.rope_parameters == rope


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestOnTheHub:
    """The stand-in of the hub's API of test_hub.py serves the folder."""

    @pytest.fixture
    def served(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> list[tuple[str, ...]]:
        """`checkpoint` as some/model, whose small files are cached; the shards asked for."""
        save_beside_shards(checkpoint)
        snapshot = tmp_path / "snapshots" / ("1" * 40)
        asked: list[tuple[str, ...]] = []

        def small(*_: Any) -> Path:
            snapshot.mkdir(parents=True, exist_ok=True)
            for path in checkpoint.glob("*.json"):
                shutil.copy(path, snapshot)
            return snapshot

        def weights(_: str, folder: Path, shards: tuple[str, ...], listed: Any) -> None:
            assert set(shards) <= set(listed)
            asked.append(tuple(shards))
            for name in shards:
                shutil.copy(checkpoint / name, folder)

        sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
        monkeypatch.setattr(avl_hub, "find", lambda *_: None)
        monkeypatch.setattr(avl_hub, "fetch_small", small)
        monkeypatch.setattr(avl_hub, "listing", lambda *_: sizes)
        monkeypatch.setattr(avl_hub, "fetch_weights", weights)
        return asked

    def test_the_one_file_is_fetched(self, served: list[tuple[str, ...]]) -> None:
        opened = open_checkpoint("some/model")
        assert served == [(SINGLE,)]
        assert list(opened.shards) == [SINGLE]

    def test_a_dry_run_names_it(self, served: list[tuple[str, ...]]) -> None:
        assert find_checkpoint("some/model", dry_run=True).missing == (SINGLE,)
        assert served == []

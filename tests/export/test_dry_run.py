"""A plan needs no weights, and for an alias nothing at all."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from avl_export.checkpoint import aliases
from avl_export.cli import main
from avl_export.families import SUPPORTED
from avl_export.plan.plan import SMALL
from export.layouts import split_shards

Refused = Callable[..., str]
Plan = Callable[..., dict[str, Any]]
# Millions of parameters, as the models' own pages on the hub count them.
PUBLISHED = {
    "llava-7b": 7060,
    "llava-13b": 13400,
    "vip-llava-7b": 7080,
    "vip-llava-13b": 13430,
    "llava-next-7b": 7060,
    "llava-next-mistral-7b": 7570,
    "llava-next-13b": 13400,
    "llava-next-video-7b": 7060,
    "video-llava-7b": 7370,
    "internvl3-2b": 2090,
    "internvl3-8b": 7940,
    "internvl3.5-1b": 1060,
    "internvl3.5-2b": 2350,
    "internvl3.5-4b": 4730,
    "internvl3.5-8b": 8530,
    "internvl3.5-14b": 15100,
    "qianfan-ocr-4b": 4730,
    "ministral-3-3b": 3850,
    "ministral-3-8b": 8920,
    "ministral-3-14b": 13940,
    "lighton-ocr-1b": 1006,
    "paddleocr-vl-0.9b": 906,  # and 53 in a pooling head and positions that nothing reads
    "glm-ocr-0.9b": 1107,
    "glm-4.6v-flash": 10290,
    "granite-vision-4.1-4b": 4000,
    "qwen2-vl-2b": 2210,
    "qwen2-vl-7b": 8290,
    "qwen2.5-vl-3b": 3750,
    "qwen2.5-vl-7b": 8290,
    "qwen3-vl-2b": 2130,
    "qwen3-vl-8b": 8770,
    "qwen3-vl-30b-a3b": 31070,
    "qwen3.5-0.8b": 853,  # and 20 in a layer that drafts, which nothing reads
    "qwen3.5-4b": 4540,  # and such a layer's
    "qwen3.5-9b": 9410,  # of 9653 with the 243 of such a layer
    "gemma-3-4b": 4300,
    "paligemma-3b": 2923,
    "gemma-4-e2b": 5104,
    "gemma-4-e4b": 7941,
    "minicpm-v-4.6": 1300,
    "lfm2.5-vl-450m": 449,
    "smolvlm-256m": 256,
    "smolvlm-500m": 508,
    "smolvlm2-256m": 256,
    "smolvlm2-500m": 508,
    "smolvlm2-2.2b": 2250,
    "idefics3-8b": 8460,
    "llava-onevision-0.5b": 894,
    "llava-onevision-7b": 8030,
}
IN_FLOAT32 = ("paligemma-3b",)
# Whose layers keep states, see later tokens or a window, or have experts: docs/families.md.
FOR_CPU_ALONE = ("qwen3_vl_moe", "qwen3_5", "lfm2_vl", "minicpmv4_6", "gemma3", "gemma4")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No network, and nothing in the hub's cache."""

    def refuse(*_: object) -> None:
        raise AssertionError("a dry run of an alias used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """The report of a dry run, which must write nothing."""

    def run(model: Path | str, *arguments: str) -> dict[str, Any]:
        before = {path.name for path in tmp_path.iterdir()}
        how = ["--model", str(model), "--out", str(tmp_path / "out"), "--dry-run", "--json"]
        assert main([*how, *arguments]) == 0
        assert {path.name for path in tmp_path.iterdir()} == before
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("alias", aliases.HUB_IDS)
def test_every_alias(alias: str, plan: Plan, refused: Refused) -> None:
    """Supported ones are planned from what avl knows of them, the others refused by name."""
    model_type = aliases.known_files(alias)["config.json"]["model_type"]
    if model_type not in SUPPORTED:
        line = refused(alias, "--dry-run")
        assert repr(model_type) in line
        assert aliases.HUB_IDS[alias] in line
        return
    report = plan(alias)
    assert report["config"] == "built-in"
    assert report["checkpoint"] == aliases.HUB_IDS[alias]
    assert {"config.json", "*.safetensors", "tokenizer.json"} <= set(report["missing"])
    each = 4 if alias in IN_FLOAT32 else 2
    assert report["download_bytes"] == pytest.approx(each * 1e6 * PUBLISHED[alias], rel=0.01)
    assert 0.9 * report["download_bytes"] < report["weight_bytes"] <= report["download_bytes"]
    small = report["download_bytes"] <= SMALL
    whole = small or alias in IN_FLOAT32 or model_type in FOR_CPU_ALONE
    assert report["dtype"] in ({"fp32"} if whole else {"fp16", "bf16"})
    assert len(report["components"]) >= 4


@pytest.mark.parametrize("alias", aliases.HUB_IDS)
def test_known_configurations_are_those_of_the_checkpoints(alias: str) -> None:
    """Built by transformers they have as many parameters as the checkpoints."""
    config = dict(aliases.known_files(alias)["config.json"])
    built = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(built)
    assert type(model).__name__ == config["architectures"][0]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(PUBLISHED[alias], rel=0.01)
    ids = {token["id"] for token in aliases.known_files(alias)["tokenizer.json"]["added_tokens"]}
    assert {built.image_token_id, getattr(built, "video_token_id", None) or min(ids)} <= ids


@pytest.mark.parametrize("alias", aliases.HUB_IDS)
def test_settings_that_stand_in_fit_the_sizes_of_a_tower(alias: str) -> None:
    """Of a known checkpoint they are its own; a configuration may also leave sizes to defaults."""
    config = dict(aliases.known_files(alias)["config.json"])
    kin = (aliases.known_files(one) for one in aliases.HUB_IDS)
    first = next(one for one in kin if one["config.json"]["model_type"] == config["model_type"])
    named = {name: value for name, value in first.items() if "processor_config" in name}
    asked = ["preprocessor_config.json"]
    assert aliases.stand_ins(first["config.json"], asked) == named
    config["vision_config"] = {"model_type": config["vision_config"].get("model_type")}
    assert aliases.stand_ins(config, asked).keys() == named.keys()


@pytest.mark.usefixtures("alone")
def test_the_text_says_what_it_goes_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "llava-7b", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "the one avl knows of llava-hf/llava-1.5-7b-hf, which is not on this machine" in text
    assert "missing: config.json, *.safetensors" in text
    assert "13.16 GiB of weights (by the config) from the hub" in text


@pytest.mark.usefixtures("alone")
def test_options_are_checked_against_a_known_configuration(refused: Refused) -> None:
    assert "from 1 to 31" in refused("llava-7b", "--dry-run", "--split", "32")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("lost", [(), ("model.safetensors",), ("tokenizer.json",)], ids=str)
def test_an_alias_in_the_cache_is_read(
    lost: tuple[str, ...],
    master: Path,
    tmp_path: Path,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what a stopped download left there, still without a network."""
    repository = tmp_path / "models--llava-hf--llava-1.5-7b-hf"
    shutil.copytree(master, repository / "snapshots" / ("1" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    for name in lost:
        (repository / "snapshots" / ("1" * 40) / name).unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    report = plan("llava-7b")
    assert (report["config"], report["layers"]) == ("checkpoint", 3)
    assert report["missing"] == list(lost)
    assert (report["download_bytes"] > 0) == ("model.safetensors" in lost)


def test_a_folder_with_a_config_only(
    master: Path, tmp_path: Path, plan: Plan, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(master / "config.json", folder)
    report = plan(folder)
    assert report["missing"] == ["model.safetensors", "tokenizer.json", "preprocessor_config.json"]
    assert report["download_bytes"] == 0
    whole = plan(master)
    assert whole["missing"] == []
    for key in ("components", "weight_bytes", "dtype", "why_dtype", "split", "files"):
        assert report[key] == whole[key], key
    assert plan(folder, "--copy")["copied_bytes"] >= report["weight_bytes"]
    assert main(["--model", str(folder), "--dry-run"]) == 0
    assert "missing files in the checkpoint's folder" in capsys.readouterr().out
    assert "expected" in refused(folder)


def test_a_folder_with_some_shards(checkpoint: Path, plan: Plan, refused: Refused) -> None:
    split_shards(checkpoint)
    lost = checkpoint / "model-00002-of-00003.safetensors"
    lost.unlink()
    report = plan(checkpoint)
    assert report["missing"] == [lost.name]
    assert lost.name in refused(checkpoint)


def test_the_stored_dtype_comes_from_the_config(master: Path, tmp_path: Path, plan: Plan) -> None:
    sizes = {}
    for dtype in ("float32", "float16", "bfloat16"):
        folder = tmp_path / dtype
        folder.mkdir()
        config = json.loads((master / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
        sizes[dtype] = plan(folder)["weight_bytes"]
    assert sizes["float32"] == 2 * sizes["float16"] == 2 * sizes["bfloat16"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("model", "name"),
    [("llava-7b", "llava-7b.avl"), ("some/model", "model.avl"), ("bare/", "bare.avl")],
)
def test_default_place(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avl_export.cli import default_out

    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path)
    assert default_out(model) == Path(name)
    monkeypatch.chdir(tmp_path / "bare")
    assert default_out(str(tmp_path / "bare")) == tmp_path / "bare.avl"

"""Checkpoints from the hub: the real client against a stand-in of the hub's HTTP API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save_file

from avl_export.checkpoint import hub as avl_hub
from avl_export.checkpoint.checkpoint import find_checkpoint, open_checkpoint, open_weights
from avl_export.cli import main
from avl_export.families import load_family
from export.hub_server import COMMIT, OTHER, Hub, serve, use

Refused = Callable[..., str]
NAME = "some/model"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that the client of this process talks to, with an empty cache."""
    cache = tmp_path_factory.mktemp("cache")
    with serve() as served:
        use(served, cache, monkeypatch)
        monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
        yield served


@pytest.fixture(scope="session")
def sharded(master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`master` in two shards, with what else repositories hold."""
    folder = shutil.copytree(master, tmp_path_factory.mktemp("hub") / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, shard in enumerate(SHARDS):
        part = {key: tensors[key] for key in list(tensors)[number::2]}
        save_file(part, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_own.py").write_text("raise SystemExit('run')")
    (folder / "README.md").write_text("words")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    (folder / "original" / "other.safetensors").write_bytes(b"other")
    return folder


def test_a_checkpoint_is_fetched_once(hub: Hub, sharded: Path) -> None:
    hub.add(NAME, sharded)
    fetched = open_checkpoint(NAME)
    assert fetched.name == "model"
    assert fetched.tensors == open_checkpoint(str(sharded)).tensors
    for shard, path in fetched.shards.items():
        assert path.read_bytes() == (sharded / shard).read_bytes()
        assert (fetched.folder / shard).is_symlink()
    wanted = {"config.json", "tokenizer.json", "preprocessor_config.json", *SHARDS}
    assert wanted <= set(hub.fetched())
    assert all(name.endswith((".json", ".safetensors")) for name in hub.fetched())
    assert not {"params.json", "other.safetensors"} & set(hub.fetched())
    hub.requests.clear()
    assert open_checkpoint(NAME) == fetched
    assert hub.requests == []


def test_a_dry_run_fetches_no_weights(
    hub: Hub, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(NAME, sharded)
    arguments = ["--model", NAME, "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["missing"] == SHARDS
    assert report["download_bytes"] == open_checkpoint(str(sharded)).nbytes
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    open_checkpoint(NAME)
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["missing"], found["download_bytes"]) == ([], 0)
    sizes = [[(c["name"], c["bytes"]) for c in r["components"]] for r in (report, found)]
    assert sizes[0] == sizes[1]


def test_a_revision_is_fetched(hub: Hub, master: Path, sharded: Path) -> None:
    hub.add(NAME, sharded)
    hub.add(NAME, master, OTHER)
    assert set(open_weights(find_checkpoint(NAME, OTHER)).shards) == {"model.safetensors"}
    assert set(open_checkpoint(NAME).shards) == set(SHARDS)
    assert find_checkpoint(NAME, COMMIT).folder == find_checkpoint(NAME).folder


def test_a_broken_connection_is_taken_up(hub: Hub, sharded: Path) -> None:
    hub.add(NAME, sharded)
    hub.cut[SHARDS[1]] = 2
    fetched = open_checkpoint(NAME)
    assert fetched.shards[SHARDS[1]].read_bytes() == (sharded / SHARDS[1]).read_bytes()
    assert hub.fetched().count(SHARDS[1]) == 3


def test_a_failed_download_goes_on_where_it_was(hub: Hub, sharded: Path, refused: Refused) -> None:
    hub.add(NAME, sharded)
    hub.cut[SHARDS[1]] = 1000
    assert "check the network and run this again" in refused(NAME)
    hub.cut.clear()
    hub.requests.clear()
    assert open_checkpoint(NAME).tensors == open_checkpoint(str(sharded)).tensors
    assert SHARDS[0] not in hub.fetched()


def test_ctrl_c_leaves_a_cache_to_go_on_with(
    hub: Hub,
    sharded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add(NAME, sharded)
    download = huggingface_hub.hf_hub_download

    def stop(hub_id: str, name: str, **how: str) -> str:
        if name == SHARDS[1]:
            raise KeyboardInterrupt
        return download(hub_id, name, **how)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stop)
    assert main(["--model", NAME, "--out", str(tmp_path / "out")]) == 130
    assert "stopped" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()


def test_offline(
    hub: Hub, sharded: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, sharded)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused(NAME)
    assert "HF_HUB_OFFLINE" in line
    assert "hf download some/model" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    find_checkpoint(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "incomplete" in refused(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetched = open_checkpoint(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert open_checkpoint(NAME) == fetched
    assert hub.requests == []


def test_whole_weights_do_for_offline(
    hub: Hub, sharded: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs fetch less than we do: what is still missing is named, not the hub."""
    hub.add(NAME, sharded)
    (open_checkpoint(NAME).folder / "tokenizer.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "expected tokenizer.json" in refused(NAME) or "added tokens" in refused(NAME)


def test_no_network(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = refused(NAME)
    assert "expected a connection to http://127.0.0.1:9" in line
    assert "hf download some/model" in line


def test_gated(hub: Hub, sharded: Path, refused: Refused) -> None:
    hub.add(NAME, sharded)
    hub.gated.add(NAME)
    line = refused(NAME)
    assert "gated" in line
    assert f"{hub.url}/{NAME}" in line
    assert "hf auth login" in line


def test_not_found(hub: Hub, sharded: Path, refused: Refused) -> None:
    line = refused(NAME)
    assert "expected a checkpoint folder or a model at" in line
    assert "found neither" in line
    hub.add(NAME, sharded)
    assert "found no 'nightly'" in refused(NAME, "--revision", "nightly")


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_refused_by_the_server(status: int, hub: Hub, refused: Refused) -> None:
    hub.status = status
    line = refused(NAME)
    assert "expected" in line
    assert "log in" in line or "login" in line if status in {401, 403} else f"{status}" in line


def test_no_room(
    hub: Hub, sharded: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, sharded)
    size = sum((sharded / shard).stat().st_size for shard in SHARDS)
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(avl_hub.shutil, "disk_usage", lambda _: usage)
    assert f"expected {size + avl_hub.SLACK} free bytes" in refused(NAME)
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)], ids=str)
def test_only_pickles(
    arguments: tuple[str, ...], hub: Hub, sharded: Path, tmp_path: Path, refused: Refused
) -> None:
    folder = shutil.copytree(sharded, tmp_path / "pickled")
    for path in folder.glob("model*"):
        path.unlink()
    hub.add(NAME, folder)
    assert "found only pytorch_model.bin" in refused(NAME, *arguments)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    hub.add("some/other", folder)
    assert "pytorch_model.bin.index.json" in refused("some/other", *arguments)
    assert "pytorch_model.bin" not in hub.fetched()


def test_a_shard_that_the_hub_lacks(hub: Hub, sharded: Path, refused: Refused) -> None:
    hub.add(NAME, sharded)
    del hub.repositories[NAME][COMMIT][SHARDS[1]]
    assert f"expected {SHARDS[1]}" in refused(NAME)


def test_a_variant_is_refused_before_weights_are_fetched(
    hub: Hub, sharded: Path, tmp_path: Path, refused: Refused
) -> None:
    folder = shutil.copytree(sharded, tmp_path / "variant")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {"model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(config))
    hub.add(NAME, folder)
    assert "gpt2" in refused(NAME)
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]


@pytest.mark.parametrize("name", ["a b/c", "a/b--c", "a/", "/a/b", "one", "a/b/c", "./a"])
def test_names_that_are_none(name: str, hub: Hub, refused: Refused) -> None:
    line = refused(name)
    assert "hub id ORG/NAME" in line
    assert hub.requests == []


def test_revision_of_a_folder(master: Path, refused: Refused) -> None:
    assert "leave --revision out" in refused(master, "--revision", "main")


def test_code_in_a_checkpoint_never_runs(hub: Hub, sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForImageTextToText": "modeling_own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    mark = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w')")
    hub.add(NAME, folder)
    for model in (NAME, str(folder)):
        assert main(["--model", model, "--dry-run"]) == 0
        load_family(open_checkpoint(model), torch.float32).reference()
    assert not mark.exists()
    assert "modeling_own.py" not in hub.fetched()


def test_the_environment_names_the_hub(sharded: Path, tmp_path: Path) -> None:
    """As users set it up, in a process of its own."""
    with serve() as hub:
        hub.add(NAME, sharded)
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        code = (
            "from avl_export.checkpoint.checkpoint import open_checkpoint; "
            f"print(len(open_checkpoint({NAME!r}).tensors))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    assert int(done.stdout) == len(open_checkpoint(str(sharded)).tensors)
    assert [line.split()[:2] for line in done.stderr.splitlines() if "avl-export" in line] == [
        ["avl-export:", "fetching"]
    ] * 3

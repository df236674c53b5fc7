"""An export that fails midway leaves nothing, and an older package as it was."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avl_export import cli, export, progress
from avl_runtime.machine.installation import install_extra
from avl_runtime.package.package import load_package


def run(model: Path, out: Path, *arguments: str) -> int:
    return cli.main(["--model", str(model), "--out", str(out), "--no-check", *arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FAILURES: dict[str, tuple[BaseException, int, str]] = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left"),
    "stopped": (KeyboardInterrupt(), 130, "stopped"),
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("place", ["out", "deep/er/out"])
def test_failure_midway(
    failure: str,
    older: bool,
    place: str,
    master: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error, status, part = FAILURES[failure]
    out = tmp_path / place
    if older:
        assert run(master, out) == 0
    before = snapshot(tmp_path)
    step = progress.Progress.step

    def fail(self: progress.Progress, label: str, amount: int = 1) -> None:
        if label.startswith("copying"):
            raise error
        step(self, label, amount)

    monkeypatch.setattr(progress.Progress, "step", fail)
    capsys.readouterr()
    assert run(master, out, "--copy") == status
    assert snapshot(tmp_path) == before
    assert older or list(tmp_path.iterdir()) == []
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("avl-export: ")
    assert part in last


@pytest.mark.usefixtures("traced")
def test_no_room_for_a_copy(
    master: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    usage = export.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: usage)
    assert "free bytes for --copy" in refused(master, "--copy", "--no-check")


@pytest.mark.usefixtures("traced")
def test_replaces_a_package_and_copies(master: Path, tmp_path: Path) -> None:
    assert run(master, tmp_path / "out") == 0
    assert load_package(tmp_path / "out").manifest.weights.folder == str(master.resolve())
    assert run(master, tmp_path / "out", "--copy", "--policy", "avl:keep=0.5") == 0
    package = load_package(tmp_path / "out")
    assert package.manifest.weights.folder is None
    assert package.manifest.default_policy.startswith("avl")
    package.check_shards()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_failed_check_writes_nothing(
    master: Path,
    tmp_path: Path,
    traced: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise export.ExportError("expected equal logits; report it")

    monkeypatch.setattr(export, "check_package", fail)
    assert cli.main(["--model", str(master), "--out", str(tmp_path / "out")]) == 1
    assert list(tmp_path.iterdir()) == []
    assert "equal logits" in capsys.readouterr().err


def test_a_model_repository_beside_the_package(
    master: Path, tmp_path: Path, traced: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(master), "--out", str(tmp_path / "out.avl"), "--no-check"]
    words += ["--triton", str(tmp_path / "models")]
    model = tmp_path / "models" / "out"
    assert cli.main([*words, "--dry-run"]) == 0
    assert f"would add: {model}, a model for Triton" in capsys.readouterr().out
    assert [*tmp_path.iterdir()] == []
    assert cli.main([*words, "--triton", str(tmp_path / "out.avl" / "models")]) == 1
    assert "expected a folder outside of packages" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["triton"] == str(model)
    assert f'"{tmp_path / "out.avl"}"' in (model / "config.pbtxt").read_text()
    for more in (["--force"], ["--dry-run"]):
        assert cli.main([*words, *more]) == 1
        assert "expected a folder without a model out, found one" in capsys.readouterr().err


def test_dry_run_writes_nothing(
    master: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(master), "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(arguments) == 0
    assert "vision.onnx" in capsys.readouterr().out
    assert cli.main([*arguments, "--json", "--copy", "--split", "1,2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["split"] == [1, 2]
    assert report["copied_bytes"] > report["weight_bytes"]
    assert "model.safetensors" in report["files"]
    assert list(tmp_path.iterdir()) == []


def test_missing_extra(
    master: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    lacking = (
        f"expected the packages of the export extra, found no torch; run: {install_extra('export')}"
    )
    assert lacking in refused(master)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--split", "two"], ["--dtype", "fp8"], ["--nonsense"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err

"""What lies where a package shall go: a package is replaced, everything else is somebody's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avl_export import cli, progress
from avl_export.plan import place
from avl_runtime.package.package import MANIFEST, load_package

Refused = Callable[..., str]
ENGINES = "engines/tensorrt-10.9.0-sm89"
DEAD = 2**22 + 1  # no process has this number: Linux gives out none above 2**22


@pytest.fixture(autouse=True)
def _traced(traced: None) -> None:
    """These tests are about files."""


@pytest.fixture
def out(master: Path, tmp_path: Path) -> Path:
    """An exported package."""
    assert export(master, tmp_path / "out") == 0
    return tmp_path / "out"


def export(model: Path, out: Path | str, *arguments: str) -> int:
    return cli.main(["--model", str(model), "--out", str(out), "--no-check", *arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def add_engines(package: Path, graph: str = "vision.onnx") -> None:
    """A built set, as avl-build enters it."""
    path = package / MANIFEST
    manifest: dict[str, Any] = json.loads(path.read_text())
    folder = package / ENGINES
    folder.mkdir(parents=True)
    (folder / "vision.engine").write_bytes(b"engine" * 1000)
    file = {"graph": graph, "path": f"{ENGINES}/vision.engine", "size": 6000, "sha256": "0" * 64}
    limits = {"decode_rows": 8, "prompt_rows": 256, "cache_rows": 4096, "batch": 1}
    manifest["engines"].append(
        {
            "backend": "tensorrt",
            "version": "10.9.0",
            "targets": [89],
            "cuda": 12,
            "platform": "linux-x86_64",
            "plugins": True,
            "row_block": 1,
            "limits": limits,
            "files": [file],
        }
    )
    path.write_text(json.dumps(manifest))


def test_engines_and_files_are_named_and_stay(out: Path, master: Path, refused: Refused) -> None:
    add_engines(out)
    (out / "notes.txt").write_text("mine")
    (out / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        (out / "pictures" / name).write_bytes(b"picture")
    (out / ENGINES / "log.txt").write_text("took an hour")
    before = snapshot(out)
    line = refused(master, "--no-check")
    assert f"{ENGINES} (engines, 5.86 KiB)" in line
    assert f"{ENGINES}/log.txt (12 B)" in line
    assert "notes.txt (4 B) and 1 more" in line
    assert "--force" in line
    assert snapshot(out) == before


def test_force_says_what_it_removed(
    out: Path, master: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = set(snapshot(out))
    add_engines(out)
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert export(master, out, "--force", "--json") == 0
    said = capsys.readouterr()
    removed = [f"{ENGINES} (engines, 5.86 KiB)", "notes.txt (4 B)"]
    assert json.loads(said.out)["removed"] == removed
    assert f"removed from {out}: {', '.join(removed)}" in said.err.splitlines()[-1]
    assert set(snapshot(out)) == written
    assert load_package(out).manifest.engines == ()


@pytest.mark.parametrize("how", [(), ("--copy",)])
def test_a_package_alone_is_replaced_in_silence(
    how: tuple[str, ...], out: Path, master: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert export(master, out, *how, "--policy", "avl:keep=0.5") == 0
        assert "removed" not in capsys.readouterr().err
    assert load_package(out).manifest.default_policy.startswith("avl")


def test_force_is_for_packages(master: Path, tmp_path: Path, refused: Refused) -> None:
    """A mistyped --out never costs a folder of somebody's."""
    home = tmp_path / "out"
    home.mkdir()
    (home / "thesis.tex").write_text("years")
    assert "thesis.tex" in refused(master, "--force")
    (home / MANIFEST).write_text(json.dumps({"what": "a file of another program"}))
    assert "choose another --out" in refused(master, "--force")
    assert (home / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_manifest_tells_nothing_of_the_files(
    text: bytes, out: Path, master: Path, refused: Refused
) -> None:
    (out / MANIFEST).write_bytes(text)
    assert "tokenizer.json" in refused(master) or "and" in refused(master)
    assert export(master, out, "--force") == 0
    load_package(out)


@pytest.mark.parametrize("version", [3, 99])
def test_packages_of_other_versions_are_replaced(version: int, out: Path, master: Path) -> None:
    """'Export again' is what their refusals advise."""
    manifest = json.loads((out / MANIFEST).read_text())
    kept = {"format_version": version, "new": [1], "files": manifest["files"]}
    (out / MANIFEST).write_text(json.dumps(kept | {"weights": manifest["weights"]}))
    assert export(master, out) == 0
    load_package(out)


def test_a_file(master: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").write_text("mine")
    assert "found a file" in refused(master, "--force")
    assert (tmp_path / "out").read_text() == "mine"


def test_below_a_file(master: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert export(master, tmp_path / "file" / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"found a file at {tmp_path / 'file'}" in line


def test_where_nothing_may_be_written(
    master: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before minutes are spent; root may write everywhere, so the system's answer is put in."""
    asked = []
    monkeypatch.setattr(place.os, "access", lambda path, _: asked.append(path))
    assert f"found one that may not be written at {tmp_path};" in refused(master)
    (tmp_path / "out").mkdir()
    assert f"at {tmp_path / 'out'};" in refused(master)
    assert asked == [tmp_path, tmp_path / "out"]


def test_a_place_as_shells_leave_it(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["--model", str(master), "--out=~/out", "--no-check"]) == 0
    load_package(tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        cli.main(["--model", str(master), "--out", ""])
    assert stop.value.code == 2


def test_links(master: Path, tmp_path: Path, refused: Refused) -> None:
    """A link to another disk stays, what it leads to is what counts."""
    target, link = tmp_path / "disk" / "package", tmp_path / "out"
    link.symlink_to(target)
    assert export(master, link) == 0
    (target / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(master)
    assert export(master, link, "--force") == 0
    assert link.is_symlink()
    assert not (target / "notes.txt").exists()


def test_a_link_to_itself(master: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "out")
    assert "leads nowhere" in refused(master)


def test_a_linked_folder_is_not_emptied(out: Path, master: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "mine.txt").write_text("mine")
    (out / "disk").symlink_to(tmp_path / "disk")
    assert export(master, out) == 1
    assert export(master, out, "--force") == 0
    assert (tmp_path / "disk" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["the folder", "its parent", "a link to it"])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_the_checkpoints_own_folder(
    place: str, force: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(checkpoint)
    out = {"the folder": checkpoint, "its parent": tmp_path, "a link to it": tmp_path / "link"}
    for folder in (checkpoint, tmp_path):
        (folder / MANIFEST).write_text('{"format_version": 5}')
    before = snapshot(tmp_path)
    assert export(checkpoint, out[place], *force) == 1
    assert snapshot(tmp_path) == before


def test_a_package_inside_a_package(out: Path, master: Path, refused: Refused) -> None:
    assert export(master, out / "inner.avl") == 0
    assert "inner.avl/ (" in refused(master)
    assert load_package(out / "inner.avl")


@pytest.mark.parametrize("full", [False, True])
def test_the_working_directory(
    full: bool, master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the folder that shells and mounts know."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    number = here.stat().st_ino
    for _ in range(2 if full else 1):
        assert export(master, ".") == 0
    assert Path.cwd() == here
    assert here.stat().st_ino == number
    load_package(".")


def test_no_more_than_the_folder_itself_is_written(master: Path, tmp_path: Path) -> None:
    """As in a container, where a mount is the user's and the folder around it is not."""
    out = tmp_path / "around" / "mount"
    out.mkdir(parents=True)
    before = (
        out.parent.stat().st_mtime_ns
    )  # which changes with what lies there, if only for a moment
    assert export(master, out) == 0
    assert export(master, out, "--copy") == 0
    assert out.parent.stat().st_mtime_ns == before


@pytest.mark.parametrize("step", range(0, 12, 3))
def test_an_exchange_that_fails_is_taken_back(
    step: int, out: Path, master: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(out)
    rename, calls = Path.rename, [0]

    def fail(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == step + 1:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(place.Path, "rename", fail)
        assert export(master, out, "--copy") == 130
    assert snapshot(out) == before


def test_what_comes_meanwhile_stays(
    out: Path, master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = progress.Progress.step
    for name in ("out", "new"):

        def come(self: progress.Progress, label: str, amount: int = 1, name: str = name) -> None:
            if label.startswith("copying"):
                (tmp_path / name).mkdir(exist_ok=True)
                (tmp_path / name / "late.txt").write_text("mine")
            step(self, label, amount)

        monkeypatch.setattr(progress.Progress, "step", come)
        assert export(master, tmp_path / name, "--copy") == 1
        assert (tmp_path / name / "late.txt").read_text() == "mine"
    assert set(snapshot(tmp_path / "new")) == {"late.txt"}


def test_what_killed_exports_left_is_swept(out: Path, master: Path, tmp_path: Path) -> None:
    inside, beside = out / f".package.partial-{DEAD}", tmp_path / f".new.partial-{DEAD}"
    for folder in (inside, beside):
        folder.mkdir()
        (folder / "vision.onnx").write_bytes(b"half")
    assert export(master, out) == 0
    assert export(master, tmp_path / "new") == 0
    assert not inside.exists()
    assert not beside.exists()


def test_another_export_that_runs_is_left_alone(out: Path, master: Path, refused: Refused) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (out / f".package.partial-{other.pid}").mkdir()
        (out / f".package.partial-{other.pid}" / "vision.onnx").write_bytes(b"half")
        assert f".package.partial-{other.pid}/" in refused(master)
        assert other.stdin is not None
        other.stdin.close()


def test_a_dry_run_says_what_would_be_replaced(
    out: Path, master: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "notes.txt").write_text("mine")
    assert export(master, out, "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)["replaces"]
    assert found == {"package": True, "others": ["notes.txt (4 B)"]}
    assert export(master, out, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "would replace the package there" in said
    assert "needs --force, which would also remove notes.txt" in said
    assert (out / "notes.txt").exists()


def test_names_are_told_on_one_short_line(out: Path, master: Path, refused: Refused) -> None:
    for name in ("x" * 250, "two\nlines\x1b[31m"):
        (out / name).write_text("mine")
    line = refused(master)
    assert len(line) < 500
    assert "\x1b" not in line
    assert os.sep not in line.split("found ")[1].split(";")[0]

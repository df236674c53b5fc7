"""A build that fails or is stopped leaves nothing, and older engines as they were."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avl_runtime.cli import build as cli
from avl_runtime.engines import run
from avl_runtime.engines.jobs import Outcome
from avl_runtime.engines.options import BuildError
from avl_runtime.engines.plan import Plan
from avl_runtime.package.package import load_package
from avl_runtime.package.staging import PARTIAL

pytest.importorskip("tensorrt_rtx")
ARGUMENTS = ["--backend", "tensorrt-rtx"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """Builds engines of a few bytes; given an error, the second one fails after it has begun."""

    def use(error: BaseException | None) -> None:
        def fake(plan: Plan, graph: str, out: Path | None) -> run.Built:
            assert out is not None
            data = f"{plan.limits} {graph}".encode()
            out.write_bytes(data)
            if error is not None and graph == "decoder.0.onnx":
                raise error
            outcome = Outcome(
                operators=(),
                checked=True,
                layers=(),
                unsupported=(),
                weight_bytes=1,
                int4_bytes=0,
                scratch=0,
                row_block=8,
                size=len(data),
                sha256="0" * 64,
                seconds=0.0,
                peak_rss_bytes=1,
            )
            return run.Built(
                graph, outcome, run.estimate(plan.package.manifest, graph, 1, 0, plan.limits)
            )

        monkeypatch.setattr(run, "_work", fake)

    return use


FAILURES: dict[str, tuple[BaseException, int, str]] = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left"),
    "stopped": (KeyboardInterrupt(), 130, "stopped, no engine was left behind"),
    "refused": (BuildError("expected another graph"), 1, "expected another graph"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("older", [False, True])
def test_a_failure_midway(
    fp16: Path, work: Any, failure: str, older: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    error, status, part = FAILURES[failure]
    if older:
        work(None)
        assert cli.main([str(fp16), *ARGUMENTS]) == 0
        assert len(load_package(fp16).manifest.engines) == 1
    before = snapshot(fp16.parent)
    work(error)
    capsys.readouterr()
    assert cli.main([str(fp16), *ARGUMENTS, "--max-prompt", "7"]) == status
    assert snapshot(fp16.parent) == before
    assert (fp16 / "engines").exists() == older
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("avl-build: ")
    assert part in last


def test_a_build_replaces_its_like_and_keeps_others(fp16: Path, work: Any) -> None:
    work(None)
    assert cli.main([str(fp16), *ARGUMENTS]) == 0
    assert cli.main([str(fp16), *ARGUMENTS, "--compute-capability", "8.9"]) == 0
    assert cli.main([str(fp16), *ARGUMENTS, "--max-prompt", "7"]) == 0
    made = load_package(fp16).manifest.engines
    assert {(one.targets, one.limits.prompt_rows) for one in made} == {((), 7), ((89,), 1024)}
    folders = {path.name for path in (fp16 / "engines").iterdir()}
    assert folders == {Path(one.folder).name for one in made}
    assert not list(fp16.glob(".*"))


def test_a_manifest_that_cannot_be_written(
    fp16: Path, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(None)
    assert cli.main([str(fp16), *ARGUMENTS]) == 0
    before = snapshot(fp16.parent)
    replace = Path.replace

    def fail(self: Path, target: Any) -> Path:
        if Path(target).name == "avl.json":
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    assert cli.main([str(fp16), *ARGUMENTS, "--max-prompt", "7"]) == 1
    assert snapshot(fp16.parent) == before


def test_a_package_exported_anew_meanwhile(
    fp16: Path, work: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work(None)
    fake = run._work

    def change(plan: Plan, graph: str, out: Path | None) -> run.Built:
        manifest = json.loads((fp16 / "avl.json").read_text())
        (fp16 / "avl.json").write_text(json.dumps({**manifest, "default_policy": "avl"}))
        return fake(plan, graph, out)

    monkeypatch.setattr(run, "_work", change)
    assert cli.main([str(fp16), *ARGUMENTS]) == 1
    assert "the package that the build began with" in capsys.readouterr().err
    assert not (fp16 / "engines").exists()


def test_what_a_killed_build_left_is_swept_away(fp16: Path, work: Any) -> None:
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    gone = subprocess.run(command, capture_output=True, check=True)
    dead, alive = int(gone.stdout), os.getppid()
    for number in (dead, alive):
        stage = fp16 / "engines" / f".tensorrt-rtx-1-sm80+{PARTIAL}{number}"
        stage.mkdir(parents=True)
        (stage / "vision.engine").write_bytes(b"half")
    work(None)
    assert cli.main([str(fp16), *ARGUMENTS]) == 0
    left = [path.name for path in (fp16 / "engines").iterdir() if PARTIAL in path.name]
    assert left == [f".tensorrt-rtx-1-sm80+{PARTIAL}{alive}"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_files_among_the_engines_stay(
    when: str,
    fp16: Path,
    work: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work(None)
    assert cli.main([str(fp16), *ARGUMENTS]) == 0
    (engines,) = load_package(fp16).manifest.engines
    notes = fp16 / engines.folder / "notes.txt"
    fake = run._work

    def come(plan: Plan, graph: str, out: Path | None) -> run.Built:
        assert when == "meanwhile"  # nothing is built where nothing may be replaced
        notes.write_text("took an hour")
        return fake(plan, graph, out)

    if when == "before":
        notes.write_text("took an hour")
    monkeypatch.setattr(run, "_work", come)
    assert cli.main([str(fp16), *ARGUMENTS, "--max-prompt", "7"]) == 1
    assert "found 'notes.txt'; move that elsewhere" in capsys.readouterr().err
    assert notes.read_text() == "took an hour"
    assert load_package(fp16).manifest.engines == (engines,)
    assert not list((fp16 / "engines").glob(".*"))


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "for want of memory"),
        ("import os; os.abort()", "ended with SIGABRT"),
        ("import sys; sys.exit(7)", "ended with exit status 7"),
    ],
)
def test_a_builder_that_dies(
    fp16: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    part: str,
) -> None:
    (tmp_path / "dying_worker.py").write_text(code)
    monkeypatch.setattr(run, "WORKER", "dying_worker")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = snapshot(fp16)
    assert cli.main([str(fp16), *ARGUMENTS]) == 1
    assert snapshot(fp16) == before
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_during_a_real_build(fp16: Path, number: signal.Signals) -> None:
    before = snapshot(fp16)
    command = [sys.executable, "-m", "avl_runtime.cli.build", str(fp16), *ARGUMENTS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    # The first engine's file is there as soon as it is being built.
    while not list(fp16.glob("engines/.*/*.engine")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "avl-build: stopped, no engine was left behind"
    assert snapshot(fp16) == before
    assert not (fp16 / "engines").exists()

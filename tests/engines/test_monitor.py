"""A builder's nested phases as one bar."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from avl_runtime.engines.monitor import UNITS, Phases, make_monitor
from avl_runtime.machine.progress import Progress


def test_a_phase_counts_within_the_step_of_its_parent() -> None:
    phases = Phases()
    assert phases.share() == 0
    phases.start("build", None, 4)
    assert phases.share() == 0
    phases.step("build", 0)
    assert phases.share() == 0.25
    phases.start("optimise", "build", 2)
    phases.step("optimise", 0)
    assert phases.share() == 0.25 + 0.125
    phases.start("time", "optimise", 5)
    phases.step("time", 4)
    assert phases.share() == 0.5
    phases.finish("time")
    phases.step("optimise", 1)
    phases.finish("optimise")
    phases.step("build", 3)
    assert phases.share() == 1
    assert not phases.over
    phases.finish("build")
    assert phases.over


def test_steps_of_unknown_or_endless_phases_do_no_harm() -> None:
    phases = Phases()
    phases.step("never begun", 3)
    phases.finish("never begun")
    phases.start("build", "gone", 0)
    phases.step("build", 9)
    assert phases.share() == 1


class FakeModule:
    class IProgressMonitor:
        pass


def test_the_bar_never_goes_back_and_is_drawn_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    step = Progress.step

    def record(self: Progress, label: str, amount: int = 1) -> None:
        step(self, label, amount)
        drawn.append(self.done)

    monkeypatch.setattr(Progress, "step", record)
    monitor: Any = make_monitor(FakeModule, "decoder.0.onnx")
    monitor.phase_start("build", None, 2)
    for part in range(2):
        monitor.phase_start("part", "build", 5000)
        assert all(monitor.step_complete("part", number) for number in range(5000))
        monitor.phase_finish("part")
        assert monitor.step_complete("build", part)
    monitor.phase_finish("build")
    assert drawn == sorted(drawn)
    assert drawn[-1] == UNITS
    assert len(drawn) <= UNITS + 1


def test_the_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monitor: Any = make_monitor(FakeModule, "decoder.0.onnx")
    monitor.phase_start("build", None, 4)
    monitor.step_complete("build", 0)
    monitor.phase_start("tune", "build", 2)
    monitor.step_complete("tune", 0)
    monitor.phase_finish("tune")
    monitor.step_complete("build", 3)
    monitor.phase_finish("build")
    lines = capsys.readouterr().err.split("\r\x1b[K")
    assert [line[-23:] for line in lines[1:-1]] == [
        "  25 % decoder.0.onnx".rjust(23, "░"),
        "  37 % decoder.0.onnx".rjust(23, "░"),
        " 100 % decoder.0.onnx".rjust(23, "█"),
    ]
    assert [line.count("█") for line in lines[1:-1]] == [6, 8, 24]
    assert lines[-1] == ""  # the line is left clean


def test_elsewhere_a_graph_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    monitor: Any = make_monitor(FakeModule, "decoder.0.onnx")
    monitor.phase_start("build", None, 9)
    assert all(monitor.step_complete("build", number) for number in range(9))
    monitor.phase_finish("build")
    assert capsys.readouterr().err == "avl-build: decoder.0.onnx\n"


def test_a_builder_that_reports_from_several_threads() -> None:
    monitor: Any = make_monitor(FakeModule, "decoder.0.onnx")
    monitor.phase_start("build", None, 8)

    def work(number: int) -> None:
        monitor.phase_start(f"part {number}", "build", 500)
        for step in range(500):
            assert monitor.step_complete(f"part {number}", step)
        monitor.phase_finish(f"part {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert monitor.step_complete("build", 7)
    monitor.phase_finish("build")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_the_bar_of_a_real_build(fp16: Path) -> None:
    """TensorRT-RTX tells its monitor of progress while it builds, graph after graph."""
    pytest.importorskip("tensorrt_rtx")
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "avl_runtime.cli.build", str(fp16)]
    with subprocess.Popen(
        [*command, "--backend", "tensorrt-rtx"], stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # EIO once the last writer is gone
            while piece := os.read(ours, 1 << 16):
                drawn += piece
        assert process.wait() == 0
    os.close(ours)
    shown: dict[str, list[int]] = {}
    for share, graph in re.findall(r"(\d+) % (\S+)", drawn.decode()):
        shown.setdefault(graph, []).append(int(share))
    assert list(shown) == ["vision.onnx", "decoder.0.onnx", "decoder.1.onnx"]
    for shares in shown.values():
        assert shares == sorted(shares)
        assert len(set(shares)) > 2
        assert shares[-1] == 100

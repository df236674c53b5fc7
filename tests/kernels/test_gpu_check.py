"""`scripts/gpu_check.py` from end to end, on a stand-in for a GPU and in small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from interpreter import interpreters
from kernel_sweep import FORMS


@pytest.fixture
def alone() -> Iterator[ProcessPoolExecutor]:
    """A process for one run, which changes modules in it."""
    with interpreters(1) as pool:
        yield pool


def run(path: Path, wrong_scale: bool) -> tuple[str, str | None, list[str]]:
    """What the script prints, its error, and the kernels it launched through the driver."""
    from torch.nn import attention

    import gpu_check
    import gpu_speed
    import gpu_timing
    import kernel_cases
    from kernel_cases import Attention
    from kernels import stand_in

    driver = stand_in.install()
    gpu_check.shutil.which = lambda _: None  # no compute-sanitizer
    for module in (gpu_check, gpu_speed, gpu_timing):
        module.DEVICE = "cpu"
    small = {"image": 10, "text": 8, "prompt": 48, "heads": 8, "layers": 2, "batch": 1}
    gpu_speed.MODEL = gpu_speed.Model(**small)
    gpu_timing.COPIED = 1 << 10
    gpu_speed.FLASH = attention.SDPBackend.MATH
    gpu_check.Effort = lambda seeds: gpu_check.SMALL
    few: dict[str, tuple[int, ...]] = {"update_in_place": (1, 1, 16, 5)}
    few |= {"selection_with_ties": (20, 30, 1024), "text_evictions": (12,)}
    gpu_check.MOVED = [(check, few[check.__name__]) for check in dict(gpu_check.MOVED)]
    assert len(gpu_check.random_cases(gpu_check.SMALL)) == 48
    assert len(gpu_check.large_cases()) == 16
    shape = (64, 1, 2, 1, 40, 5, (40,), (5,))
    gpu_check.random_cases = lambda _: [Attention(form, "bfloat16", *shape) for form in FORMS]
    gpu_check.large_cases = lambda: [
        Attention("fused_decode", "bfloat16", *shape, constants={"BN": 16})
    ]
    stable = gpu_check.Attention
    gpu_check.Attention = lambda form, dtype, *_, **more: stable(form, dtype, *shape, **more)
    if wrong_scale:
        kernel_cases.scale_bits = lambda scale: 0
        gpu_check.check_moves = lambda *_: []
    printed, error = StringIO(), None
    with redirect_stdout(printed):
        try:
            options = ["--no-speed"] if wrong_scale else []
            gpu_check.main(["--json", str(path), *options])
        except SystemExit as stop:
            error = str(stop)
    return printed.getvalue(), error, driver.launched


def test_everything_is_checked_and_timed(tmp_path: Path, alone: ProcessPoolExecutor) -> None:
    printed, error, launched = alone.submit(run, tmp_path / "gpu.json", False).result()
    assert error is None, printed
    report: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    for way in ("triton", "ptx"):
        found = report["correctness"][way]
        assert set(found["worst"]) == {f"{form} bfloat16" for form in FORMS}
        assert found["failed"] == found["moves"] == found["unstable"] == []
    assert report["correctness"]["triton"]["worst"]["fused_decode bfloat16"]["cases"] == 2
    # Packaged tiles are as they are.
    assert report["correctness"]["ptx"]["worst"]["fused_decode bfloat16"]["cases"] == 1
    families = {name.split("-")[0] for name in launched}
    assert families == {
        *FORMS,
        "update",
        "select_core",
        "select_text",
    }
    judged = {row["name"] for row in report["speed"] if row["wanted"]}
    for kind in ("MHA", "GQA 8"):
        assert f"decode, batch 1, {kind}, dense: share of copy" in judged
        assert f"decode, batch 1, {kind}, 10 % core: share of copy" in judged
        assert f"decode, batch 1, {kind}: 10 % core over dense" in judged
        assert f"prefill, 48 rows, {kind}: torch flash over ours" in judged
        assert f"prefill, 48 rows, {kind}: mass over the rest" in judged
    assert "decode, batch 1, GQA 8, dense: torch flash over ours" in judged
    assert "refresh, 2 layers: select and update over attention" in judged
    assert "SHORT" in printed  # times mean nothing here: some are short of any figure
    assert "ptx     all right" in printed
    assert "not run" in report["sanitizer"]


def test_wrong_results_are_reported(tmp_path: Path, alone: ProcessPoolExecutor) -> None:
    printed, error, _ = alone.submit(run, tmp_path / "gpu.json", True).result()
    assert error == "error: some results are wrong"
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert len(report["correctness"]["triton"]["failed"]) == 7
    assert "triton  wrong: 7" in printed

"""What cannot be quantized is refused with one sentence, and nothing is left behind."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avl_export import cli, export, progress
from avl_export.options import Options, OptionsError
from avl_export.plan.plan import make_plan
from avl_runtime.execute.protocol import BackendError
from avl_runtime.model import LVLM
from export.checkpoints import make_config, write_sparse
from quantize.conftest import Exports

Refused = Callable[..., str]
NARROW = ("--quantize", "int4", "--block-size", "32")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ("--quantize", "int4", "--block-size", "128"),
            ("64 inputs are no multiple of 128", "--block-size 32"),
        ),
        ((*NARROW, "--dtype", "bf16", "--check"), ("--no-check",)),
    ],
    ids=str,
)
def test_options(
    arguments: tuple[str, ...], parts: tuple[str, ...], small: Path, refused: Refused
) -> None:
    line = refused(small, *arguments)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--block-size", "32"), ("--block-size", "--quantize")),
        (("--quantize-also", "vision"), ("--quantize-also", "--quantize")),
        (("--quantize-method", "hqq"), ("--quantize-method", "--quantize")),
        ((*NARROW, "--quantize-also", "decoder"), ("'decoder'", "always")),
    ],
    ids=str,
)
def test_options_that_are_wrong_on_any_checkpoint(
    arguments: tuple[str, ...], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(list(arguments))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("avl-export: error: ")
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    "options", [{"block_size": 48}, {"quantize_method": "gguf"}, {"quantize_also": ("all",)}]
)
def test_options_from_python(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="expected"):
        Options("avl-tiny", tmp_path / "out", quantize="int4", **options)  # type: ignore[arg-type]


def test_parts_that_do_not_fit_stay(small: Path, tmp_path: Path) -> None:
    """CLIP's 32 columns do not fit blocks of 64, which its 64 do."""
    out = tmp_path / "out"
    fitting = {"quantize": "int4", "block_size": 32, "quantize_also": ("vision", "embedding")}
    plan = make_plan(Options(str(small), out, **fitting))  # type: ignore[arg-type]
    assert plan.report()["quantization"]["kept"] == {}
    assert plan.embedding.dtype == "I4"


def edited(small: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(small, folder)
    tensors = load_file(small / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(
    value: float, small: Path, tmp_path: Path, refused: Refused, traced: None
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if key.endswith("down_proj.weight"))
        tensors[key][5, 7] = value

    folder = edited(small, tmp_path / "spoiled", spoil)
    line = refused(folder, *NARROW, "--no-check")
    assert "finite" in line
    assert "down_proj" in line


def test_other_weights_beyond_fp16(
    small: Path, tmp_path: Path, refused: Refused, traced: None
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[next(key for key in tensors if key.endswith("lm_head.weight"))][0, 0] = 1e6

    folder = edited(small, tmp_path / "spoiled", spoil)
    line = refused(folder, *NARROW, "--no-check", "--dtype", "fp16")
    assert "lm_head" in line
    assert "fp16's range" in line


FAILURES: dict[str, tuple[BaseException, int]] = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), 1),
    "stopped": (KeyboardInterrupt(), 130),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("stage", ["quantizing", "copying other"])
def test_failure_midway_leaves_nothing(
    failure: str, stage: str, small: Path, tmp_path: Path, traced: None, monkeypatch
) -> None:
    error, status = FAILURES[failure]
    step = progress.Progress.step

    def fail(self: progress.Progress, label: str, amount: int = 1) -> None:
        if label.startswith(stage):
            assert list(tmp_path.rglob("weights.int4.safetensors"))
            raise error
        step(self, label, amount)

    monkeypatch.setattr(progress.Progress, "step", fail)
    arguments = ["--model", str(small), "--out", str(tmp_path / "a/out"), "--no-check", *NARROW]
    assert cli.main(arguments) == status
    assert list(tmp_path.iterdir()) == []


def test_no_room(small: Path, refused: Refused, monkeypatch) -> None:
    usage = export.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: usage)
    assert "free bytes for quantized weights" in refused(small, *NARROW, "--no-check")


def test_bf16_on_the_cpu(small: Path, exports: Exports) -> None:
    exported = exports(small, quantize="int4", block_size=32, dtype="bf16", check=False)
    with pytest.raises(BackendError, match=r"--dtype fp32.*--quantize int4"):
        LVLM.load(exported.folder, backend="ort-cpu")


def test_a_large_bf16_checkpoint_keeps_its_dtype_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 9}
    folder = write_sparse(tmp_path / "model", make_config(text=large), "BF16")
    arguments = ["--model", str(folder), "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "computes in bf16" in text
    assert "--dtype fp32 or --quantize" in text
    assert cli.main([*arguments, "--quantize", "int4"]) == 0
    assert "computes in fp32" in capsys.readouterr().out


def test_dry_run(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(small), "--out", str(tmp_path / "out"), "--dry-run", *NARROW]
    assert cli.main([*arguments, "--quantize-also", "lm_head,vision"]) == 0
    text = capsys.readouterr().out
    assert "weights of decoder, lm_head, vision to int4 (clip, blocks of 32)" in text
    assert "weights.int4.safetensors" in text
    assert list(tmp_path.iterdir()) == []

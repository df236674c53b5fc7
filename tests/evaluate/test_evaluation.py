"""avl-eval end to end on avl-tiny, its data files, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.cli import eval as command
from avl_runtime.evaluate import CaseError, measure, read_cases, task_cases
from avl_runtime.evaluate.cost import decode_flops, prefill_flops
from avl_runtime.evaluate.measure import forced_logits
from avl_runtime.evaluate.report import CURVES, curve_of
from avl_runtime.manifest import Dims
from avl_runtime.tasks import sample

VICUNA_7B = Dims(4096, 11008, 32, 32, 32, 128, 32000, 4096, 1)


def test_flops_of_a_known_model() -> None:
    n, d, m = 640, 4096, 11008
    layer = 4 * n * d * d + 2 * n * n * d + 3 * n * d * m
    assert prefill_flops(VICUNA_7B, [n] * 32) == 32 * layer
    # FastV's K = 2, R = 50 % of 576 image tokens: the paper reports 55 % of the arithmetic.
    kept = n - 288
    share = prefill_flops(VICUNA_7B, [n, n, *[kept] * 30]) / (32 * layer)
    assert share == pytest.approx(0.57, abs=0.02)
    step = 4 * d * d + 2 * 641 * d + 3 * d * m
    assert decode_flops(VICUNA_7B, [640] * 32) == 32 * step


def test_forced_logits_are_those_of_generating_the_same_reply(tiny: LVLM) -> None:
    asked = sample("caption", "held-out", 3)
    prompt = tiny.processor.encode(asked.prompt, [asked.image])
    for policy in ("dense", "avl", "fastv"):
        result = tiny.generate(
            asked.prompt, [asked.image], policy=policy, max_new_tokens=12, return_logits=True
        )
        forced = forced_logits(tiny.engine, prompt, parse(policy).plan(), result.token_ids)
        np.testing.assert_allclose(forced, result.logits, atol=1e-5)


def test_dense_does_not_diverge_and_a_kv_only_policy_keeps_the_first_token(tiny: LVLM) -> None:
    rows = [m.row() for m in measure(tiny, ["dense", "avl:keep=0.1"], task_cases("ocr", 2))]
    dense, avl = rows
    assert dense["divergence"] == 0 and dense["flops"] == 1 and dense["kv"] == 1
    assert avl["first_token"] == 1 and avl["divergence"] > 0
    assert avl["image_kv"] == pytest.approx(14 / 144, abs=1e-4) and avl["flops"] < 1


def test_command_writes_json_plot_and_table(tiny: LVLM, tmp_path: Path, capsys) -> None:
    report, picture = tmp_path / "out.json", tmp_path / "out.png"
    arguments = [str(tiny.package.folder), "--samples", "1", "--tasks", "vqa"]
    arguments += ["--policies", "dense,avl:keep=0.5,core=0.1,fastv"]
    assert command.main([*arguments, "--json", str(report), "--plot", str(picture)]) == 0
    rows = json.loads(report.read_text())["policies"]
    assert [row["policy"] for row in rows] == ["dense", "avl:core=0.1", "fastv"]
    assert Image.open(picture).width > 800
    assert capsys.readouterr().out.count("\n") == 5


def test_own_data(tiny: LVLM, tmp_path: Path, capsys) -> None:
    asked = sample("vqa", "held-out", 1)
    asked.image.save(tmp_path / "a.png")
    case = {"images": ["a.png"], "prompt": asked.prompt, "answers": [asked.answer]}
    lines = [json.dumps({**case, "metric": metric}) for metric in ("exact", "anls", "f1")]
    (tmp_path / "cases.jsonl").write_text("\n".join(lines))
    arguments = [str(tiny.package.folder), "--data", str(tmp_path / "cases.jsonl")]
    assert command.main([*arguments, "--policies", "dense"]) == 0
    out = capsys.readouterr().out
    assert "exact" in out and "anls" in out and "f1" in out


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        json.dumps({"images": [], "prompt": "x", "answers": ["y"]}),
        json.dumps({"images": [], "prompt": "x", "answers": [], "metric": "exact"}),
        json.dumps({"images": [], "prompt": 3, "answers": ["y"], "metric": "exact"}),
        json.dumps({"images": [], "prompt": "x", "answers": ["y"], "metric": "bleu"}),
        json.dumps({"images": ["../x.png"], "prompt": "x", "answers": ["y"], "metric": "f1"}),
        json.dumps({"images": ["none.png"], "prompt": "x", "answers": ["y"], "metric": "f1"}),
    ],
)
def test_damaged_data_names_its_line(tmp_path: Path, line: str) -> None:
    good = json.dumps({"images": [], "prompt": "x", "answers": ["y"], "metric": "f1"})
    (tmp_path / "cases.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(CaseError, match=r"cases\.jsonl:3: expected"):
        read_cases(tmp_path / "cases.jsonl")


def test_usage_and_failures(tiny: LVLM, tmp_path: Path, capsys) -> None:
    package = str(tiny.package.folder)
    for options, part in (
        (["--tasks", "chess"], "--tasks: expected caption, vqa, ocr, found 'chess'"),
        (["--policies", "dense,quick"], "--policies: expected a policy, found 'quick'"),
        (["--samples", "0"], "--samples: expected a whole number of at least 1, found '0'"),
        (["--samples", "few"], "--samples: expected a whole number of at least 1, found 'few'"),
        (["--plot", "x.txt"], "--plot: expected a file name with .png"),
        (["--data", "x.jsonl", "--tasks", "vqa"], "--tasks is for avl-tiny's own tasks"),
        (["--data", "x.jsonl", "--samples", "3"], "--samples is for avl-tiny's own tasks"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command.main([package, *options])
        assert part in capsys.readouterr().err.splitlines()[-1]
    assert command.main([str(tmp_path), "--samples", "1"]) == 1


@pytest.mark.parametrize(
    ("policy", "curve"),
    [
        ("dense", "dense"),
        ("fastv:keep=0.1", "fastv"),
        ("avl:keep=0.25,core=0.1", "avl"),
        ("avl:core=0.1", "avl, core"),
        ("avl:refresh=8", "avl, refresh"),
        ("avl:text=0.6", None),
        ("avl+fastv", None),
        ("random", "random, of fastv"),
        ("random:keep=0.1,of=avl", "random, of avl"),
    ],
)
def test_curves_of_the_plot(policy: str, curve: str | None) -> None:
    assert curve_of(str(parse(policy))) == curve
    assert curve is None or curve in CURVES

"""avl-eval end to end on avl-tiny, its data files, and its arithmetic."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.cli import eval as command
from avl_runtime.evaluate import CaseError, Measured, measure, read_cases, task_cases
from avl_runtime.evaluate.cost import decode_flops, prefill_flops
from avl_runtime.evaluate.measure import forced_logits
from avl_runtime.evaluate.records import read_record
from avl_runtime.evaluate.report import (
    CURVES,
    curve_of,
    plot,
    point_label,
    standard_error,
    table,
)
from avl_runtime.package.dims import Dims
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
        forced = forced_logits(tiny.loaded, prompt, parse(policy), result.token_ids)
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
        json.dumps({"images": ["loop.png"], "prompt": "x", "answers": ["y"], "metric": "f1"}),
        json.dumps({"images": ["a\0b"], "prompt": "x", "answers": ["y"], "metric": "f1"}),
        json.dumps({"images": ["\ud800"], "prompt": "x", "answers": ["y"], "metric": "f1"}),
        json.dumps({"images": [], "prompt": "x", "answers": ["y"], "metric": ["f1"]}),
    ],
)
def test_damaged_data_names_its_line(tmp_path: Path, line: str) -> None:
    good = json.dumps({"images": [], "prompt": "x", "answers": ["y"], "metric": "f1"})
    (tmp_path / "cases.jsonl").write_text(f"{good}\n\n{line}\n")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(CaseError, match=r"cases\.jsonl:3: expected"):
        read_cases(tmp_path / "cases.jsonl")


def test_data_of_other_editors(tmp_path: Path) -> None:
    """A byte order mark in front, and line ends of Unicode inside of a text."""
    line = {"images": [], "prompt": "a\u2028b\x85c", "answers": ["y"], "metric": "f1"}
    text = json.dumps(line, ensure_ascii=False)
    (tmp_path / "cases.jsonl").write_bytes(f"\ufeff{text}\r\n{text}\r\n".encode())
    assert [case.prompt for case in read_cases(tmp_path / "cases.jsonl")] == [line["prompt"]] * 2


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


def test_no_work_is_begun_for_nothing(tiny: LVLM, tmp_path: Path, monkeypatch, capsys) -> None:
    def work(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(command, "_measure", work)
    package = str(tiny.package.folder)
    for option, value in (("--policies", " , "), ("--tasks", ","), ("--tasks", "vqa,chess")):
        with pytest.raises(SystemExit, match="2"):
            command.main([package, option, value, "--plot", str(tmp_path / "x.png")])
        assert f"{option}: expected" in capsys.readouterr().err
    wrong = (
        [],
        [package, "--from-json", "x.json"],
        ["--from-json", "x", "--json", "y"],
        ["--from-json", "x", "--zoo"],
        ["--from-json", "x", "--no-times"],
        [package, "--zoo", "--policies", "dense"],
    )
    for more in wrong:
        with pytest.raises(SystemExit, match="2"):
            command.main(more)
    assert not list(tmp_path.iterdir())


def test_standard_errors_are_those_of_the_samples() -> None:
    measured = Measured("dense", {"vqa": [1.0, 0.0, 1.0, 1.0], "ocr": [0.5]})
    row = measured.row()
    # Of 3 in 4 right: the variance is 3/4 * 1/4 * 4/3, of their mean a fourth of that.
    assert row["standard_errors"] == {"vqa": 0.25, "ocr": None}
    assert standard_error(row) is None  # of one sample there is none
    del row["scores"]["ocr"]
    assert standard_error(row) == 0.25
    two = {"scores": {"a": 1, "b": 0}, "standard_errors": {"a": 0.03, "b": 0.04}}
    assert standard_error(two) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("policy", "curve", "label"),
    [
        ("dense", "dense", "dense"),
        ("fastv", "fastv", "0.5"),
        ("fastv:keep=0.1", "fastv", "0.1"),
        ("avl:keep=1", "avl", "1"),
        ("avl:keep=0.25,core=0.1", "avl", "0.25, core 0.1"),
        ("avl:core=0.1", "avl, core", "core 0.1"),
        ("avl:refresh=8", "avl, refresh", "refresh 8"),
        ("avl:text=0.6", "avl, text", "text 0.6"),
        ("avl:keep=0.25,text=0.6", "avl, text", "0.25, text 0.6"),
        ("avl+fastv", "avl+fastv", "avl+fastv"),
        ("avl:keep=0.25+fastv", "avl+fastv", "0.25+0.5"),
        ("random", "random, of fastv", "0.5"),
        ("random:keep=0.1,of=avl", "random, of avl", "0.1"),
    ],
)
def test_every_policy_has_a_curve_and_a_label(policy: str, curve: str, label: str) -> None:
    name = str(parse(policy))
    assert curve_of(name) == curve
    assert point_label(name) == label
    assert curve in CURVES


def row_of(policy: str, score: float, share: float, error: float | None = None) -> dict[str, Any]:
    names = ("kv", "image_kv", "flops", "first_token")
    row: dict[str, Any] = {"policy": policy, "scores": {"vqa": score}, "divergence": 0.0}
    if error is not None:
        row["standard_errors"] = {"vqa": error}
    return row | dict.fromkeys(names, share)


def drawn(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], path: Path) -> Figure:
    """What `plot` draws, as matplotlib has it when it is saved."""
    found: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **options: Any) -> None:
        found.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    plot(rows, path, "title")
    return found[0]


def test_every_policy_is_drawn_with_its_label_and_bar(monkeypatch, tmp_path: Path) -> None:
    """A chain, a text budget and a policy of someone else's alone, as what stood in no curve."""
    names = ["avl+fastv", "avl:text=0.6", "theirs:tokens=64"]
    rows = [row_of(name, 0.4 + 0.2 * i, 0.5 + 0.1 * i, 0.05) for i, name in enumerate(names)]
    figure = drawn(monkeypatch, rows, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").width > 800
    for panel in figure.axes:
        points = {
            (float(x), float(y))
            for bars in panel.containers
            for x, y in zip(*bars.lines[0].get_data(), strict=True)
        }
        assert points == {(row["kv"], row["scores"]["vqa"]) for row in rows}
        heights = [
            abs(float(y[1] - y[0]))
            for bars in panel.containers
            for segment in bars.lines[2][0].get_segments()
            for y in [segment[:, 1]]
        ]
        assert heights == pytest.approx([0.1] * 3)
        assert {text.get_text() for text in panel.texts} == {"avl+fastv", "text 0.6", "tokens 64"}
    (legend,) = figure.legends
    curves = {text.get_text() for text in legend.get_texts()}
    assert curves == {"avl+fastv", "avl, text", "theirs"}


def test_labels_lie_on_no_other_label_and_on_no_point(monkeypatch, tmp_path: Path) -> None:
    """The record in the repository, whose FLOPs are nearly the same for a dozen policies."""
    record = read_record(Path(__file__).parents[2] / "benchmarks/evaluation.json")
    rows = record["policies"]
    figure = drawn(monkeypatch, rows, tmp_path / "x.png")
    renderer = figure.canvas.get_renderer()
    for panel in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in panel.texts]
        assert len(boxes) == len(rows) >= 20
        inside = panel.get_window_extent(renderer)
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        for box in boxes:
            assert inside.x0 <= box.x0 and box.x1 <= inside.x1
            assert inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_an_earlier_record_is_drawn_again(tmp_path: Path, capsys) -> None:
    record, picture = tmp_path / "old.json", tmp_path / "x.png"
    rows = [row_of("dense", 0.9, 1.0), row_of("avl", 0.8, 0.5)]
    record.write_text(json.dumps({"model": "m", "policies": rows}))
    assert command.main(["--from-json", str(record), "--plot", str(picture)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == table(rows).splitlines()
    assert "old.json has no standard errors" in said.err
    assert Image.open(picture).width > 800
    rows[1]["standard_errors"] = {"vqa": 0.01}
    record.write_text(json.dumps({"model": "m", "policies": rows}))
    assert command.main(["--from-json", str(record)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nothing", "expected a record that avl-eval --json wrote"),
        ("[]", "expected a record that avl-eval --json wrote"),
        ('{"model": "m", "policies": []}', "expected at least one policy, found []"),
        ('{"model": "m", "policies": [7]}', "expected of policy 1 an object"),
        (
            json.dumps({"model": "m", "policies": [row_of("a", 1, 1) | {"scores": {}}]}),
            "expected of policy 1 scores by task, found {}",
        ),
        (
            json.dumps({"model": "m", "policies": [row_of("a", 1, 1) | {"kv": None}]}),
            "expected of policy 1 a number as kv, found None",
        ),
        (
            json.dumps(
                {"model": "m", "policies": [row_of("a", 1, 1), {**row_of("b", 1, 1), "flops": "x"}]}
            ),
            "expected of policy 2 a number as flops, found 'x'",
        ),
    ],
)
def test_what_is_no_record_is_refused(text: str, fault: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.json").write_text(text)
    arguments = ["--from-json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.png")]
    assert command.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line
    assert not (tmp_path / "x.png").exists()
    assert command.main(["--from-json", str(tmp_path / "none.json")]) == 1

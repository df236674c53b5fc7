"""avl-tune: rounds, intervals, what is chosen, and what it writes into a package."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from avl_runtime import LVLM
from avl_runtime.cli.tune import main
from avl_runtime.evaluate import Measured
from avl_runtime.evaluate.rows import Compared, harmless
from avl_runtime.evaluate.tune import (
    Trial,
    TuneError,
    better_half,
    chosen,
    judge,
    rounds,
    tune,
    usual,
)
from avl_runtime.package.defaults import write_defaults
from avl_runtime.package.manifest import PackageError
from avl_runtime.package.package import load_package
from avl_runtime.tasks import sample


def measured(policy: str, **scores: list[float]) -> Measured:
    count = sum(map(len, scores.values()))
    return Measured(policy, scores, [0.5] * count, flops=[0.25] * count)


def trial(policy: str, quality: float, kv: float, high: float = 1.0, low: float = 0.5) -> Trial:
    return Trial(policy, 10, quality, low, high, kv, kv)


def test_rounds_double_and_end_with_all_questions() -> None:
    assert rounds(100) == [8, 13, 25, 50, 100]
    assert rounds(8) == [8]
    assert rounds(3) == [3]


def test_quality_and_its_interval_are_those_of_the_binomial() -> None:
    right = [1.0, 0.0] * 200
    found = judge(measured("avl", exact=right), measured("dense", exact=[1.0] * 400))
    assert found.quality == 0.5
    width = 1.96 * math.sqrt(0.25 / 400)
    np.testing.assert_allclose([found.low, found.high], [0.5 - width, 0.5 + width], atol=0.01)
    assert (found.kv, found.flops, found.cases) == (0.5, 0.25, 400)


def test_quality_is_paired_and_weighs_metrics_by_their_questions() -> None:
    dense = measured("dense", exact=[1.0, 0.0, 1.0], cider=[8.0])
    found = judge(measured("avl", exact=[1.0, 0.0, 0.0], cider=[6.0]), dense)
    assert found.quality == pytest.approx(0.75 * 0.5 + 0.25 * 0.75)
    # What was dropped early is compared on the questions that it was asked.
    early = judge(measured("avl", exact=[1.0, 0.0], cider=[8.0]), dense)
    assert early.quality == 1.0


def test_answers_that_are_all_alike_leave_room_for_what_has_not_been_asked() -> None:
    dense = measured("dense", exact=[1.0] * 30)
    found = judge(measured("avl", exact=[1.0] * 30), dense)
    assert (found.quality, found.low, found.high) == (1, pytest.approx(0.9), 1)
    assert judge(dense, dense).low == 1


def test_questions_that_dense_attention_cannot_answer() -> None:
    with pytest.raises(TuneError, match="scores 0 on all of them"):
        judge(measured("avl", exact=[1.0]), measured("dense", exact=[0.0]))


def test_first_questions_that_dense_attention_cannot_answer_decide_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    def measure(_: LVLM, policies: Sequence[str], cases: Sequence[str], drift: bool) -> Any:
        nonlocal asked
        asked += len(cases)
        return [measured(name, exact=[float(asked > 8)] * len(cases)) for name in policies]

    monkeypatch.setattr("avl_runtime.evaluate.tune.measure", measure)
    cases: Any = [SimpleNamespace(task="own")] * 16
    found = tune(cast(LVLM, None), ["avl", "fastv"], cases, 0.98, "kv")
    assert [(one.policy, one.cases, one.quality) for one in found] == [
        (name, 16, 1.0) for name in ("avl", "dense", "fastv")
    ]


def test_the_cheapest_that_hold_are_asked_more_then_the_best() -> None:
    trials = [
        trial("a", 0.99, 0.9),
        trial("b", 1.0, 0.5),
        trial("c", 0.90, 0.1),
        trial("d", 0.95, 0.2),
        trial("e", 0.2, 0.01, high=0.4),
        trial("f", 0.5, 0.05),
    ]
    assert better_half(trials, 0.98, "kv") == ["b", "a", "d", "c"]
    assert better_half([trials[4]], 0.98, "kv") == []


def test_the_cheapest_that_was_asked_all_and_holds_is_chosen() -> None:
    left_out = Trial("early", 5, 1.0, 0.9, 1.0, 0.01, 0.01)
    dense = trial("dense", 1, 1, low=1)
    trials = [left_out, trial("a", 0.9, 0.1), trial("b", 0.99, 0.2), dense]
    assert chosen(trials, 0.98, sure=False).policy == "b"
    assert chosen(trials, 0.98, sure=True).policy == "dense"


def test_what_a_package_cannot_serve_is_not_tried(tiny: LVLM) -> None:
    found = usual(tiny)
    assert "pyramiddrop" not in found
    assert "fastv:keep=0.5" in found


@pytest.fixture(scope="module")
def package(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "tiny.avl"
    shutil.copytree(tiny_package, folder)
    return folder


def test_end_to_end(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, model = [], LVLM.load(package)
    for index in range(9):
        one = sample("vqa", "held-out", index)
        one.image.save(tmp_path / f"{index}.png")
        answers = [model.generate(one.prompt, [one.image], policy="dense", temperature=0).text]
        line = {"images": [f"{index}.png"], "prompt": one.prompt, "answers": answers}
        lines.append(json.dumps({**line, "metric": "exact"}))
    data, out = tmp_path / "mine.jsonl", tmp_path / "out.json"
    data.write_text("\n".join(lines))
    words = [str(package), "--data", str(data), "--json", str(out), "--min-quality", "0.5"]
    before = json.loads((package / "avl.json").read_text())
    assert main([*words, "--policies", "avl:keep=0.9,core=0.9,snapkv:keep=0.95", "--write"]) == 0
    told = capsys.readouterr()
    said = [line for line in told.err.splitlines() if line.startswith("avl-tune: ")]
    assert said[:2] == [
        "avl-tune: 8 questions, 2 policies",
        "avl-tune: 9 questions, 2 policies",
    ]
    report = json.loads(out.read_text())
    # What dense attention says is right, by how the questions were made.
    rows = {row["policy"]: row for row in report["policies"]}
    assert rows["dense"] == {
        "policy": "dense", "cases": 9, "quality": 1, "low": 1, "high": 1, "kv": 1, "flops": 1,
    }  # fmt: skip
    good = [row for row in report["policies"] if row["quality"] >= 0.5]
    assert report["chosen"] == min(good, key=lambda row: row["kv"])["policy"] != "dense"
    assert f"\n{report['chosen']}: " in told.out
    after = json.loads((package / "avl.json").read_text())
    found = report["rows"]
    assert found.pop("harmless") and "rows in int8: harmless: scores differ by 0.0000" in told.out
    assert (found["rows"], found["policy"], found["questions"]) == ("int8", report["chosen"], 9)
    assert found["apart"] == 0 and 0 < found["divergence"] < 1e-3 and found["tokens"] >= 9
    assert after == {**before, "default_policy": report["chosen"], "checked_rows": found}
    one = sample("vqa", "held-out", 0)
    kept = {}
    for kv in ("auto", "fp32"):
        result = LVLM.load(package, kv=kv).generate(one.prompt, [one.image], max_new_tokens=1)
        assert result.stats.policy == report["chosen"]
        kept[kv] = result.stats.kv_bytes
        assert ("avl: rows in int8, harmless in 9 qu" in capsys.readouterr().err) == (kv == "auto")
    assert kept["auto"] < 0.5 * kept["fp32"]


def one_question(folder: Path) -> str:
    """The file's path."""
    sample("vqa", "held-out", 0).image.save(folder / "0.png")
    line = {"images": ["0.png"], "prompt": "What?", "answers": ["x"], "metric": "f1"}
    (folder / "mine.jsonl").write_text(json.dumps(line))
    return str(folder / "mine.jsonl")


def test_rows_that_are_not_harmless_are_not_kept(
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [str(package), "--data", one_question(tmp_path), "--write"]
    monkeypatch.setattr("avl_runtime.cli.tune.tune", lambda *_: [trial("dense", 1, 1, low=1)])
    with monkeypatch.context() as patched:
        patched.setattr("avl_runtime.evaluate.rows.DIVERGENCE", 0.0)
        assert main(words) == 0
        assert "rows in int8: not harmless" in capsys.readouterr().out
        assert load_package(package).manifest.checked_rows is None
    assert main(words) == 0
    assert "rows in int8: harmless" in capsys.readouterr().out
    assert load_package(package).manifest.checked_rows is not None
    # Rows that are named are not judged, and what was found under another policy is not kept.
    assert main([*words, "--kv", "fp32"]) == 0
    assert "rows in" not in capsys.readouterr().out
    assert load_package(package).manifest.checked_rows is None


def test_what_is_harmless() -> None:
    found = Compared("dense", {"a": [(1, 1), (0, 1)], "b": [(0.5, 0.5)]}, [1e-3, 3e-3], [True] * 3)
    rows = found.checked()
    assert (rows.apart, rows.divergence, rows.questions, rows.tokens) == (0.5, 2e-3, 3, 2)
    assert not harmless(rows)
    assert harmless(replace(rows, apart=0.002, divergence=1e-3))
    assert not harmless(replace(rows, apart=0.0021, divergence=0.0))
    assert not harmless(replace(rows, apart=0.0))


def test_a_package_that_cannot_be_written_is_refused_before_any_question(
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = one_question(tmp_path)
    monkeypatch.setattr("avl_runtime.cli.output.os.access", lambda path, _: path != package)
    assert main([str(package), "--data", data, "--write"]) == 1
    said = capsys.readouterr().err
    assert "avl.json: expected a file in a writable folder" in said
    assert "questions" not in said


def test_a_default_that_the_package_cannot_serve_or_hold(package: Path, tmp_path: Path) -> None:
    loaded = load_package(package)
    before = (package / "avl.json").read_bytes()
    with pytest.raises(Exception, match="expected a package split after layer 5"):
        write_defaults(loaded, "fastv:layer=5", None)
    assert (package / "avl.json").read_bytes() == before
    shutil.rmtree(package)
    with pytest.raises(PackageError, match=r"expected to write the default policy, found: No such"):
        write_defaults(loaded, "avl", None)


@pytest.mark.parametrize("words", [["--min-quality", "0"], ["--min-quality", "1.1"], []])
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "x.jsonl"] if words else []
    with pytest.raises(SystemExit) as ended:
        main(["p.avl", *data, *words])
    assert ended.value.code == 2
    assert "avl-tune: error: " in capsys.readouterr().err

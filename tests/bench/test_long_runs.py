"""The soak and the fuzzer: that they run, and that they would find something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

import bench_all
import fuzz
import soak
from avl_plugins.errors import AvlError
from avl_plugins.policies import parse
from avl_runtime import LVLM
from bench_targets import table, targets


def test_a_short_soak_finds_nothing(tiny: LVLM) -> None:
    kinds = soak.draw_kinds(18, seed=3)
    assert {kind.way for kind in kinds} == set(soak.WAYS)
    assert {kind.policy for kind in kinds} == set(soak.POLICIES)
    report = soak.soak([tiny], kinds, 30, 10, seed=4)
    assert report["requests"] == 30 and report["repeats"] > 0
    assert report["different"] == []
    assert len(report["rss_bytes_by_tenth"]) == 10


def test_a_soak_tells_answers_that_differ(tiny: LVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(range(1000))
    monkeypatch.setattr(soak, "ask", lambda *_: str(next(answers)))
    kinds = [kind for kind in soak.draw_kinds(20, seed=3) if kind.way == "generate"][:2]
    assert len(soak.soak([tiny], kinds, 12, 10, seed=4)["different"]) == 10


def test_growth_is_from_the_second_tenth_to_the_last() -> None:
    memory = [500 - i for i in range(10)] + [100 + i for i in range(90)]
    report = soak.memory_growth(memory)
    assert report["rss_growth_bytes"] == 184 - 104
    assert soak.memory_growth([100])["rss_growth_bytes"] == 0


def run_fuzz(name: str, package: Path, scratch: Path) -> dict[str, Any]:
    fuzz.fuzz(package, name, 1e-6, 0, scratch)
    found: dict[str, Any] = json.loads((scratch / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("name", ["manifest", "images", "safetensors"])
def test_damaged_files_are_refused(
    name: str, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "ROUND", 25)
    found = run_fuzz(name, tiny_package, tmp_path)
    assert found["findings"] == []
    assert found["inputs"] >= 25 and 0 < found["refused"] <= found["inputs"]


class TwoLineError(AvlError):
    pass


@pytest.mark.parametrize("error", [ValueError("boom"), TwoLineError("two\nlines")])
def test_anything_but_a_plain_refusal_is_a_finding(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> None:
        if len(path.read_bytes()) > 3:
            raise error

    made = {"x": (st.binary(max_size=50), tmp_path / "x", read)}
    monkeypatch.setattr(fuzz, "targets", lambda *_: made)
    found = run_fuzz("x", tmp_path, tmp_path)
    assert len(found["findings"]) == 1
    # Shrunk to the smallest input that does it.
    assert (tmp_path / "x").stat().st_size == 4


def test_records_call_policies_as_targets_do() -> None:
    for record in (bench_all.RECORDS | bench_all.TRIALS).values():
        assert [str(parse(policy)) for policy in record.policies] == list(record.policies)


def test_targets_are_ratios_of_records() -> None:
    def row(name: str, **times: float) -> dict[str, Any]:
        return {"name": name, **{part: {"median": value} for part, value in times.items()}}

    records: dict[str, Any] = {
        "s1": {
            "dims": {
                "hidden_size": 8,
                "intermediate_size": 16,
                "num_layers": 2,
                "num_heads": 2,
                "num_kv_heads": 1,
                "head_dim": 4,
                "vocab_size": 32,
            },
            "workload": {"visual_tokens": 100, "text_tokens": 6, "new_tokens": 8, "batch": 3},
            "candidates": [
                row("dense", decode_token=30.0, prefill=100.0),
                row("avl", decode_token=18.0, prefill=100.0),
                row("fastv", decode_token=20.0, prefill=70.0),
            ],
        },
        "long-text": {
            "candidates": [
                {"name": "avl:text=0.01,text_min=128", "step_ms": [2.0] * 1000 + [2.1] * 1100}
            ]
        },
    }
    told = targets(records)
    found = {one["what"]: one for one in told if one["found"] is not None}
    assert found["S1: speed-up of a token by A-VL"]["found"] == pytest.approx(30 / 18, abs=1e-4)
    # Weights: q, k, v, o, three of the MLP; and the head's copy in 8 bits. A row: K and V of two
    # layers.
    weights = 4 * 2 * (64 + 32 + 32 + 64 + 3 * 128) + 256
    row = 4 * 2 * 2 * 4
    dense, split = 3 * row * (100 + 6 + 4), 3 * row * (30 + 20 / 3 + 6 + 4)
    assert found["S1: speed-up of a token by A-VL"]["bytes_allow"] == pytest.approx(
        (weights + dense) / (weights + split), abs=1e-4
    )
    assert found["S1: prefill of FastV over dense"]["found"] == 0.7
    assert not found["S1: prefill of FastV over dense"]["reached"]
    growth = found["long text: step 2000 over step 200 under a text budget"]
    assert growth["found"] == pytest.approx(1.05) and growth["reached"]
    assert len(found) == 3
    absent = {one["what"]: one["absent"] for one in told if one["found"] is None}
    assert absent["S1, INT4: prefill of FastV over OpenVINO's"] == "bench-peers-int4"
    assert absent["S1: dense decode over onnxruntime-genai's"] == "onnxruntime-genai"
    assert "| S1, INT4: prefill of FastV over OpenVINO's | not measured |" in table(told)

"""avl-bench on avl-tiny, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from avl_runtime import LVLM
from avl_runtime.bench.errors import BenchError
from avl_runtime.bench.workers import Worker
from avl_runtime.bench.workload import make_workload, ordinary_tokens
from avl_runtime.cli.bench import main

POLICIES = ["dense", "avl:keep=0.5,core=0.1,refresh=2"]
SMALL = ["--new-tokens", "4", "--repeats", "1", "--warm-up", "0", "--idle-wait", "0"]


def test_two_policies_and_transformers(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_package), "--policies", ",".join(POLICIES), "--threads", "1", *SMALL]
    arguments += ["--against", "transformers", "--text-tokens", "40"]
    arguments += ["--json", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.csv")]
    assert main(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "x.json").read_text())
    rows = {row["name"]: row for row in report["candidates"]}
    assert list(rows) == [
        "dense",
        "avl:core=0.1,refresh=2",
        "transformers eager",
        "transformers sdpa",
    ]
    with (tmp_path / "x.csv").open() as file:
        assert [line["name"] for line in csv.DictReader(file)] == list(rows)
    assert all(f"`{name}`" in printed for name in rows)
    assert report["workload"]["visual_tokens"] == 144
    assert report["workload"]["text_tokens"] == 40
    assert set(report["versions"]) == {
        "avl",
        "onnxruntime",
        "CPU kernels",
        "torch",
        "transformers",
    }
    dense, avl, eager, sdpa = rows.values()
    # The same weights, tokens and pictures: so the same answer.
    assert eager["same_tokens"] == sdpa["same_tokens"] == 1
    dims = report["dims"]
    row_bytes = 2 * dims["num_layers"] * dims["num_kv_heads"] * dims["head_dim"] * 4
    assert eager["kv_bytes"] == sdpa["kv_bytes"] == (144 + 40 + 3) * row_bytes
    assert avl["kv_bytes"] < dense["kv_bytes"]
    assert avl["decode_flops"] < dense["decode_flops"] == eager["decode_flops"]
    assert len(avl["step_ms"]) == 3
    assert avl["refresh_step"]["median"] == pytest.approx(avl["step_ms"][1], abs=1e-3)
    assert dense["refresh_step"] is None
    for row in rows.values():
        parts = (row["encode"], row["prefill"])
        wall = sum(part["median"] for part in parts) + sum(row["step_ms"])
        assert row["end_to_end"]["median"] == pytest.approx(wall, rel=1e-3)
        assert row["cpu"]["median"] > 0
        assert row["peak_rss_bytes"] >= row["loaded_rss_bytes"] > 10 << 20


def test_a_batch_without_pictures(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    arguments = [str(tiny_package), "--policies", "dense", "--batch", "2", "--threads", "1", *SMALL]
    assert main([*arguments, "--visual-tokens", "0", "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["candidates"]
    assert row["encode"] is None and row["same_tokens"] == 1


def test_json_on_stdout_is_one_object(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_package), "--policies", "dense", "--threads", "1", *SMALL]
    assert main([*arguments, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert [row["name"] for row in json.loads(out)["candidates"]] == ["dense"]
    assert "`dense`" in err


def test_processes_are_started_as_often_as_asked(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_package), "--policies", "dense,fastv", "--threads", "1", *SMALL]
    assert main([*arguments, "--starts", "3", "--repeats", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("loading dense") == captured.err.count("loading fastv") == 3
    assert "; 6 runs each" in captured.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--visual-tokens", "150"], r"--visual-tokens: .* \(one gives 144\), found 150;"),
        (["--text-tokens", "1"], r"--text-tokens: expected at least \d+, .* found 1$"),
        (["--new-tokens", "100000"], "expected at most .* context"),
        (["--policies", "fastv:layer=4"], "fastv:layer=4: expected a package split after layer 4"),
        (["--policies", "fastv:layer=9"], "after a layer from 1 to 5 of this decoder's 6, found 9"),
        (["--policies", "fastv,fastv:layer=2"], "expected each candidate once, found fastv twice"),
        (["--json", "/no/such/folder/x.json"], "expected a file in a writable folder"),
        (["--against", "transformers", "--checkpoint", "/no/such"], "name its folder with --check"),
        (
            ["--against", "onnxruntime-genai", "--peer-python", "/no/python"],
            "--peer-python: expected a Python interpreter, found /no/python",
        ),
        (
            ["--against", "onnxruntime-genai"],
            r"expected onnxruntime_genai, .* -m pip install onnxruntime-genai==0.18.0",
        ),
        (
            ["--against", "openvino"],
            r"found no openvino_genai, openvino_tokenizers, optimum.intel, .* optimum-intel==2.2.0",
        ),
        (
            ["--against", "llama.cpp"],
            r"found no llama_cpp(, gguf)?; run: .* -m pip install llama-cpp-python==0.3.36 gguf==",
        ),
    ],
)
def test_refusals_are_one_sentence(
    arguments: list[str],
    sentence: str,
    tiny_package: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(tiny_package), *SMALL, *arguments]) == 1
    captured = capsys.readouterr()
    lines = [
        line
        for line in captured.err.strip().splitlines()
        if not line.startswith(("avl-bench: loading", "avl-bench: measuring"))
    ]
    assert captured.out == "" and len(lines) == 1
    assert re.search(sentence, lines[0]), lines[0]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--batch=0"], "expected a whole number of at least 1, found '0'"),
        (["--visual-tokens=-1"], "expected a whole number of at least 0, found '-1'"),
        (["--idle-wait=nan"], "expected a number, found 'nan'"),
        (["--against", "vllm"], "--against: expected transformers, onnxruntime-genai, openvino, "),
        (["--policies", "dense,dense"], "expected each once, found 'dense' twice"),
        (["--policies", "quick"], "--policies: expected a policy, found 'quick'"),
        (["--policies", ","], "expected policies as dense,avl, found ','"),
        (["--backends", "ort-moon"], "'ort-moon'"),
        (["--checkpoint", "x"], "--checkpoint is for peers, name them with --against"),
        (["--json", "-", "--csv", "-"], "stdout takes one of them"),
    ],
)
def test_wrong_values_end_with_2(
    options: list[str], part: str, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tiny_package), *options])
    out, err = capsys.readouterr()
    assert out == "" and part in err.splitlines()[-1]


def test_prompts_have_exactly_the_tokens_asked_for(tiny: LVLM) -> None:
    processor, manifest = tiny.processor, tiny.package.manifest
    for visual, text in ((0, 30), (144, 60), (432, 31)):
        made = make_workload(processor, manifest, visual, text, 5, 1)
        ids = list(made.input_ids)
        assert len(ids) == visual + text
        assert sum(token in manifest.visual_tokens for token in ids) == made.visual == visual
        assert len(made.images) == visual // 144
        first = next((i for i, t in enumerate(ids) if t in manifest.visual_tokens), len(ids))
        assert made.before == first
    special = set(manifest.visual_tokens) | set(manifest.tokens.eos)
    assert not special & set(ordinary_tokens(processor, manifest))


WORKER = """
import sys
from avl_runtime.bench.wire import serve

def load(job):
    print("chatter that is no answer")
    if job["fails"]:
        raise ValueError("it cannot\\nbe loaded")
    return (lambda: sys.exit("the end")), {"told": 7}

serve(load)
"""


def test_workers_answer_fail_and_end() -> None:
    with Worker("one", [sys.executable, "-c", WORKER], 1) as worker:
        with pytest.raises(BenchError, match=r"^one: ValueError: it cannot be loaded$"):
            worker.ask({"do": "load", "job": {"fails": True}})
        with pytest.raises(BenchError, match="expected a job before the first run"):
            worker.ask({"do": "run"})
        answer = worker.ask({"do": "load", "job": {"fails": False}})
        assert answer["told"] == 7 and answer["rss_bytes"] > 1 << 20
        with pytest.raises(BenchError, match="expected an answer, found exit status 1: the end"):
            worker.ask({"do": "run"})
    with pytest.raises(BenchError, match="expected to start /no/such"):
        Worker("two", ["/no/such"], 1)

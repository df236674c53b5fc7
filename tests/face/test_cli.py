"""avl-run with a model made of a few fixed answers: arguments, output, exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime.cli import run
from avl_runtime.cli.output import as_json, stats_lines
from avl_runtime.generate.results import (
    DeviceBytes,
    Drafts,
    Logprob,
    Result,
    Stats,
    TokenLogprobs,
)
from avl_runtime.package.generation_defaults import GenerationDefaults
from face.fake_model import FakeModel

KEYS = [
    "text",
    "token_ids",
    "finish_reason",
    "policy",
    "backend",
    "kernels",
    "kv",
    "seed",
    "prompt_tokens",
    "visual_tokens",
    "visual_tokens_read",
    "prefill_ms",
    "decode_ms_per_token",
    "steps_again",
    "kv_bytes",
    "kv_bytes_dense",
    "drafted",
    "accepted",
    "drafts",
    "peak_rss_bytes",
    "device_bytes",
]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(run, "LVLM", fake)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    return fake


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.new("RGB", (50, 40), "red").save(path)
    return path


def test_text_on_stdout_and_statistics_on_stderr(
    model: FakeModel, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pkg", "What?", "--image", str(picture), "--image", str(picture), "--stats"]
    arguments += ["--policy", "avl", "--backend", "ort-cpu", "--max-new-tokens", "7"]
    arguments += ["--temperature", "0.5", "--top-p", "0.9", "--top-k", "4", "--seed", "3"]
    assert run.main([*arguments, "--stop", "x", "--stop", "yz"]) == 0
    out, err = capsys.readouterr()
    assert out == "a red circle é日\n"
    assert (
        model.given.items()
        >= {"folder": Path("pkg"), "backend": "ort-cpu", "policy": "avl"}.items()
    )
    ((prompt, images, options),) = model.asked
    assert (prompt, images) == ("What?", 2)
    assert options == {
        "return_placements": False,
        "max_new_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "seed": 3,
        "stop": ("x", "yz"),
    }
    for part in ("150 tokens (144 visual)", "7500.0 tokens/s", "400.0 tokens/s", "3.81 MiB"):
        assert part in err


def test_options_that_are_not_given_are_left_to_the_package(model: FakeModel) -> None:
    assert run.main(["pkg", "What?"]) == 0
    assert (
        run.main(
            [
                "pkg",
                "What?",
                "--json",
                "--logit-bias",
                "5=-1.5",
                "--logit-bias",
                "7=2",
                "--logprobs",
                "3",
                "--min-p",
                "0.1",
                "--presence-penalty",
                "1",
                "--frequency-penalty=-0.5",
                "--prompt-lookup",
                "7",
            ]
        )
        == 0
    )
    assert model.asked[0][2] == {"return_placements": False, "max_new_tokens": 256}
    assert model.asked[1][2] == {
        "return_placements": False,
        "max_new_tokens": 256,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -0.5,
        "logit_bias": {5: -1.5, 7: 2.0},
        "logprobs": 3,
        "prompt_lookup": 7,
    }


def test_log_probabilities_are_valid_json() -> None:
    noted = (TokenLogprobs(5, "a", -0.5, (Logprob(6, "b", -np.inf),)),)
    stats = Stats("dense", "ort-cpu", 150, 144, 4, 20.0, 2.5, 1000, 4_000_000, 5_000_000, None, 9)
    told = as_json(Result("a", (5,), "eos", None, stats, (), (), noted))
    assert "Infinity" not in json.dumps(told) and told["seed"] == 9
    (one,) = told["logprobs"]
    assert one == {
        "token_id": 5,
        "text": "a",
        "logprob": -0.5,
        "top": ({"token_id": 6, "text": "b", "logprob": -9999.0},),
    }
    assert "seed:     9" in stats_lines(stats)


def test_kernels_are_told() -> None:
    plain = Stats("dense", "ort-cpu", 150, 144, 9, 20.0, 2.5, 1000, 4_000_000, 5_000_000)
    run_by = replace(plain, kernels="AVX2")
    assert "kernels:  AVX2" in stats_lines(run_by).splitlines()
    assert "kernels:" not in stats_lines(plain)
    assert as_json(Result("a", (5,), "eos", None, run_by, (), ()))["kernels"] == "AVX2"


def test_drafts_are_told_by_source() -> None:
    plain = Stats("dense", "ort-cpu", 150, 144, 9, 20.0, 2.5, 1000, 4_000_000, 5_000_000)
    drafted = replace(plain, drafts=(Drafts("prompt lookup", 8, 6),))
    line = "drafts:   8 tokens by prompt lookup, 6 accepted, 75 %"
    assert line in stats_lines(drafted).splitlines()
    assert "drafts:" not in stats_lines(plain)
    told = as_json(Result("a", (5,), "eos", None, drafted, (), ()))
    assert (told["drafted"], told["accepted"]) == (8, 6)
    assert told["drafts"] == {"prompt lookup": {"drafted": 8, "accepted": 6}}


def test_device_memory_is_told_by_what_it_is_for() -> None:
    sizes = [(n << 20) for n in (100, 3, 2, 7)]
    plain = Stats("avl", "tensorrt-rtx", 150, 144, 4, 20.0, 2.5, 5 << 20, 10 << 20, 1 << 30)
    for on_host, more in ((0, ""), (4 << 20, ", parked on the host 4.00 MiB")):
        lines = stats_lines(replace(plain, device_bytes=DeviceBytes(*sizes, on_host)))
        wanted = "weights 100.00 MiB, active 3.00 MiB, parked 2.00 MiB, scratch 7.00 MiB"
        assert lines.splitlines()[-1] == f"device:   {wanted}{more}"
    assert "device:" not in stats_lines(plain)


def test_json_is_one_object(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["pkg", "What?", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert list(told) == KEYS and err == ""
    assert told["text"] == "a red circle é日" and told["token_ids"] == [5, 6, 7, 2]


def test_show_and_heatmap(
    model: FakeModel, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "heat.png"
    arguments = ["pkg", "What?", "--image", str(picture), "--show", "--heatmap", str(target)]
    assert run.main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == "a red circle é日\n" and "#" * 24 in err
    assert model.asked[0][2]["return_placements"] is True
    with Image.open(target) as image:
        assert image.width > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.png", "heat.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["pkg", "What?", "--max-new-tokens", "0"],
        ["pkg", "What?", "--backend", "abacus"],
        ["pkg", "What?", "--heatmap", "x.png"],
        ["pkg", "--image", "-"],
        ["pkg", "What?", "--image", "-", "--image", "-"],
        ["pkg", "What?", "--show"],
        ["pkg", "What?", "--temperature", "warm"],
        ["pkg", "What?", "--logit-bias", "5"],
        ["pkg", "What?", "--logit-bias", "a=1"],
        ["pkg", "What?", "--logit-bias", "5=inf"],
        ["pkg", "What?", "--logprobs", "3"],
        ["pkg", "What?", "--min-p", "nan"],
        ["pkg", "What?", "--presence-penalty", "3"],
        ["pkg", "What?", "--temperature", "-1"],
        ["pkg", "What?", "--temperature", "nan"],
        ["pkg", "What?", "--top-p", "7"],
        ["pkg", "What?", "--top-k", "-1"],
        ["pkg", "What?", "--seed", "x"],
        ["pkg", "What?", "--repetition-penalty", "0"],
        ["pkg", "What?", "--policy", "nonsense"],
        ["pkg", "What?", "--policy", "avl:keep=7"],
        ["pkg", "What?", "--threads", "0"],
        ["pkg", "What?", "--threads", "5000"],
        ["pkg", "What?", "--stop", ""],
        ["pkg", "What?", "--system", " "],
        ["pkg", "What?", "--image", "cat.png", "--heatmap", "x.txt"],
        ["pkg", "What?", "else"],
    ],
)
def test_usage_errors(
    model: FakeModel, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(arguments)
    assert caught.value.code == 2 and not model.given
    out, err = capsys.readouterr()
    assert out == "" and "avl-run: error: " in err and "Traceback" not in err


@pytest.mark.parametrize("text", ["null", "{", ""])
def test_a_file_without_a_schema(
    text: str, model: FakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(SystemExit) as caught:
        run.main(["pkg", "What?", "--json-schema", str(tmp_path / "schema.json")])
    assert caught.value.code == 2 and not model.given
    assert "--json-schema: expected a file with a JSON schema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--image", "missing.png"], "missing.png"),
        (["--image", "CAT", "--heatmap", "no/such/folder/x.png"], "folder"),
        (["--image", "CAT", "missing.png"], "missing.png"),
        (["--image", "CAT", "--heatmap", "CAT"], "expected a file of its own to write"),
    ],
)
def test_bad_input_is_one_line_before_the_model_loads(
    model: FakeModel,
    picture: Path,
    arguments: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = [str(picture) if argument == "CAT" else argument for argument in arguments]
    assert run.main(["pkg", "What?", *chosen]) == 1
    out, err = capsys.readouterr()
    assert out == "" and not model.given
    assert err.startswith("avl-run: ") and err.count("\n") == 1 and part in err


def test_failures_of_the_model(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.fails = AvlError("expected a package, found none; export one")
    assert run.main(["pkg", "What?"]) == 1
    assert capsys.readouterr().err == "avl-run: expected a package, found none; export one\n"
    model.fails, model.raises = None, AvlError("expected more room")
    assert run.main(["pkg", "What?"]) == 1
    assert capsys.readouterr().err == "avl-run: expected more room\n"
    model.raises = KeyboardInterrupt()
    assert run.main(["pkg", "What?"]) == 130


def test_prompt_and_picture_from_stdin(
    model: FakeModel, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Où?\n".encode()), "utf-8"))
    assert run.main(["pkg"]) == 0
    data = io.TextIOWrapper(io.BytesIO(picture.read_bytes()))
    monkeypatch.setattr(sys, "stdin", data)
    assert run.main(["pkg", "What?", "--image", "-"]) == 0
    assert [(prompt, images) for prompt, images, _ in model.asked] == [("Où?", 0), ("What?", 1)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
    assert run.main(["pkg"]) == 1


def test_json_needs_a_prompt(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(SystemExit) as caught:
        run.main(["pkg", "--json"])
    assert caught.value.code == 2


PROGRAM = """
import sys
from face.fake_model import FakeModel
from avl_runtime.cli import run
run.LVLM = FakeModel()
sys.exit(run.main(["pkg", "What?", *sys.argv[1:]]))
"""


def test_closed_and_full_outputs_are_quiet() -> None:
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1"}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, stdout=writer, stdin=subprocess.DEVNULL, stderr=-1, env=environment, check=False
    )
    os.close(writer)
    assert done.returncode == 1 and done.stderr == b""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stdin=subprocess.DEVNULL, stderr=-1, env=environment, check=False
        )
    assert done.returncode == 1 and done.stderr.startswith(b"avl-run: expected")
    assert done.stderr.count(b"\n") == 1


def test_threads_and_quiet(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = model.load

    def telling(folder: Path, **options: Any) -> FakeModel:
        print("avl: backend ort-cpu, the best that works", file=sys.stderr)
        return load(folder, **options)

    monkeypatch.setattr(model, "load", telling)
    assert run.main(["pkg", "What?", "--threads", "3"]) == 0
    assert model.given["threads"] == 3
    assert capsys.readouterr().err == "avl: backend ort-cpu, the best that works\n"
    assert run.main(["pkg", "What?", "--quiet"]) == 0
    assert model.given["threads"] is None
    assert capsys.readouterr() == ("a red circle é日\n", "")
    assert run.main(["pkg", "What?", "--quiet", "--stats"]) == 0
    assert capsys.readouterr().err.startswith("policy:")
    model.fails = AvlError("expected a package")
    assert run.main(["pkg", "What?", "--quiet"]) == 1
    assert capsys.readouterr().err == "avl-run: expected a package\n"


@pytest.mark.parametrize(
    ("options", "default", "idle"),
    [
        (["--top-p", "0.5", "--seed", "3"], 0.0, "--top-p, --seed"),
        (["--top-k", "4", "--min-p", "0.1", "--temperature", "0"], 0.7, "--top-k, --min-p"),
        (["--top-p", "0.5", "--seed", "3"], 0.7, ""),
        (["--top-p", "0.5", "--seed", "3", "--temperature", "0.2"], 0.0, ""),
        (["--top-p", "1", "--top-k", "0", "--min-p", "0"], 0.0, ""),
        (["--repetition-penalty", "1.5", "--stop", "x"], 0.0, ""),
    ],
)
def test_options_without_effect_are_named(
    model: FakeModel,
    options: list[str],
    default: float,
    idle: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    defaults = GenerationDefaults(temperature=default)
    monkeypatch.setattr(model.package.manifest, "generation", defaults)
    assert run.main(["pkg", "What?", *options]) == 0
    line = f"avl-run: {idle}: without effect on greedy answers; add --temperature T\n"
    assert capsys.readouterr().err == (line if idle else "")


def test_threads_without_effect_are_named(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model.loaded.backend, "name", "tensorrt-rtx")
    assert run.main(["pkg", "What?", "--threads", "2"]) == 0
    assert "--threads: without effect, tensorrt-rtx runs on the GPU" in capsys.readouterr().err


def test_a_system_prompt(model: FakeModel) -> None:
    assert run.main(["pkg", "What?", "--system", "Be brief."]) == 0
    (chat,) = model.chats
    said = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert chat.messages[0] == said and len(chat.messages) == 3

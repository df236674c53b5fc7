"""avl-run with a model made of a few fixed answers: arguments, output, exit status."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime.cli import run
from avl_runtime.cli.output import as_json, stats_lines
from avl_runtime.results import (
    DeviceBytes,
    Logprob,
    Placement,
    Result,
    Stats,
    TokenLogprobs,
)
from avl_runtime.vision import Cells
from face.support import tiny_processor

KEYS = [
    "text",
    "token_ids",
    "finish_reason",
    "policy",
    "backend",
    "seed",
    "prompt_tokens",
    "visual_tokens",
    "prefill_ms",
    "decode_ms_per_token",
    "kv_bytes",
    "kv_bytes_dense",
    "peak_rss_bytes",
    "device_bytes",
]
PIECES = ("a red", " circle", " é日")


@dataclass
class FakeModel:
    """Records what it is asked; stands for LVLM and for its Chat."""

    fails: AvlError | None = None
    raises: BaseException | None = None
    loaded: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    films: list[int] = field(default_factory=list)

    processor = tiny_processor()

    def load(self, folder: Path, **options: Any) -> FakeModel:
        self.loaded = {"folder": folder, **options}
        if self.fails is not None:
            raise self.fails
        return self

    def chat(self) -> FakeModel:
        return self

    def stream(
        self, prompt: str, images: list[Any], videos: list[Any], **options: Any
    ) -> Generator[str, None, Result]:
        self.asked.append((prompt, len(images), options))
        self.films.append(len(videos))
        return self._pieces(len(self.media))

    @property
    def media(self) -> tuple[str, ...]:
        return ("image",) * sum(count for _, count, _ in self.asked)

    def _pieces(self, images: int) -> Generator[str, None, Result]:
        yield PIECES[0]
        if self.raises is not None:
            raise self.raises
        yield from PIECES[1:]
        core = np.ones((2, 144 * images), np.bool_)
        stats = Stats("dense", "ort-cpu", 150, 144, 4, 20.0, 2.5, 1000, 4_000_000, 5_000_000)
        places = (Placement(0, core, ~core),)
        visuals = (Cells((12, 12), np.arange(144)),) * images
        return Result("".join(PIECES), (5, 6, 7, 2), "eos", None, stats, places, visuals)


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
        model.loaded.items()
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
        ["pkg", "What?", "--stop", ""],
        ["pkg", "What?", "--image", "cat.png", "--heatmap", "x.txt"],
        ["pkg", "What?", "else"],
    ],
)
def test_usage_errors(
    model: FakeModel, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(arguments)
    assert caught.value.code == 2 and not model.loaded
    out, err = capsys.readouterr()
    assert out == "" and "avl-run: error: " in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--image", "missing.png"], "missing.png"),
        (["--image", "CAT", "--heatmap", "no/such/folder/x.png"], "folder"),
        (["--image", "CAT", "missing.png"], "missing.png"),
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
    assert out == "" and not model.loaded
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


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stdin that says it is a terminal, and a way to type lines."""
    typed: list[str | BaseException] = []

    def read(_: str) -> str:
        if not typed:
            raise EOFError
        line = typed.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    yield typed


def test_conversation(
    model: FakeModel, terminal: Any, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal += ["", "/image", f"/image {picture}", "/image missing.png", "What?", "And?"]
    terminal += ["/help", "/quit", "never"]
    assert run.main(["pkg", "--image", str(picture)]) == 0
    assert [(prompt, images) for prompt, images, _ in model.asked] == [("What?", 2), ("And?", 0)]
    out, err = capsys.readouterr()
    assert out == "a red circle é日\n" * 2
    assert "avl-run: missing.png: expected" in err and err.count("/quit") == 3


def test_videos(
    model: FakeModel, terminal: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = tmp_path / "film.gif"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(film, save_all=True, append_images=frames[1:], duration=100)
    assert run.main(["pkg", "What?", "--video", str(film), "--video", str(film)]) == 0
    terminal += [f"/video {film}", "/video", "/video missing.mp4", "What?", "And?", "/quit"]
    assert run.main(["pkg"]) == 0
    assert model.films == [2, 1, 0]
    err = capsys.readouterr().err
    assert "avl-run: missing.mp4: expected" in err and err.count("/video PATH") == 2
    model.loaded = {}
    assert run.main(["pkg", "What?", "--video", "missing.mp4"]) == 1
    assert model.loaded == {} and capsys.readouterr().err.count("\n") == 1


def test_conversation_goes_on_after_a_failure(
    model: FakeModel, terminal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model.raises = AvlError("expected a shorter prompt")
    terminal += ["one", "two"]
    assert run.main(["pkg"]) == 0
    assert len(model.asked) == 2
    assert capsys.readouterr().err.count("avl-run: expected a shorter prompt\n") == 2


def test_interrupt_ends_an_answer_and_then_the_conversation(
    model: FakeModel, terminal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces(images: int) -> Generator[str, None, Result]:
        yield "one"
        os.kill(os.getpid(), signal.SIGINT)
        yield "two"
        yield "three"
        raise AssertionError("the answer went on")

    before = signal.getsignal(signal.SIGINT)
    model._pieces = pieces  # type: ignore[method-assign]
    terminal += ["What?", KeyboardInterrupt()]
    assert run.main(["pkg"]) == 130
    assert capsys.readouterr().out.startswith("onetwo\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_json_needs_a_prompt(model: FakeModel, terminal: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main(["pkg", "--json"])
    assert caught.value.code == 2


PROGRAM = """
import sys
from face.test_cli import FakeModel
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


def test_a_real_terminal_begins_a_conversation() -> None:
    program = PROGRAM.replace('"What?", ', "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    host, guest = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=guest, stdout=-1, stderr=-1, env=environment
    )
    os.close(guest)
    os.write(host, b"What is it?\n/quit\n")
    out, _ = process.communicate(timeout=60)
    os.close(host)
    assert process.returncode == 0 and "a red circle é日" in out.decode()


def test_threads_and_quiet(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = model.load

    def telling(folder: Path, **options: Any) -> FakeModel:
        print("avl: backend ort-cpu, the best that works", file=sys.stderr)
        return load(folder, **options)

    monkeypatch.setattr(model, "load", telling)
    assert run.main(["pkg", "What?", "--threads", "3"]) == 0
    assert model.loaded["threads"] == 3
    assert capsys.readouterr().err == "avl: backend ort-cpu, the best that works\n"
    assert run.main(["pkg", "What?", "--quiet"]) == 0
    assert model.loaded["threads"] is None
    assert capsys.readouterr() == ("a red circle é日\n", "")
    assert run.main(["pkg", "What?", "--quiet", "--stats"]) == 0
    assert capsys.readouterr().err.startswith("policy:")
    model.fails = AvlError("expected a package")
    assert run.main(["pkg", "What?", "--quiet"]) == 1
    assert capsys.readouterr().err == "avl-run: expected a package\n"

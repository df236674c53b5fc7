"""avl-batch answers each request of a file once, as avl-serve does, however often it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from avl_runtime import LVLM
from avl_runtime.cli.batch import main
from support.server import CHAT, MODEL, ONE, TWO, Running, question, said

START = "import sys; from avl_runtime.cli.start import batch; sys.exit(batch())"
RESPONSES = "/v1/responses"


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert all(row.keys() == {"id", "custom_id", "response", "error"} for row in rows)
    found = {row["custom_id"]: row for row in rows}
    assert len(found) == len({row["id"] for row in rows}) == len(rows)
    return found


def written(file: Path, lines: list[object]) -> Path:
    file.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    return file


# What differs from one time to the next, or with what runs beside it or ran before.
TIMELY = (
    *("id", "created", "created_at", "completed_at", "kv_bytes", "logprob"),
    *("prefix_tokens", "cached_tokens"),
)


def compared(body: Any) -> Any:
    """A body without what may differ."""
    if isinstance(body, list):
        return [compared(one) for one in body]
    if not isinstance(body, dict):
        return body
    return {name: compared(one) for name, one in body.items() if name not in TIMELY}


def test_answers_are_those_of_the_server(
    server: Running, tiny_package: Path, tmp_path: Path
) -> None:
    asked = {"model": MODEL, "messages": question(ONE), "max_tokens": 12}
    both = question(ONE)[0]["content"][:1] + question(TWO)[0]["content"]
    shown = [{"type": "input_image", "image_url": both[0]["image_url"]["url"]}]
    given = [{"role": "user", "content": [*shown, {"type": "input_text", "text": "Read."}]}]
    bodies = {
        "plain": (CHAT, asked),
        "policy": (CHAT, asked | {"policy": "avl:keep=0.5", "placements": True}),
        "drawn": (CHAT, asked | {"n": 2, "seed": 3, "temperature": 1.5, "logprobs": True}),
        "two": (CHAT, asked | {"messages": [{"role": "user", "content": both}], "stop": "1"}),
        "text": (CHAT, asked | {"messages": [{"role": "user", "content": [said("Hello.")]}]}),
        "response": (RESPONSES, {"model": MODEL, "input": given, "max_output_tokens": 9}),
        "refused": (CHAT, asked | {"nothing": 1}),
        "other": (CHAT, asked | {"model": "other"}),
    }
    lines = [
        {"custom_id": name, "method": "POST", "url": url, "body": body}
        for name, (url, body) in bodies.items()
    ]
    questions, out = written(tmp_path / "questions.jsonl", lines), tmp_path / "answers.jsonl"
    words = [str(tiny_package), str(questions), "--out", str(out), "--backend", "ort-cpu"]
    assert main([*words, "--running", "2"]) == 1
    found = rows_of(out)
    assert found.keys() == bodies.keys()
    for name, (url, body) in bodies.items():
        status, _, expected = server.send("POST", url, body)
        told = found[name]["response"]
        assert (told["status_code"], found[name]["error"]) == (status, None), name
        assert compared(told["body"]) == compared(json.loads(expected)), name
    assert [found[name]["response"]["status_code"] for name in ("refused", "other")] == [400, 404]


def test_the_short_form_with_pictures_by_path(
    tiny_package: Path, tiny: LVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outside = tmp_path / "data", tmp_path / "outside.png"
    (folder / "inner").mkdir(parents=True)
    for file, one in ((folder / "one.png", ONE), (folder / "inner" / "two.png", TWO)):
        one.image.save(file)
    ONE.image.save(outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "text.png").write_text("no picture")
    lines: list[object] = [
        {"images": ["one.png"], "prompt": ONE.prompt, "max_tokens": 8, "answers": ["x"]},
        {"images": [str(folder / "inner/two.png")], "prompt": TWO.prompt, "policy": "fastv"},
    ]
    bad = ["../outside.png", str(outside), "link.png", "inner", "none.png", "text.png", "a\0b"]
    (folder / "loop.png").symlink_to("loop.png")
    bad += ["loop.png", "file:///etc/hostname", "http://127.0.0.1/one.png", "//etc/hostname"]
    lines += [{"images": [one], "prompt": "Read.", "custom_id": one} for one in bad]
    # Errors name what the line has: neither messages, nor a server that nobody began.
    lines += [
        {"images": ["one.png"], "prompt": 1, "custom_id": "prompt"},
        {"images": ["one.png"] * 17, "prompt": "Read.", "custom_id": "images"},
        {"prompt": "Read.", "seed": "x", "custom_id": "seed"},
    ]
    named = dict.fromkeys(bad, "images[0]") | {one: one for one in ("prompt", "images", "seed")}
    questions, out = written(folder / "questions.jsonl", lines), tmp_path / "answers.jsonl"
    words = [str(tiny_package), "--backend", "ort-cpu", "--max-new-tokens", "16"]
    assert main([*words, str(questions), "--out", str(out)]) == 1
    found = rows_of(out)
    expected = [
        tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=8),
        tiny.generate(TWO.prompt, [TWO.image], max_new_tokens=16, policy="fastv"),
    ]
    for name, one in zip(("line-1", "line-2"), expected, strict=True):
        (choice,) = found[name]["response"]["body"]["choices"]
        assert choice["message"]["content"] == one.text
    for name, field in named.items():
        assert found[name]["response"]["status_code"] == 400, name
        error = found[name]["response"]["body"]["error"]
        assert error["param"] == field and error["message"].startswith(f"{field}: expected"), name
        assert "messages" not in error["message"] and "server" not in error["message"]
    # The same from stdin, with the folder named; a copy of it is what --resume compares.
    monkeypatch.chdir(tmp_path)
    with questions.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        told = [*words, "-", "--out", "again.jsonl", "--images", str(folder)]
        assert main(told) == 1
    again = rows_of(tmp_path / "again.jsonl")
    assert compared({name: row["response"]["body"] for name, row in again.items()}) == compared(
        {name: row["response"]["body"] for name, row in found.items()}
    )
    whole = (tmp_path / "again.jsonl").read_bytes()
    with questions.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main([*told, "--resume"]) == 1
    assert (tmp_path / "again.jsonl").read_bytes() == whole


def test_killed_and_gone_on_with(tiny_package: Path, tmp_path: Path) -> None:
    ONE.image.save(tmp_path / "one.png")
    asked = {"images": ["one.png"], "prompt": "Read.", "min_new_tokens": 60, "max_tokens": 60}
    questions = written(tmp_path / "questions.jsonl", [asked] * 6)
    out = tmp_path / "answers.jsonl"
    words = [str(tiny_package), str(questions), "--out", str(out), "--running", "2", "--resume"]
    command = [sys.executable, "-c", START, *words, "--quiet"]
    process = subprocess.Popen(command)
    while not (out.exists() and out.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = out.read_bytes()
    with out.open("ab") as file:  # as if the kill had come in the middle of a line
        file.write(b'{"id": "batch_req_1", "custom_id": "li')
    assert before
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_bytes().startswith(before)
    found = rows_of(out)
    assert found.keys() == {f"line-{number}" for number in range(1, 7)}
    assert all(row["response"]["status_code"] == 200 for row in found.values())


def test_a_second_process_is_kept_out(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")
    questions = written(tmp_path / "questions.jsonl", [{"prompt": "Hello."}])
    out = tmp_path / "answers.jsonl"
    file = os.open(out, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        assert main([str(tiny_package), str(questions), "--out", str(out)]) == 1
    finally:
        os.close(file)
    assert "found one that another process writes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [("-", "found stdout"), ("questions.jsonl", "one that is read"), ("/", "fold")],
)
def test_where_answers_cannot_be(
    name: str,
    told: str,
    tiny_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    questions = written(tmp_path / "questions.jsonl", [{"prompt": "Hello."}])
    before = questions.read_bytes()
    assert main([str(tiny_package), "questions.jsonl", "--out", name]) == 1
    assert told in capsys.readouterr().err
    assert questions.read_bytes() == before and [*tmp_path.iterdir()] == [questions]


@pytest.mark.parametrize(("name", "told"), [("none", "found none"), ("in.jsonl", "found a file")])
def test_pictures_in_no_folder(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = written(tmp_path / "in.jsonl", [{"prompt": "Hello."}])
    words = ["none.avl", str(questions), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--images", str(tmp_path / name)])
    assert stop.value.code == 2
    assert f"expected a folder, {told}" in capsys.readouterr().err

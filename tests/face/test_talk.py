"""Conversations of avl-run: commands, messages of several lines, what is saved and loaded."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime.cli import run
from avl_runtime.cli.talk import loop
from avl_runtime.cli.talk.commands import COMMANDS
from avl_runtime.cli.talk.typed import ClearedError
from avl_runtime.generate.results import Result
from face.fake_model import ANSWER, FakeModel


class Typed(list[Any]):
    """Lines that are typed one after another; Ctrl-D behind the last. `asked` are the prompts."""

    sees = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def read(self, prompt: str, keep: bool = True) -> str:
        self.asked.append(prompt)
        if not self:
            raise EOFError
        line = self.pop(0)
        if isinstance(line, BaseException):
            raise line
        return str(line)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(run, "LVLM", fake)
    return fake


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    lines = Typed()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(loop, "choose_lines", lambda history, complete, aside: lines)
    return lines


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my cat.png"
    Image.new("RGB", (50, 40), "red").save(path)
    return path


def asked(model: FakeModel) -> list[tuple[str, int]]:
    return [(prompt, images) for prompt, images, _ in model.asked]


def test_pictures_go_with_the_next_question(
    model: FakeModel, typed: Typed, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    escaped = str(picture).replace(" ", "\\ ")
    typed += ["", f"/image {picture}", f"/image '{picture}' {escaped}", "/image missing.png"]
    typed += ["What?", "And?", "/quit", "never"]
    assert run.main(["pkg", "--image", str(picture)]) == 0
    assert asked(model) == [("What?", 4), ("And?", 0)]
    out, err = capsys.readouterr()
    assert out == f"{ANSWER}\n" * 2
    assert err.count("my cat.png: 50 x 40, 144 tokens\n") == 4
    assert "\n2 pictures go with the next question, 288 tokens\n" in err
    assert "\n4 pictures go with the next question, 576 tokens\n" in err
    assert "avl-run: missing.png: expected" in err
    assert err.startswith("/help lists the commands, /quit or Ctrl-D leaves\n")
    assert typed == ["never"]


def test_videos(
    model: FakeModel, typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """avl-tiny takes none: that is said before a question is asked."""
    film = tmp_path / "film.gif"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(film, save_all=True, append_images=frames[1:], duration=100)
    typed += [f"/video {film}", "/video missing.mp4", "What?"]
    assert run.main(["pkg"]) == 0
    assert model.films == [0]
    err = capsys.readouterr().err
    assert "avl-run: expected images only, found 1 videos" in err
    assert "avl-run: missing.mp4: expected" in err


def test_help_has_a_line_for_every_command(
    model: FakeModel, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["/help"]
    assert run.main(["pkg"]) == 0
    lines = capsys.readouterr().err.splitlines()[1:]
    names = ["/image", "/video", "/clear", "/undo", "/policy", "/system", "/save", "/load"]
    names += ["/help", "/quit"]
    assert list(COMMANDS) == names
    for name in names:
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert len(line) > 30
    assert any(line.startswith('"""') for line in lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/imgae cat.png", "expected a command, found '/imgae'; did you mean /image?"),
        ("/qiut", "did you mean /quit?"),
        ("/xyzzy", "expected a command, found '/xyzzy'; /help lists them"),
        ("/", "expected a command, found '/'"),
        ("/" + "x" * 5000, "; /help lists them"),
        ("/image", "expected /image FILE|URL, found /image alone: show a picture"),
        ("/save", "expected /save FILE, found /save alone"),
        ("/clear all", "expected /clear alone, found 'all' behind it"),
        ("/undo 2", "expected /undo alone, found '2' behind it"),
        ("/undo", "expected something said to take back, found nothing"),
        ("/policy fastvv", "expected a policy, found 'fastvv'; did you mean fastv?"),
        ("/save talk.json", "/save: expected a conversation, found none yet"),
        ("/load " + "x" * 5000, "expected to read it, found: File name too long"),
        ("/load missing.json", "missing.json: expected a file, found none"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    model: FakeModel, typed: Typed, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed += [line, "Still there?"]
    assert run.main(["pkg"]) == 0
    assert asked(model) == [("Still there?", 0)]
    told = capsys.readouterr().err.splitlines()[1:]
    assert len(told) == 1 and told[0].startswith("avl-run: ") and said in told[0]
    assert len(told[0]) < 300


@pytest.mark.parametrize("dropped", ["{}", "'{}'", '"{}"'])
def test_a_dragged_file_alone_is_no_command_and_no_question(
    model: FakeModel,
    typed: Typed,
    picture: Path,
    dropped: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed += [dropped.format(picture), '"cat.png" is what?', "'quoted'"]
    assert run.main(["pkg"]) == 0
    told = capsys.readouterr().err
    assert told.count(", a file; /image or /video in front of a file shows it") == 1
    assert asked(model) == [('"cat.png" is what?', 0), ("'quoted'", 0)]


def test_folders_are_neither_saved_over_nor_loaded(
    model: FakeModel, typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["one", f"/save {tmp_path}", f"/load {tmp_path}"]
    assert run.main(["pkg"]) == 0
    told = capsys.readouterr().err
    assert f"{tmp_path}: expected to write it, found: a folder; name a file in it" in told
    assert f"{tmp_path}: expected a file, found a folder; name one in it" in told
    assert not any("Replace it" in prompt for prompt in typed.asked)


def test_clear_undo_policy_and_system(
    model: FakeModel, typed: Typed, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["/system Be brief.", f"/image {picture}", "one", "two", "/undo", "/undo"]
    typed += ["/policy", "/policy avl:keep=0.5", "/system", '/system ""', "three"]
    typed += [f"/image {picture}", "/clear", "four"]
    assert run.main(["pkg", "--system", "Be kind."]) == 0
    (chat,) = model.chats
    assert asked(model) == [("one", 1), ("two", 0), ("three", 0), ("four", 0)]
    texts = [message["content"][-1]["text"] for message in chat.messages]
    assert texts == ["four", ANSWER]
    assert str(chat.policy) == "avl"
    err = capsys.readouterr().err
    for line in (
        "system prompt: Be brief.",
        "took back 'two', and its answer",
        "took back 'one' with 1 picture, and its answer",
        "policy: dense",
        "policy: avl",
        "no system prompt",
        "the conversation begins anew",
    ):
        assert f"\n{line}\n" in err


def test_messages_of_several_lines(model: FakeModel, typed: Typed, picture: Path) -> None:
    typed += ['"""What', "", '  is this?"""', '"""/clear is a command."""', '"""', "a", 'b """']
    typed += ["pasted\nlines", f"/image {picture}\n/policy avl\nWhat\nnow?", "/etc/x\nis a file"]
    typed += ['"""a', ClearedError(), '"""b', KeyboardInterrupt(), '"""pasted\nwhole"""']
    assert run.main(["pkg"]) == 0
    assert asked(model) == [
        ("What\n\n  is this?", 0),
        ("/clear is a command.", 0),
        ("a\nb", 0),
        ("pasted\nlines", 0),
        ("What\nnow?", 1),
        ("/etc/x\nis a file", 0),
        ("pasted\nwhole", 0),
    ]
    assert set(typed.asked) == {"> ", "... "}
    assert str(model.chats[0].policy) == "avl"


def test_a_conversation_is_saved_and_loaded(
    model: FakeModel,
    typed: Typed,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    typed += ["/image 'my cat.png'", f"/image {base64.b64encode(buffer.getvalue()).decode()}"]
    typed += ["one", f"/image {address}", "two", "/save talk.json", "/save talk.json", "n"]
    assert run.main(["pkg", "--system", "Be brief."]) == 0
    saved = Path("talk.json").read_bytes()
    said = json.loads(saved)
    turn = ["user", "assistant"]
    assert [message["role"] for message in said] == ["system", *turn, *turn]
    cat, bare, text = said[1]["content"]
    assert cat == {"type": "image", "path": str(picture)}
    assert text == {"type": "text", "text": "one"}
    assert said[2]["content"] == [{"type": "text", "text": ANSWER}]
    assert said[3]["content"][0] == {"type": "image", "url": address}
    with Image.open(io.BytesIO(base64.b64decode(bare["url"].partition(",")[2]))) as image:
        assert image.getpixel((0, 0)) == (1, 2, 3)
    err = capsys.readouterr().err
    assert "\nsaved 5 messages as talk.json\n" in err and "\nnothing was saved\n" in err
    assert "talk.json exists. Replace it? [y/N] " in typed.asked
    assert {path.name for path in tmp_path.iterdir()} == {"my cat.png", "talk.json"}

    typed += ["/load talk.json", "three", "/save talk.json", "y", "/load talk.json", "no"]
    assert run.main(["pkg"]) == 0
    chat = model.chats[-2]
    assert [message["role"] for message in chat.messages][3:] == ["user", "assistant"] * 2
    assert chat.media == ("image",) * 3
    assert chat.messages[1]["content"][0]["image"].size == (50, 40)
    again = json.loads(Path("talk.json").read_text())
    assert again[:5] == said and again[5]["content"] == [{"type": "text", "text": "three"}]
    err = capsys.readouterr().err
    assert "5 messages of talk.json; the conversation goes on from there" in err
    assert "nothing was loaded" in err


def test_what_is_saved_is_what_transformers_reads(
    model: FakeModel, typed: Typed, picture: Path, tmp_path: Path
) -> None:
    from transformers.image_utils import load_image

    path = tmp_path / "talk.json"
    typed += ["What?", f"/save {path}"]
    assert run.main(["pkg", "--image", str(picture)]) == 0
    said = json.loads(path.read_text())
    assert load_image(said[0]["content"][0]["path"]).size == (50, 40)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected JSON"),
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "expected messages"),
        ('{"role": "user"}', "expected messages"),
        ('[{"role": "user"}]', "expected messages"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', "expected the path or url"),
        ('[{"role": "user", "content": [{"type": "image", "path": "no.png"}]}]', "no.png"),
    ],
)
def test_a_file_that_cannot_be_loaded_changes_nothing(
    model: FakeModel,
    typed: Typed,
    tmp_path: Path,
    content: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    typed += ["one", f"/load {path}", "two"]
    assert run.main(["pkg"]) == 0
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert len(model.chats[0].messages) == 4


def test_a_file_that_cannot_be_written_stays_as_it_was(
    model: FakeModel, typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    typed += ["one", f"/save {tmp_path / 'none' / 'x.json'}", f"/save {tmp_path / 'folder'}", "y"]
    assert run.main(["pkg"]) == 0
    err = capsys.readouterr().err
    assert err.count("expected to write it, found: ") == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_a_reply_that_was_cut_is_marked(
    model: FakeModel, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["long", "short"]
    assert run.main(["pkg"]) == 0
    mark = "[cut after 4 tokens; --max-new-tokens allows more]\n"
    assert capsys.readouterr().err.count(mark) == 1
    assert run.main(["pkg", "long"]) == 0
    assert capsys.readouterr() == (f"{ANSWER}\n", mark)
    for option in ("--json", "--quiet"):
        assert run.main(["pkg", "long", option]) == 0
        assert capsys.readouterr().err == ""


def test_a_conversation_goes_on_after_a_failure(
    model: FakeModel, typed: Typed, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of a question that was not read are still there for the next one."""
    model.raises = AvlError("expected a shorter prompt")
    typed += [f"/image {picture}", "one", "two"]
    assert run.main(["pkg"]) == 0
    assert asked(model) == [("one", 1), ("two", 1)]
    err = capsys.readouterr().err
    assert err.count("avl-run: expected a shorter prompt\n") == 2
    assert err.count("1 picture still waiting; /clear drops what waits, too\n") == 2


def test_ctrl_c_ends_an_answer_and_then_the_conversation(
    model: FakeModel, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces(prompt: str, images: int) -> Generator[str, None, Result]:
        yield "one"
        os.kill(os.getpid(), signal.SIGINT)
        yield "two"
        yield "three"
        raise AssertionError("the answer went on")

    before = signal.getsignal(signal.SIGINT)
    model.pieces = pieces  # type: ignore[method-assign]
    typed += ["What?", KeyboardInterrupt(), KeyboardInterrupt()]
    assert run.main(["pkg"]) == 130
    out, err = capsys.readouterr()
    assert out.startswith("onetwo\n") and "\n[stopped]\n" in err
    assert err.endswith("avl-run: stopped\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_an_answer_at_once(
    model: FakeModel, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces(prompt: str, images: int) -> Generator[str, None, Result]:
        yield "one"
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield "two"

    model.pieces, kept = pieces, model.pieces  # type: ignore[method-assign]
    typed += ["What?", "/undo"]
    assert run.main(["pkg"]) == 0
    err = capsys.readouterr().err
    assert "\n[stopped; /undo takes the question back]\n" in err and "took back 'What?'" in err
    model.pieces = kept  # type: ignore[method-assign]


def test_ctrl_c_that_dropped_a_line_is_not_the_end(
    model: FakeModel, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    typed += [ClearedError(), "What?", KeyboardInterrupt(), "And?", KeyboardInterrupt()]
    typed += [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")]
    assert run.main(["pkg"]) == 0
    assert asked(model) == [("What?", 0), ("And?", 0)]
    err = capsys.readouterr().err
    assert (
        err.count("Ctrl-C again, /quit or Ctrl-D leaves") == 2 and "expected text in UTF-8" in err
    )

"""Conversations of avl-run on a real terminal, with each way of editing lines."""

from __future__ import annotations

import json
import os
import stat
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from face.fake_model import ANSWER
from support.terminal import Terminal

PROGRAM = """
import sys
for name in {without}:
    sys.modules[name] = None
from face.fake_model import FakeModel
from avl_runtime.cli import run
run.LVLM = FakeModel()
sys.exit(run.main(["pkg", *sys.argv[1:]]))
"""
EDITORS = {
    "prompt_toolkit": (),
    "readline": ("prompt_toolkit",),
    "plain": ("prompt_toolkit", "readline"),
}
PASTE = "\x1b[200~{}\x1b[201~"


class Person(Terminal):
    """Someone at avl-run, whose first prompt has been waited for."""

    def __init__(self, home: Path, editor: str, *arguments: str) -> None:
        if editor != "plain" and find_spec(editor) is None:
            pytest.skip(f"{editor} is not installed")
        program = PROGRAM.format(without=EDITORS[editor])
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_STATE_HOME": str(home)}
        super().__init__([sys.executable, "-c", program, *arguments], environment)
        self.wait_for("/help lists the commands")
        self.wait_for("> ")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my cat.png"
    Image.new("RGB", (50, 40), "red").save(path)
    return path


@pytest.mark.parametrize("editor", EDITORS)
def test_questions_and_ctrl_c(editor: str, tmp_path: Path) -> None:
    """Half a line is dropped, an answer is stopped, and each time the conversation goes on."""
    with Person(tmp_path, editor) as person:
        person.type("What is")
        person.wait_for("What is")
        person.interrupt("> ")
        # All at once: the terminal may drop the text before it is read.
        person.interrupt("> ", behind="and more")
        person.type("it?\n")
        person.wait_for(ANSWER)
        person.wait_for("> ")
        person.type("forever\n")
        person.wait_for(" and on and on")
        person.type("\x03")
        person.wait_for("[stopped]")
        person.wait_for("> ")
        person.type("/save talk.json\n".replace("talk", str(tmp_path / "talk")))
        person.wait_for("saved 4 messages")
        person.wait_for("> ")
        person.type("\x04")
        assert person.end() == 0
        assert "Traceback" not in person.seen
    said = json.loads((tmp_path / "talk.json").read_text())
    assert [one["content"][0]["text"] for one in said[::2]] == ["it?", "forever"]
    assert said[3]["content"][0]["text"].startswith("a red and on and on")


@pytest.mark.parametrize("editor", EDITORS)
def test_ctrl_c_at_an_empty_prompt_tells_how_to_leave(editor: str, tmp_path: Path) -> None:
    with Person(tmp_path, editor) as person:
        person.interrupt("/quit or Ctrl-D leaves")
        person.wait_for("> ")
        person.type("What is it?\n")
        person.wait_for(ANSWER)
        person.wait_for("> ")
        person.interrupt("/quit or Ctrl-D leaves")
        person.wait_for("> ")
        if editor == "plain":  # nobody knows whether something had been typed: it never leaves
            person.interrupt("/quit or Ctrl-D leaves")
            person.wait_for("> ")
            person.type("\x04")
            assert person.end() == 0
            return
        person.interrupt("avl-run: stopped")
        assert person.end() == 130
        assert "Traceback" not in person.seen


@pytest.mark.parametrize("editor", EDITORS)
def test_messages_of_several_lines(editor: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with Person(tmp_path, editor) as person:
        person.type('"""What\n')
        person.wait_for("... ")
        person.type('is it?"""\n')
        person.wait_for(ANSWER)
        person.wait_for("> ")
        lines = ["What\nis it?"]
        if editor != "plain":
            person.type(PASTE.format("def f():\n    return 1"))
            person.wait_for("return 1")
            person.type("\n")
            person.wait_for(ANSWER)
            person.wait_for("> ")
            lines.append("def f():\n    return 1")
        person.type(f"/save {path}\n")
        person.wait_for("saved")
        person.type("/quit\n")
        assert person.end() == 0
    said = json.loads(path.read_text())
    assert [one["content"][0]["text"] for one in said[::2]] == lines


@pytest.mark.parametrize("editor", ["prompt_toolkit", "readline"])
def test_history_lasts(editor: str, tmp_path: Path) -> None:
    """The arrow up brings back what was typed in the session before, in whatever editor."""
    other = "readline" if editor == "prompt_toolkit" else "plain"
    with Person(tmp_path, editor) as person:
        person.type("What is it?\n")
        person.wait_for(ANSWER)
        person.wait_for("> ")
        person.type("\x04")
        assert person.end() == 0
    file = tmp_path / "avl" / "history.jsonl"
    assert json.loads(file.read_text()) == "What is it?"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for again in (editor, other):
        with Person(tmp_path, again) as person:
            person.type("\x1b[A" if again != "plain" else "What is it?")
            person.wait_for("What is it?")
            person.type("\n")
            person.wait_for(ANSWER)
            person.wait_for("> ")
            person.type("\x04")
            assert person.end() == 0


@pytest.mark.parametrize("editor", ["prompt_toolkit", "readline"])
def test_paths_are_completed(editor: str, tmp_path: Path, picture: Path) -> None:
    with Person(tmp_path, editor) as person:
        person.type("/ima\t")
        person.wait_for("/image")
        person.type(f" {tmp_path}/my\t")
        person.wait_for("cat.png")
        person.type("\n")
        person.wait_for("my cat.png: 50 x 40, 144 tokens")
        person.wait_for("> ")
        person.type("/quit\n")
        assert person.end() == 0


def test_a_home_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "avl").write_text("no folder")
    for editor in EDITORS:
        if editor != "plain" and find_spec(editor) is None:
            continue
        with Person(tmp_path, editor) as person:
            person.type("What is it?\n")
            person.wait_for(ANSWER)
            person.wait_for("> ")
            person.type("/quit\n")
            assert person.end() == 0
    assert (tmp_path / "avl").read_text() == "no folder"


def test_lines_typed_ahead_are_two_messages(tmp_path: Path) -> None:
    with Person(tmp_path, "plain") as person:
        person.type("What is it?\n/quit\n")
        person.wait_for(ANSWER)
        assert person.end() == 0


@pytest.mark.parametrize("editor", EDITORS)
def test_answers_alone_go_to_a_file(editor: str, tmp_path: Path) -> None:
    """As in `avl-run pkg > answers`: prompts and all else stay on the terminal, quiet or not."""
    program = PROGRAM.replace("\nsys.exit(", "\nsys.stdout = open(sys.argv.pop(), 'w')\nsys.exit(")
    answers = tmp_path / "answers"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program.format(without=EDITORS[editor]), "--quiet"]
    if editor == "prompt_toolkit" and find_spec(editor) is None:
        pytest.skip(f"{editor} is not installed")
    with Terminal([*command, str(answers)], environment) as person:
        person.wait_for("> ")
        person.type("What is it?\n")
        person.wait_for("> ")
        person.type("/quit\n")
        assert person.end() == 0
    assert answers.read_text() == f"{ANSWER}\n"

"""The conversation that docs/cli.md shows is one that avl-tiny has, with right answers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from avl_runtime import LVLM
from avl_runtime.cli import run
from avl_runtime.cli.talk import loop
from avl_runtime.evaluate.cases import task_score
from avl_runtime.tasks import samples

ROOT = Path(__file__).parents[2]
# What the pictures show.
RIGHT = {"How many objects are there?": "6", "Read the text.": "793409\n35247\nCSRXNP\nJFASH"}


def shown() -> list[str]:
    """The lines of the conversation, the command in front."""
    text = (ROOT / "docs/cli.md").read_text()
    block = text.partition("    $ .venv/bin/avl-run ")[2].partition("\n\n")[0]
    return [line.strip() for line in block.splitlines()]


def test_the_conversation_shown(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command, *lines = shown()
    package, *arguments = command.split()
    assert package == "avl-tiny.avl"

    left = [line[2:] for line in lines if line.startswith("> ")]

    class Typing:
        sees = True

        def read(self, prompt: str, keep: bool = True) -> str:
            line = left.pop(0)
            print(f"{prompt}{line}")
            return line

    monkeypatch.setattr(sys, "stdout", sys.stderr)  # both are one on a terminal
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(loop, "choose_lines", lambda history, complete, aside: Typing())
    assert run.main([str(tiny_package), *arguments]) == 0
    assert capsys.readouterr().err.splitlines() == lines
    answers = "\n".join(lines)
    for question, answer in RIGHT.items():
        assert f"> {question}\n{answer}\n>" in answers


def test_another_picture_after_clear_is_answered_as_a_first_one(tiny: LVLM) -> None:
    """Held-out samples: what the documents and quickstart say of avl-tiny's conversations."""
    chat = tiny.chat()
    scores = []
    for number in range(4):
        for task in ("vqa", "ocr"):
            asked = list(samples(task, "held-out", 4))[number]
            chat.clear()
            reply = chat.send(asked.prompt, [asked.image], max_new_tokens=64)
            assert reply.text == tiny.generate(asked.prompt, [asked.image], max_new_tokens=64).text
            scores.append(task_score(asked, reply.text))
    assert sum(scores) / len(scores) > 0.9

"""A conversation with avl-tiny that is saved, taken back and gone on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from avl_runtime.cli import run
from avl_runtime.cli.talk import loop

ROOT = Path(__file__).parents[2]


def test_a_saved_conversation_goes_on_as_if_it_had_not_ended(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under another policy in between, undone and loaded: the same answer as without all that."""
    left: list[str] = []

    class Typing:
        sees = True

        def read(self, prompt: str, keep: bool = True) -> str:
            if not left:
                raise EOFError
            return left.pop(0)

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(loop, "choose_lines", lambda history, complete, aside: Typing())
    plain, first, second = (tmp_path / f"{name}.json" for name in ("plain", "first", "second"))
    begin = [f"/image {ROOT / 'samples/scene.png'}", "How many objects are there?"]
    go_on = ["Where is the red object?"]
    arguments = [str(tiny_package), "--backend", "ort-cpu", "--max-new-tokens", "16"]

    left += [*begin, *go_on, f"/save {plain}"]
    assert run.main(arguments) == 0
    left += [*begin, "/policy fastv", "Describe the image.", "/undo", "/policy dense"]
    left += [f"/save {first}"]
    assert run.main(arguments) == 0
    left += [f"/load {first}", *go_on, f"/save {second}"]
    assert run.main(arguments) == 0

    said = json.loads(plain.read_text())
    assert [one["role"] for one in said] == ["user", "assistant"] * 2
    assert said[1]["content"] == [{"type": "text", "text": "6"}]
    assert json.loads(first.read_text()) == said[:2]
    assert json.loads(second.read_text()) == said

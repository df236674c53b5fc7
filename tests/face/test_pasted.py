"""What a drag into a terminal pastes, and names that only look like it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_runtime.cli.talk import pasted
from avl_runtime.cli.talk.pasted import pasted_path, pasted_paths

ODD = ["my cat.png", "O'Neil.png", 'a "b".png', "tab\there.png", "50% #1 (2).png", "ä$HOME.png"]


def escaped(path: str) -> str:
    """As macOS's Terminal pastes a path."""
    return "".join(one if one.isalnum() or one in "/._-" else f"\\{one}" for one in path)


@pytest.mark.parametrize("name", ODD)
def test_a_dragged_file_is_found_however_it_is_pasted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    whole = str(path)
    doubled = '"' + whole.replace("\\", "\\\\").replace('"', '\\"') + '"'
    for text in (whole, shlex.quote(whole), escaped(whole), doubled):
        assert pasted_paths(f" {text} ") == [whole]
        assert pasted_path(text + " ") == whole


def test_several_files_dragged_at_once(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ODD]
    for path in paths:
        Path(path).touch()
    address = "https://example.org/cat.png"
    for quote in (shlex.quote, escaped):
        text = " ".join(map(quote, paths))
        assert pasted_paths(f"{text} {address}") == [*paths, address]
        assert pasted_path(text) == text


def test_what_names_a_file_as_it_stands_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("'quoted'.png", "back\\slash.png", "a.png b.png", "a.png", "b.png", "#1.png"):
        Path(name).touch()
    for name in ("'quoted'.png", "back\\slash.png", "a.png b.png", "#1.png"):
        assert pasted_paths(name) == [name]
    Path("a.png b.png").unlink()
    assert pasted_paths("a.png b.png") == ["a.png", "b.png"]


def test_names_of_no_file_stay_whole_and_lose_their_quotes() -> None:
    assert pasted_paths("my missing cat.png") == ["my missing cat.png"]
    assert pasted_paths("'my missing cat.png'") == ["my missing cat.png"]
    assert pasted_paths("O'Neil.png") == ["O'Neil.png"]
    assert pasted_paths("file:///tmp/a%20b.png ") == ["file:///tmp/a%20b.png"]
    assert pasted_paths("data:image/png;base64,AAAA") == ["data:image/png;base64,AAAA"]
    assert pasted_paths("  ") == [] and pasted_path(" ") == ""
    assert pasted_path("x" * 5000) == "x" * 5000


def test_a_home_folder_is_left_to_whoever_opens_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my cat.png").touch()
    assert pasted_paths("~/my cat.png") == ["~/my cat.png"]
    assert pasted_paths("~/my\\ cat.png") == ["~/my cat.png"]


def test_backslashes_of_windows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pasted, "WINDOWS", True)
    assert pasted_paths('"C:\\my cats\\new.png"') == ["C:\\my cats\\new.png"]
    assert pasted_paths("C:\\cats\\new.png") == ["C:\\cats\\new.png"]


@given(text=st.text(min_size=1, max_size=40).filter(lambda text: "\0" not in text))
@settings(max_examples=200, deadline=None)
def test_what_a_shell_quotes_is_read_back(text: str) -> None:
    assert pasted_paths(shlex.quote(text)) == [text]
    assert all(pasted_paths(text))

"""What avl-run makes of its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from avl_runtime.cli.arguments import make_parser, parse_arguments


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "photo"):
        Image.new("RGB", (4, 4)).save(name, "PNG")
    Path("pkg").mkdir()


def read(*words: str) -> Any:
    return parse_arguments(make_parser(), words)


@pytest.mark.parametrize(
    ("words", "prompt", "images", "videos"),
    [
        ('pkg "What?" --image a.png b.png', "What?", "a.png b.png", ""),
        ('pkg --image a.png b.png "What?"', "What?", "a.png b.png", ""),
        ('--image a.png b.png pkg "What?"', "What?", "a.png b.png", ""),
        ('--image a.png pkg "What?"', "What?", "a.png", ""),
        ('pkg --image a.png "What?"', "What?", "a.png", ""),
        ('pkg "What?" --image a.png --image b.png', "What?", "a.png b.png", ""),
        ('pkg "What?" --image=a.png b.png', "What?", "a.png b.png", ""),
        ('--image a.png pkg --stats "What?"', "What?", "a.png", ""),
        ('pkg "What?" --image photo photo', "What?", "photo photo", ""),
        ('pkg "What?" --image a.png missing.png', "What?", "a.png missing.png", ""),
        ("pkg --image a.png photo b.png", None, "a.png photo b.png", ""),
        ("pkg --image a.png -- photo", "photo", "a.png", ""),
        ("pkg --image a.png What?", "What?", "a.png", ""),
        ("pkg --image a.png https://x.org/c", None, "a.png https://x.org/c", ""),
        ("pkg --image a.png file:///c.png Why", "Why", "a.png file:///c.png", ""),
        ('pkg --image a.png "What is in a.png"', "What is in a.png", "a.png", ""),
        ("pkg Why --image a.png - b.png", "Why", "a.png - b.png", ""),
        ("pkg Why --im a.png b.png", "Why", "a.png b.png", ""),
        ("pkg --image a.png b.gif#frame=2 Why", "Why", "a.png b.gif#frame=2", ""),
        ("pkg Why --video c.mp4 d.mkv --image a.png", "Why", "a.png", "c.mp4 d.mkv"),
        ("pkg Why --image a.png b.png --video c.mp4", "Why", "a.png b.png", "c.mp4"),
        ("pkg -- -why", "-why", "", ""),
        ("-- pkg -why", "-why", "", ""),
        ("pkg --stats -- --image", "--image", "", ""),
        ('pkg "- why?" --image a.png', "- why?", "a.png", ""),
    ],
)
def test_several_files_after_one_option(
    words: str, prompt: str | None, images: str, videos: str
) -> None:
    import shlex

    found = read(*shlex.split(words))
    assert (found.package, found.prompt) == (Path("pkg"), prompt)
    assert (found.image, found.video) == (images.split(), videos.split())


def test_a_word_too_many_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["pkg", "Why", "--image", "a.png", "nothing"], ["pkg", "Why", "nothing"]):
        with pytest.raises(SystemExit, match="2"):
            read(*words)
        assert capsys.readouterr().err.endswith("unrecognized arguments: nothing\n")


@pytest.mark.parametrize(
    "words",
    [
        ["pkg", "Why", "x" * 5000],
        ["pkg", "Why", "--policy", "x" * 5000],
        ["pkg", "Why", "--top-k", "ä\n" * 5000],
        ["pkg", "Why", "--backend=" + "y" * 5000],
        ["pkg", "Why", "--" + "z" * 5000],
    ],
)
def test_long_values_are_not_repeated_whole(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    # An error may name all policies, so it is held to that of a shorter value.
    for most in (200, 10_000):
        with pytest.raises(SystemExit, match="2"):
            read(*[word[:most] for word in words])
        lines.append(capsys.readouterr().err.splitlines()[-1])
    assert lines[1].startswith("avl-run: error: ") and 80 < len(lines[1]) < len(lines[0]) + 20

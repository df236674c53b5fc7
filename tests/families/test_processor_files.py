"""Settings of pictures and videos come from the file that transformers reads."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPImageProcessor
from transformers.video_processing_utils import BaseVideoProcessor

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.processor_files import Kind, processor_notes, settings_of
from avl_export.families.processors.preprocessing import image_processor

# Where settings may lie: a file, and the key that holds them.
PLACES = (
    ("processor_config.json", "image_processor"),
    ("processor_config.json", "video_processor"),
    ("preprocessor_config.json", None),
    ("video_preprocessor_config.json", None),
)
SUBSETS = [
    chosen for count in range(1, 5) for chosen in itertools.combinations(range(len(PLACES)), count)
]


def write(folder: Path, chosen: tuple[int, ...], same: bool = False) -> Checkpoint:
    """A folder that holds settings in the `chosen` places, each with a size of its own."""
    files: dict[str, dict[str, Any]] = {}
    for number in chosen:
        file, key = PLACES[number]
        settings = {"size": {"shortest_edge": 99 if same else number}, "resample": 3}
        files.setdefault(file, {}).update({key: settings} if key else settings)
    for file, value in files.items():
        (folder / file).write_text(json.dumps(value))
    return Checkpoint("x", folder, {})


def by_transformers(folder: Path, kind: Kind) -> Any:
    """The settings that transformers reads; None where it refuses."""
    try:
        if kind == "image":
            return CLIPImageProcessor.get_image_processor_dict(folder)[0]
        return BaseVideoProcessor.get_video_processor_dict(folder)[0]
    except OSError:
        return None


@pytest.mark.parametrize("chosen", SUBSETS, ids=str)
def test_order(chosen: tuple[int, ...], tmp_path: Path) -> None:
    checkpoint = write(tmp_path, chosen)
    for kind in ("image", "video"):
        found = settings_of(checkpoint, kind)
        expected = by_transformers(tmp_path, kind)
        if expected is not None:
            assert found[0].values == expected
        # A video processor of none but nested pictures' settings is more than transformers has.
        elif not (kind == "video" and 0 in chosen):
            assert found == []
    if by_transformers(tmp_path, "image") is not None:
        values, where = image_processor(checkpoint)
        assert values == settings_of(checkpoint, "image")[0].values
        assert Path(where).is_file()


def test_what_says_otherwise_is_named(tmp_path: Path) -> None:
    (line,) = processor_notes(write(tmp_path, (0, 2)), video=False)
    assert "pictures are prepared as processor_config.json says" in line
    assert "left aside: preprocessor_config.json" in line
    pictures, videos = processor_notes(write(tmp_path, (0, 1, 2, 3)), video=True)
    assert pictures == line
    assert "left aside: video_preprocessor_config.json" in videos


def test_what_says_the_same_is_not(tmp_path: Path) -> None:
    assert processor_notes(write(tmp_path, (0, 1, 2, 3), same=True), video=True) == ()
    assert processor_notes(write(tmp_path, ()), video=True) == ()

"""GLM-4V: learned positions stretched cubically, four norms a layer, partial M-RoPE."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm46VForConditionalGeneration,
)
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.video_utils import VideoMetadata

from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.families import load_family
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_runtime.vision.frame_choice import paced, stepped
from avl_runtime.vision.load.videos import Video, VideoError
from families.glm import (
    COMMON,
    TEXT,
    TOKENS,
    TURNS,
    VIDEO,
    VISION,
    GlmTests,
    encode,
    filmed,
    processor,
    video_files,
)
from families.qwen import PatchTests, merged, video_processor
from families.shared import PROMPT
from families.support import Case, clip, picture, refused

CASES = (
    Case(
        name="glm4v",
        model=Glm4vForConditionalGeneration,
        # The MLP of the encoder's layers is as wide as what the encoder puts out.
        config=Glm4vConfig(text_config=TEXT, vision_config=VISION, **TOKENS),
        processor=filmed("glm4v", Glm4vProcessor),
        files=video_files("Glm4vVideoProcessor"),
        encode=encode,
        **COMMON,
    ),
)


class TestGlm4v(GlmTests):
    cases = CASES
    turns = TURNS


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 4000), st.sampled_from((0.4, 1.0, 1.7, 5.0, 24.0, 29.97, 60.0)))
def test_frames_of_videos_are_those_of_transformers(count: int, fps: float) -> None:
    film = Video([picture((8, 8))] * count, fps)
    known = VideoMetadata(total_num_frames=count, fps=fps, duration=count / fps)
    theirs = {name: video_processor(name).sample_frames(known) for name in ("glm4v", "glm46v")}
    assert stepped(film, fps, 2, 300) == theirs["glm4v"].tolist()
    assert paced(film, fps, 2) == theirs["glm46v"].tolist()


def test_times_of_glm46v(make: Any) -> None:
    """Another processor of videos, by its name; the model is the same."""
    made = make(CASES[0])
    film, fps = clip(13, (40, 30)), 1.1
    name, kind = "video_preprocessor_config.json", {"video_processor_type": "Glm46VVideoProcessor"}
    folder = made.folder.parent / "other"
    shutil.copytree(made.folder, folder)
    (folder / name).write_text(json.dumps(VIDEO | kind))
    family = load_family(open_checkpoint(str(folder)), torch.float32)
    layout = family.traits.video.layout
    theirs = processor(made.processor.tokenizer, video_processor("glm46v", **VIDEO))
    metadata = [{"total_num_frames": 13, "fps": fps, "duration": 13 / fps}]
    want = theirs(
        text="<|video|>", videos=[film], video_metadata=metadata, do_sample_frames=True,
        return_tensors="pt",
    )  # fmt: skip
    found = layout.prepare(Video(film, fps), "<|image|>")
    shown = made.processor.tokenizer(found.replacement).input_ids
    assert shown == want["input_ids"][0].tolist()
    assert ".5 seconds" in found.replacement
    PatchTests._same_pixels([found.inputs], want["pixel_values_videos"].numpy())


def test_videos_that_are_refused(make: Any, tmp_path: Path) -> None:
    made, name = make(CASES[0]), "video_preprocessor_config.json"
    said = refused(made, tmp_path, {name: {**VIDEO, "video_processor_type": "XVideoProcessor"}})
    assert "expected a Glm4vVideoProcessor or Glm46VVideoProcessor, found XVideo" in said
    layout = replace(made.model.package.manifest.video.layout, choice="paced")
    with pytest.raises(VideoError, match=r"of at least 0\.17 seconds"):
        layout.prepare(Video(clip(2, (8, 8)), 30.0), "x")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"image_size": [20, 20]}}, "an image_size of one number"),
        ({"vision_config": {"image_size": 3}}, "at least a patch of 4 pixels"),
        ({"vision_config": {"patch_size": [4, 4]}}, "patch_size to be one number"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    made = make(CASES[0])
    assert expected in refused(made, tmp_path, {"config.json": merged(made, changes)})


def test_glm46v_is_the_same_model(make: Any, tmp_path: Path) -> None:
    """What is exported of one is what is exported of the other, and what transformers computes."""
    made = make(CASES[0])
    folder = shutil.copytree(made.folder, tmp_path / "model")
    renamed = {"model_type": "glm46v", "architectures": ["Glm46VForConditionalGeneration"]}
    config = json.loads((folder / "config.json").read_text()) | renamed
    (folder / "config.json").write_text(json.dumps(config))
    one, other = (
        make_plan(Options(str(path), tmp_path / "x.avl")) for path in (made.folder, folder)
    )
    assert other.family.name == "glm46v"
    assert other.family.traits == one.family.traits
    assert other.family.decoder.dims == one.family.decoder.dims
    assert other.weights.places == one.weights.places
    assert str(other.family.model.model).replace("Glm46V", "Glm4v") == str(one.family.model.model)
    theirs = Glm46VForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    inputs = made.encode(PROMPT, [picture((97, 61))])
    with torch.inference_mode():
        expected = made.reference(**inputs).logits
        torch.testing.assert_close(theirs(**inputs).logits, expected, atol=0, rtol=0)
    changes = renamed | merged(made, {"vision_config": {"model_type": "x"}})
    said = refused(made, tmp_path, {"config.json": changes})
    assert "expected glm4v_vision as model_type" in said

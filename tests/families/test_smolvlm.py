"""Idefics3 and SmolVLM: tiles named by row and column, SmolVLM's videos as dated frames."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.video_utils import VideoMetadata, make_batched_metadata

from avl_export.families.smolvlm import DEFAULT_CHAT_TEMPLATE, with_videos
from avl_runtime.prompts.template_environment import environment
from avl_runtime.vision.load.videos import Video, VideoError
from avl_runtime.vision.number_words import in_words
from avl_runtime.vision.split import DatedFrames, SplitImage, TileText
from avl_runtime.vision.steps import ImageProcessing
from families.chosen import ChosenTests
from families.shared import FamilyTests
from families.support import (
    Case,
    Made,
    call_processor,
    make_tokenizer,
    picture,
    refused,
    without_checks,
)

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
BORDER = "<fake_token_around_image>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", BORDER, "<image>")


def videos_of_transformers() -> Any:
    """transformers' module for SmolVLM's videos, which hides itself where torchvision lacks."""
    path = Path(processing_smolvlm.__file__).with_name("video_processing_smolvlm.py")
    spec = importlib.util.spec_from_file_location(f"{processing_smolvlm.__name__}_videos", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


VIDEOS = videos_of_transformers()
NAMED = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True, slots=True)
class TorchFrames:
    """Stands in for SmolVLMVideoProcessor, which needs torchvision.

    Compared once with it (transformers 5.23, torchvision 0.28): the same to the last bit.
    """

    tile: int
    longest: int
    num_frames: int = 64
    fps: float = 1.0
    valid_kwargs: Any = None
    model_input_names: tuple[str, ...] = ("pixel_values",)

    def __call__(self, videos: Sequence[Sequence[Image.Image]], **_: Any) -> dict[str, Any]:
        values = torch.stack([self.values(video) for video in videos])
        return {
            "pixel_values": values,
            "video_metadata": make_batched_metadata([np.stack(video) for video in videos], None),
        }

    def values(self, frames: Sequence[Image.Image]) -> torch.Tensor:
        """[frames, 3, tile, tile]."""
        pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
        pixels = pixels.permute(0, 3, 1, 2)
        larger = VIDEOS.get_resize_output_image_size(pixels, self.longest)
        for size in (larger, (self.tile, self.tile)):
            if tuple(size) != tuple(pixels.shape[2:]):
                pixels = torch.nn.functional.interpolate(
                    pixels, size, mode="lanczos", antialias=True, align_corners=False
                )
        return (pixels.float() - 127.5) / 127.5


def idefics3_processor(tokenizer: Any) -> Any:
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 100}, max_image_size={"longest_edge": 50}
    )
    return Idefics3Processor(
        images, tokenizer, image_seq_len=25, chat_template=tokenizer.chat_template
    )


def smolvlm_processor(tokenizer: Any) -> Any:
    # The package num2words is asked for even by pictures.
    processing_smolvlm.num2words = NUMBERS.__getitem__
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    return without_checks(SmolVLMProcessor)(
        images,
        tokenizer,
        TorchFrames(32, 64),
        image_seq_len=16,
        chat_template=tokenizer.chat_template,
    )


def encode(
    processor: Any, text: str, images: list[Any], videos: list[Any], **options: Any
) -> Mapping[str, Any]:
    """With pictures and videos together, of which transformers' processor loses one."""
    if not (images and videos):
        return call_processor(processor, text, images, videos, **options)
    shown, front = processor._process_images([images], return_row_col_info=True)
    films, behind = processor._process_videos(videos)
    (filled,), _ = processor.get_text_with_replacements([text], front, behind)
    tiles = torch.from_numpy(shown["pixel_values"])
    frames = films["pixel_values"].flatten(0, 1)[None]
    inputs = dict(processor.tokenizer(filled, return_tensors="pt", **options))
    return inputs | {"pixel_values": torch.cat([tiles, frames], 1)}


def configuration(kind: Any, special: tuple[str, ...], tile: int, patch: int, factor: int) -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": tile,
        "patch_size": patch,
    }
    text = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
    )
    return kind(
        vision_config=vision,
        text_config=text,
        image_token_id=special.index("<image>"),
        scale_factor=factor,
    )


COMMON: dict[str, Any] = {"eos": "<end_of_utterance>", "pad": "<|endoftext|>", "template": TEMPLATE}
IDEFICS3 = Case(
    name="idefics3",
    model=Idefics3ForConditionalGeneration,
    # 25 patches along a side, of which ten share another's position.
    config=configuration(Idefics3Config, SPECIAL, tile=50, patch=2, factor=5),
    special=SPECIAL,
    processor=idefics3_processor,
    files={"processor_config.json": {"image_seq_len": 25}},
    **COMMON,
)
SMOLVLM = Case(
    name="smolvlm",
    model=SmolVLMForConditionalGeneration,
    config=configuration(SmolVLMConfig, SPECIAL, tile=32, patch=4, factor=2),
    special=(*SPECIAL, "<global-img>", *NAMED),
    processor=smolvlm_processor,
    files={"processor_config.json": {"image_seq_len": 16}},
    encode=encode,
    **COMMON,
)


class TestIdefics3(FamilyTests):
    cases = (IDEFICS3,)
    # One tile; two, four and two again; a picture smaller than a tile, and one a pixel high.
    turns = ((), ((50, 50),), ((97, 41), (40, 130)), ((90, 64), (6, 5), (300, 1)))


class TestSmolVLM(FamilyTests, ChosenTests):
    cases = (SMOLVLM,)
    turns = ((), ((64, 61),), ((97, 31), (40, 130), (20, 20)))
    films = (((3, (60, 41)),), ((2, (33, 90)), (2, (41, 41))))

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """transformers hands over frames behind tiles, under one name."""
        text = make_text(inputs["input_ids"][0])
        frames = len(re.findall(r"Frame from \d+:\d\d:", text))
        values = inputs["pixel_values"][0] if not frames else inputs["pixel_values"].flatten(0, 1)
        tiles = len(values) - frames
        return (values[tiles:] if kind == "video" else values[:tiles]).numpy()

    def test_a_conversation_with_a_video_takes_transformers_own_template(self, made: Made) -> None:
        """Which the checkpoint's, in this family, need not know of; turns without one keep it."""
        template = made.model.package.manifest.chat_template
        assert template == with_videos(TEMPLATE)
        assert "video" not in TEMPLATE
        assert with_videos(DEFAULT_CHAT_TEMPLATE) == DEFAULT_CHAT_TEMPLATE
        for written in ("\n  {{ messages[0]['content'] }} \n", "{%- if true -%} x{% endif %}\n\n"):
            said = [{"role": "user", "content": "Hello"}]
            found = environment().from_string(with_videos(written)).render(messages=said)
            assert found == environment().from_string(written).render(messages=said)


IDENTITY = ImageProcessing(True, None, 1, None, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 220),
    height=st.integers(1, 220),
    tile=st.sampled_from([16, 31]),
    longest=st.sampled_from([16, 45, 96, None]),
    splits=st.booleans(),
)
def test_pictures_are_split_as_by_transformers(
    width: int, height: int, tile: int, longest: int | None, splits: bool
) -> None:
    image = picture((width, height))
    theirs = SmolVLMImageProcessorPil(
        size={"longest_edge": longest or 1},
        max_image_size={"longest_edge": tile},
        do_image_splitting=splits,
        do_resize=longest is not None,
    )(image, return_tensors="np", return_row_col_info=True)
    layout = SplitImage("split", IDENTITY, tile, longest, splits, (1, 1), TileText("b", "w"))
    media = layout.prepare(image, "t")
    want = theirs["pixel_values"][0]
    np.testing.assert_allclose(media.inputs["pixel_values"], want, atol=1e-6, rtol=0)
    rows, columns = max(theirs["rows"][0][0], 1), max(theirs["cols"][0][0], 1)
    assert media.cells.grid == (rows, columns)
    assert media.replacement == processing_smolvlm.get_image_prompt_string(
        theirs["rows"][0][0], theirs["cols"][0][0], 1, "b", "t", "w"
    )


@given(
    count=st.integers(1, 4000),
    rate=st.sampled_from([0.5, 1.0, 10.0, 23.976, 30.0, 59.94]),
    most=st.integers(1, 64),
    fps=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
)
def test_frames_are_those_of_transformers(count: int, rate: float, most: int, fps: float) -> None:
    sample = VIDEOS.SmolVLMVideoProcessor.sample_frames
    known = VideoMetadata(count, rate, duration=count / rate)
    want = sample(SimpleNamespace(num_frames=most, fps=fps), known)
    layout = DatedFrames("dated_frames", IDENTITY, 8, 8, most, fps, (1, 1), TileText("b", "w"))
    assert layout._taken(Video([None] * count, rate)) == want.tolist()  # type: ignore[list-item]


def test_frames_and_times_of_a_file() -> None:
    """Twelve frames, five a second: three of them are taken, and told by their times."""
    text = TileText("b", "w")
    layout = DatedFrames("dated_frames", IDENTITY, 8, 8, 8, 1.0, (1, 1), text)
    film = [picture((9, 9), number) for number in range(12)]
    media = layout.prepare(Video(film, 5.0), "t")
    intro = processing_smolvlm.DEFAULT_VIDEO_INTRO
    front = intro.format(frame_count="two", video_duration=timedelta(seconds=2))
    shown = [f"\nFrame from 00:0{second}:bwtb" for second in (0, 2)]
    assert media.replacement == "".join([front, *shown, "\n\n"])
    # Where the rate varies, the frame that is on screen at such a time is taken.
    late = Video(film, 5.0, [*(0.1 * n for n in range(11)), 2.2])
    assert layout._taken(late) == [0, 11]
    every = replace(layout, frames=None, fps=None)
    assert every._taken(Video(film, 5.0)) == layout._taken(Video(film, None)) == list(range(12))
    assert layout.view(Video(film, 5.0)).size == (8, 8)
    large = replace(layout, tile=1 << 12)
    with pytest.raises(VideoError, match="at most 8 frames, found 12"):
        large.prepare(Video(film, None), "t")
    with pytest.raises(VideoError, match="at most 1000000000 seconds"):
        layout.prepare(Video(film, 1e-15), "t")


def test_numbers_are_words() -> None:
    """Compared once with num2words 0.5.14, up to a billion."""
    words = {
        0: "zero",
        13: "thirteen",
        40: "forty",
        64: "sixty-four",
        100: "one hundred",
        219: "two hundred and nineteen",
        1000: "one thousand",
        2012: "two thousand and twelve",
        100_300: "one hundred thousand, three hundred",
        1_000_001: "one million and one",
    }
    assert {number: in_words(number) for number in words} == words


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"config.json": {"scale_factor": 3}}, "a multiple of scale_factor"),
            ({"config.json": {"scale_factor": 0}}, "scale_factor"),
            ({"preprocessor_config.json": {"max_image_size": {"longest_edge": 40}}}, "of 32"),
            ({"preprocessor_config.json": {"size": {"height": 8, "width": 8}}}, "longest_edge of"),
            ({"preprocessor_config.json": {"size": {"longest_edge": 5000}}}, "1 to 4096"),
            ({"preprocessor_config.json": {"resample": 4}}, "with filter 2 or 3 or 1"),
            ({"preprocessor_config.json": {"video_sampling": {"max_frames": 0}}}, "max_frames"),
            ({"preprocessor_config.json": {"video_sampling": {"fps": 1}}}, "max_frames"),
            ({"processor_config.json": {"image_seq_len": 81}}, "image_seq_len of 16"),
        ],
    )
    def test_variants(
        self, make: Any, tmp_path: Path, changes: Mapping[str, Mapping[str, Any]], said: str
    ) -> None:
        assert said in refused(make(SMOLVLM), tmp_path, changes)


def make_text(ids: torch.Tensor) -> str:
    """What the ids of a prompt say."""
    return str(make_tokenizer(SMOLVLM).decode(ids))

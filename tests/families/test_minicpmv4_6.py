"""MiniCPM-V 4.6: slices, patches that merge in the tower, numbers of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)
from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor
from transformers.vision_utils import get_vision_nearest_position_ids

from avl_runtime.prompts.processor import Turn
from avl_runtime.vision.slices import MERGE, SlicedImage
from families.states import StateTests
from families.support import Case, Made, picture, refused, without_checks
from families.test_qwen3_5 import config as qwen3_5

PATCH, SIDE, AREA = 4, 6, 40
NAMES = {
    "image_start": "<image>",
    "image_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "image_id_start": "<image_id>",
    "image_id_end": "</image_id>",
    "video": "<|video_pad|>",
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", *NAMES.values())
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image_pad|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def images_processor() -> Any:
    return MiniCPMV4_6ImageProcessorPil(
        scale_resolution=AREA, patch_size=PATCH, max_slice_nums=6, image_mean=[0.5, 0.4, 0.6]
    )


def processor(tokenizer: Any) -> Any:
    names = {f"{name}_token": text for name, text in NAMES.items()}
    tokenizer._set_model_specific_special_tokens(names)
    videos = SimpleNamespace(slice_mode=True, downsample_mode="16x")
    return without_checks(MiniCPMV4_6Processor)(
        images_processor(), videos, tokenizer, chat_template=tokenizer.chat_template
    )


def config() -> MiniCPMV4_6Config:
    """Patches merge behind the second of four layers; nothing divides anything evenly."""
    return MiniCPMV4_6Config(
        text_config=qwen3_5().get_text_config().to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": PATCH * SIDE,
            "patch_size": PATCH,
        },
        insert_layer_id=1,
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
    )


CASES = (
    Case(
        name="minicpmv4_6",
        model=MiniCPMV4_6ForConditionalGeneration,
        config=config(),
        special=SPECIAL,
        template=TEMPLATE,
        processor=processor,
    ),
)


class TestMiniCpmV46(StateTests):
    cases = CASES
    turns = ((), ((20, 30),), ((97, 61),), ((3, 90), (64, 64)))
    tolerance = 1e-3  # as of Qwen3.5
    between = 2e-3

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """Patches of all parts, cell by cell."""
        strips, begin, found = inputs["pixel_values"][0].numpy(), 0, []
        for rows, columns in inputs["target_sizes"].tolist():
            end = begin + rows * columns * PATCH
            patches = strips[:, :, begin:end].reshape(3, PATCH, rows * columns, PATCH)
            patches = patches.transpose(2, 0, 1, 3).reshape(rows, columns, -1)
            cells = patches.reshape(rows // 4, 2, 2, columns // 4, 2, 2, -1)
            found.append(cells.transpose(0, 3, 1, 4, 2, 5, 6).reshape(rows * columns, -1))
            begin = end
        return np.concatenate(found)

    def test_pictures_of_a_second_turn_are_counted_on(self, made: Made) -> None:
        """Turn by turn the same tokens as the whole conversation has in transformers."""
        ours, images = made.model.processor, [picture((20, 30)), picture((9, 9), 1)]
        first = [{"type": "image", "image": images[0]}, {"type": "text", "text": "Which?"}]
        again = [{"type": "image", "image": images[1]}, {"type": "text", "text": "And this?"}]
        begun = ours.encode(first)
        history = [Turn("Which?", ("image",), "the first", reply_ended=True)]
        found = ours.continue_chat(history, again)
        talk = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": [{"type": "text", "text": "the first"}]},
            {"role": "user", "content": again},
        ]
        want = made.encode_messages(talk, images)["input_ids"][0].tolist()
        assert want[: len(begun.input_ids)] == begun.input_ids.tolist()
        assert want[-len(found.input_ids) :] == found.input_ids.tolist()
        assert "<image_id>1</image_id>" in made.processor.tokenizer.decode(found.input_ids)

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(width=st.integers(1, 300), height=st.integers(1, 300))
    def test_pictures_of_any_size(self, made: Made, width: int, height: int) -> None:
        """Slices, their sizes and the numbers of tokens are those of transformers."""
        layout = made.model.package.manifest.image.layout
        assert isinstance(layout, SlicedImage)
        image = Image.new("RGB", (width, height), (90, 0, 200))
        theirs = images_processor()([image], return_tensors="pt")
        got = layout.prepare(image, "?")
        assert layout.grid(image) == tuple(theirs["grids"][0])
        assert layout.shapes(got) == [tuple(one) for one in theirs["target_sizes"].tolist()]
        assert got.replacement.count("?") == got.tokens
        np.testing.assert_allclose(
            np.concatenate([run["pixel_values"].reshape(-1, 48) for run in got.runs()]),
            self.pixels(theirs, "image"),
            atol=1e-6,
            rtol=0,
        )

    @pytest.mark.parametrize("table", [6, 70])
    def test_every_patch_has_transformers_position(self, made: Made, table: int) -> None:
        """Which rounding decides where a side is a multiple of the table's; 70 is published."""
        layout = made.model.package.manifest.image.layout
        assert isinstance(layout, SlicedImage)
        own = SlicedImage(
            "slices", layout.processing, PATCH, table, AREA, 1, layout.whole, layout.slice, None
        )
        for count in range(MERGE, 300, MERGE):
            want = get_vision_nearest_position_ids(torch.tensor([[count, MERGE]]), table)
            assert own._places(count, MERGE).ravel().tolist() == want.tolist()

    @pytest.mark.parametrize(
        ("file", "changes", "expected"),
        [
            ("preprocessor_config.json", {"patch_size": 8}, "patch_size of 4, as config.json"),
            ("preprocessor_config.json", {"downsample_mode": "4x"}, "downsample_mode 16x, found"),
            ("preprocessor_config.json", {"max_slice_nums": "9"}, "from 1 to 64 as max_slice_nums"),
            ("preprocessor_config.json", {"max_slice_nums": 0}, "from 1 to 64 as max_slice_nums"),
            ("preprocessor_config.json", {"do_resize": False}, "do_resize to be true"),
            ("config.json", {"insert_layer_id": 4}, "insert_layer_id from 0 to 3"),
            ("config.json", {"merger_times": 2}, "cells of 2 x 2 that are merged once each"),
        ],
    )
    def test_what_is_refused(
        self, made: Made, tmp_path: Path, file: str, changes: dict[str, Any], expected: str
    ) -> None:
        assert expected in refused(made, tmp_path, {file: changes})

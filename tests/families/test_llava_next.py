"""LLaVA-NeXT: tiles of any resolution. `test_next_videos` has Mistral's decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next import modeling_llava_next as theirs
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from avl_runtime.vision.anyres import AnyresImage, best_resolution, cut_up
from avl_runtime.vision.steps import ImageProcessing
from families import telling
from families.chosen import ChosenTests
from families.shared import FamilyTests, KeyLayoutTests
from families.support import Case, Made, picture, refused

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
TILE, PATCH = 32, 8
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]

# As in llava-hf/llava-v1.6-vicuna-7b-hf.
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def config(text: Any, **changes: Any) -> LlavaNextConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=32,
    )
    values = {"image_token_index": SPECIAL.index("<image>"), "image_grid_pinpoints": PINPOINTS}
    return LlavaNextConfig(vision_config=vision, text_config=text, **(values | changes))


def image_tiles() -> LlavaNextImageProcessorPil:
    """Transformers' image processor for tiles of TILE pixels in PINPOINTS."""
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
    )


def processor(tokenizer: Any) -> LlavaNextProcessor:
    return LlavaNextProcessor(
        image_tiles(),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
COMMON: dict[str, Any] = {
    "model": LlavaNextForConditionalGeneration,
    "special": SPECIAL,
    "bos": "<s>",
    "eos": "</s>",
    "pad": "<pad>",
    "processor": processor,
}
CASES = (
    Case(
        name="vicuna",
        config=config(LlamaConfig(**SHAPE, num_key_value_heads=4)),
        template=VICUNA,
        **COMMON,
    ),
)


class TileTests(FamilyTests):
    """Tests of families whose pictures are cut into tiles of PINPOINTS."""

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """Without the tiles that fill up transformers' batch."""
        if kind != "image":
            return super().pixels(inputs, kind)
        rows = []
        for values, size in zip(inputs["pixel_values"], inputs["image_sizes"], strict=True):
            rows.append(values[: theirs.image_size_to_num_patches(size, PINPOINTS, TILE)])
        return torch.cat(rows).numpy()


class TestLlavaNext(KeyLayoutTests, TileTests, ChosenTests):
    cases = CASES
    # Wide, tall and square; so narrow that no line of tiles is left; one pixel.
    turns = ((), ((97, 61),), ((40, 130), (64, 64)), ((500, 9), (1, 1), (9, 500)))


@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    side=st.sampled_from([2, 4, 5]),
    resolutions=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6, unique=True
    ),
)
def test_packing_is_that_of_transformers(
    width: int, height: int, side: int, resolutions: list[tuple[int, int]]
) -> None:
    """Features that hold their own number come out of transformers' packing as our index."""
    tile = 4 * side
    pinpoints = tuple((tile * down, tile * across) for down, across in resolutions)
    steps = ImageProcessing(True, (tile, tile), 3, None, None, None, None)
    layout = AnyresImage("anyres", steps, pinpoints, tile, side)
    image = picture((width, height))
    got = layout.prepare(image, "x")
    assert min(layout.view(image).size) >= 1

    count = theirs.image_size_to_num_patches((height, width), [*map(list, pinpoints)], tile)
    numbers = torch.arange(count * side**2, dtype=torch.float64).reshape(count, side**2, 1)
    line_break = torch.tensor([float(count * side**2)], dtype=torch.float64)
    model = torch.nn.Module()
    vision = CLIPVisionConfig(image_size=tile, patch_size=4)
    model.config = LlavaNextConfig(
        vision_config=vision, image_grid_pinpoints=[*map(list, pinpoints)]
    )
    packed, _ = theirs.LlavaNextModel.pack_image_features(
        model, [numbers], [(height, width)], "default", line_break
    )
    assert got.inputs["pixel_values"].shape == (count, 3, tile, tile)
    parts = numbers.split([len(run["pixel_values"]) for run in got.runs()])
    runs = [[torch.cat([part.flatten(0, 1), line_break[None]]).numpy()] for part in parts]
    np.testing.assert_array_equal(got.features(runs).rows, packed[0].numpy())
    assert got.tokens == len(packed[0])


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_best_resolutions_are_those_of_transformers(height: int, width: int) -> None:
    ours = best_resolution((height, width), tuple(map(tuple, PINPOINTS)))
    assert ours == theirs.select_best_resolution((height, width), PINPOINTS)


def test_cells_lie_where_the_tokens_look() -> None:
    """Light up one patch of the canvas: it must be its cell of the view that is white."""
    layout = AnyresImage(
        "anyres",
        ImageProcessing(True, (TILE, TILE), 0, None, None, None, None),
        tuple(map(tuple, PINPOINTS)),
        TILE,
        TILE // PATCH,
    )
    image = picture((96, 48))
    image.paste((0, 0, 0), (0, 0, 96, 48))
    image.paste((255, 255, 255), (40, 24, 48, 32))
    cut = cut_up(image, layout.resolutions, TILE, layout.side, layout.processing)
    media = layout.prepare(image, "x")
    view = np.asarray(layout.view(image)).mean(2)
    assert media.blend is not None
    rows, columns = media.cells.grid
    cells = view.reshape(rows, view.shape[0] // rows, columns, view.shape[1] // columns)
    lit = set(np.flatnonzero(cells.mean((1, 3)).ravel() > 0).tolist())
    tiles = cut.pixel_values.reshape(len(cut.pixel_values), 3, 4, PATCH, 4, PATCH)
    bright = set(np.flatnonzero(tiles.mean((1, 3, 5)).ravel() > 0).tolist())
    shown = {
        int(cell)
        for number, cell in zip(media.blend.pack[:, 0], media.cells.index, strict=True)
        if cell >= 0 and int(number) in bright
    }
    assert lit == shown and lit


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_feature_select_strategy": "full"}, "class token has no place"),
        ({"image_grid_pinpoints": [[32, 50]]}, "whole tiles of 32 pixels"),
        ({"image_grid_pinpoints": []}, "whole tiles of 32 pixels"),
        ({"image_grid_pinpoints": [[32, 32]]}, "expected the image_grid_pinpoints of config.json"),
        ({"vision_feature_layer": 9}, "vision_feature_layer within -4 to 3"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "clip_vision_model tower"),
        (
            {"text_config": {"model_type": "gemma2"}},
            "found attention with softcap of 50.0 in layer 0",
        ),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASES[0]), tmp_path, {"config.json": changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": {"shortest_edge": 48}}, "size and crop_size of 32"),
        ({"crop_size": {"height": 24, "width": 24}}, "size and crop_size of 32"),
        ({"resample": "best"}, "resample"),
    ],
)
def test_image_processors_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASES[0]), tmp_path, {"preprocessor_config.json": changes})


def test_its_encoder_tells_attention_where_asked(make: Callable[[Case], Made]) -> None:
    telling.check_tiles(make(CASES[0]))

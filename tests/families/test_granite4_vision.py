"""Granite 4 Vision: features added before decoder layers, multipliers, tiles of any resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionProcessor,
    SiglipVisionConfig,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig
from transformers.models.granite4_vision.configuration_granite4_vision import (
    Granite4VisionTextConfig,
)

from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.families.encoders.stacked import StackedFeatures
from avl_export.families.granite4_vision import load
from avl_runtime.generate.prefill import finished
from avl_runtime.prompts.features import FeatureCache
from families.shared import PROMPT
from families.support import Case, Made, refused
from families.test_llava_next import PINPOINTS, SHAPE, SPECIAL, TILE, VICUNA, TileTests, image_tiles
from oracle.reading import read

PATCH = 4  # 8 x 8 of a tile, in windows of 4 x 4


def config(vision_class: Any, tower: Mapping[str, Any], **changes: Any) -> Granite4VisionConfig:
    vision = vision_class(
        **tower,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=PATCH,
    )
    text = Granite4VisionTextConfig(
        **SHAPE,
        num_key_value_heads=2,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.6,
        logits_scaling=2.0,
    )
    former = Blip2QFormerConfig(
        num_hidden_layers=1,
        intermediate_size=32,
        cross_attention_frequency=1,
        use_qformer_text_input=False,
    )
    values = {
        "image_token_index": SPECIAL.index("<image>"),
        "image_grid_pinpoints": PINPOINTS,
        "qformer_config": former,
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[-3, 2], [-2, 1]],
        "spatial_target_layers": [0, 1, 0, 0],
    }
    return Granite4VisionConfig(vision_config=vision, text_config=text, **(values | changes))


def processor(tokenizer: Any) -> Granite4VisionProcessor:
    return Granite4VisionProcessor(
        image_tiles(),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        downsample_rate="2/4",
        chat_template=tokenizer.chat_template,
    )


def case(name: str, shape: Granite4VisionConfig) -> Case:
    return Case(
        name=name,
        model=Granite4VisionForConditionalGeneration,
        config=shape,
        special=SPECIAL,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        template=VICUNA,
        processor=processor,
    )


CASES = (
    case(
        "granite4_vision",
        config(
            SiglipVisionConfig, {"vision_use_head": False}, vision_feature_select_strategy="full"
        ),
    ),
)
CLIP = case(
    "clip",
    config(
        CLIPVisionConfig,
        {},
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 2]],
        spatial_vision_layer=-2,
        spatial_target_layers=[0],
    ),
)


class TestGranite4Vision(TileTests):
    cases = CASES
    # Wide, tall and square; so narrow that no line of tiles is left.
    turns = ((), ((97, 61),), ((40, 130), (64, 64)), ((500, 9), (1, 1)))

    def test_features_are_those_of_transformers(self, made: Made) -> None:
        """Ours for the first layer are divided by what the decoder multiplies them with."""
        engine = made.model.loaded
        scale = made.case.config.text_config.embedding_multiplier
        for images, _ in self._shown():
            if images:
                shown = read(made.reference, made.encode(PROMPT, images))
                media = engine.processor.encode(PROMPT, images).media
                found = finished(
                    FeatureCache(engine.backend, engine.package.manifest.encoded).encoding(media)
                )
                stacked = dict(zip(shown.before, shown.deepstack.numpy(), strict=True))
                rows = np.concatenate([one.rows for one in found])
                self._close(scale * rows, stacked.pop(0))
                stacks = np.concatenate([one.deepstack for one in found], axis=1)
                for layer, stack in zip(sorted(stacked), stacks, strict=True):
                    self._close(stack, stacked[layer])

    def test_features_are_added_before_layers(self, made: Made) -> None:
        assert made.model.package.manifest.deepstack_layers == (0, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"downsample_rate": "4"}, "downsample_rate as 4/8"),
        ({"downsample_rate": "3/4"}, "downsample_rate of one half where"),
        ({"downsample_rate": "3/5"}, "windows that divide 8 patches"),
        ({"deepstack_layer_map": [[-1, 3]]}, "decoder layers below 3"),
        ({"spatial_target_layers": [0, 1, 2, 1, 2]}, "at most 4 spatial_target_layers"),
        ({"deepstack_layer_map": [[-5, 1]]}, "vision layers from -4 to 3"),
        ({"vision_feature_select_strategy": "default"}, "expected a clip_vision_model tower with"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in refused(make(CASES[0]), tmp_path, {"config.json": changes})


def test_towers_with_a_class_token(make: Any) -> None:
    """Each projector is given the patches alone, of the state that is its own."""
    made = make(CLIP)
    family = load(open_checkpoint(str(made.folder)), torch.float32)
    (encoder,) = replace(family, model=made.reference).encoders()
    inner, pixels = made.reference.model, torch.randn(2, 3, TILE, TILE)
    scale = made.case.config.text_config.embedding_multiplier
    with torch.no_grad():
        begin, (stack,) = encoder.module(pixels)
        states = inner.vision_tower(pixels, output_hidden_states=True).hidden_states
        first = inner.spatial_projectors[0](states[-2][:, 1:]).flatten(0, 1)
        second = inner.layerwise_projectors[0](states[-1][:, 1:]).flatten(0, 1)
    for found, rows in ((scale * begin, first), (stack, second)):
        torch.testing.assert_close(found[:-1], rows)
        torch.testing.assert_close(found[-1], inner.image_newline)


@pytest.mark.parametrize("first", [True, False])
def test_what_stands_for_a_picture_at_the_input(first: bool) -> None:
    """What the decoder scales to the first features; or nothing, where layer 0 has none."""
    double, line_break = torch.nn.Linear(2, 2), torch.nn.Parameter(torch.tensor([5.0, 7.0]))
    module = StackedFeatures(torch.nn.Identity(), [double, double], [0, 0], line_break, first, 4.0)
    states = torch.randn(3, 6, 2)
    with torch.no_grad():
        begin, stacked = module(states)
        every = torch.cat([double(states).flatten(0, 1), line_break[None]])
    torch.testing.assert_close(4 * begin, every if first else torch.zeros_like(every))
    assert len(stacked) == (1 if first else 2)
    for one in stacked:
        torch.testing.assert_close(one, every)

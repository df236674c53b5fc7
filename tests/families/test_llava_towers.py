"""LLaVA with every tower and choice of features that transformers' model takes and avl computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_plugins.errors import FormatError
from avl_plugins.graph_io import PIXELS
from avl_runtime.generate.prefill import finished
from avl_runtime.prompts.features import FeatureCache
from avl_runtime.vision.fixed import FixedImage
from avl_runtime.vision.steps import ImageProcessing
from families import test_llava_next as next_cases
from families import test_llava_onevision as onevision_cases
from families.shared import FamilyTests, KeyLayoutTests
from families.support import Case, Made, picture, without_checks

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
SIDE, PATCH, GRID = 38, 7, 5  # the last three pixels of a side belong to no patch
PROMPT = "What is in the picture?"

# As in llava-hf/llava-interleave-qwen-0.5b-hf.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def tower(kind: str, **changes: Any) -> Any:
    if kind == "clip":
        return CLIPVisionConfig(**SIZES | {"projection_dim": 32} | changes)
    return SiglipVisionConfig(**SIZES | {"vision_use_head": False} | changes)


def processor(kind: str, strategy: str) -> Callable[[Any], Any]:
    def make(tokenizer: Any) -> Any:
        side = {"height": SIDE, "width": SIDE}
        images = (
            CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side)
            if kind == "clip"
            else SiglipImageProcessorPil(size=side)
        )
        return without_checks(LlavaProcessor)(
            images,
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy=strategy,
            num_additional_image_tokens=int(kind == "clip"),
            chat_template=tokenizer.chat_template,
        )

    return make


def case(
    kind: str, strategy: str, layer: int | list[int], text: type = Qwen2Config, **vision: Any
) -> Case:
    name = f"{kind}-{strategy}-{layer}".replace(" ", "")
    return Case(
        name=name.replace("[", "").replace("]", ""),
        model=LlavaForConditionalGeneration,
        config=LlavaConfig(
            vision_config=tower(kind, image_size=SIDE, patch_size=PATCH, **vision),
            text_config=text(**TEXT),
            image_token_index=SPECIAL.index("<image>"),
            vision_feature_layer=layer,
            vision_feature_select_strategy=strategy,
        ),
        special=SPECIAL,
        template=TEMPLATE,
        processor=processor(kind, strategy),
    )


VIPLLAVA = replace(
    case("clip", "default", -1, LlamaConfig),
    name="vipllava",
    model=VipLlavaForConditionalGeneration,
    config=VipLlavaConfig(
        vision_config=tower("clip", image_size=SIDE, patch_size=PATCH),
        text_config=LlamaConfig(**TEXT),
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=[-2, -3, 1],
    ),
)


class TestVipLlava(FamilyTests):
    """Several layers without their class tokens, behind a norm."""

    cases = (VIPLLAVA,)


class TestSiglip(KeyLayoutTests, FamilyTests):
    cases = (case("siglip", "full", -1),)


def features_and_tokens(made: Made, *images: Any) -> None:
    """Features and tokens are those of transformers, whose own processor reads the pictures."""
    inputs = made.encode(PROMPT, images)
    prompt = made.model.processor.encode(PROMPT, images)
    assert prompt.input_ids.tolist() == inputs["input_ids"][0].tolist()
    made_by = FeatureCache(made.model.loaded.backend, made.model.package.manifest.encoded)
    found = finished(made_by.encoding(prompt.media))
    rows = np.concatenate([one.rows for one in found])
    keys = {"input_ids", "attention_mask"}
    shown = {name: value for name, value in inputs.items() if name not in keys}
    want = made.reference.get_image_features(**shown).pooler_output
    np.testing.assert_allclose(rows, np.concatenate([one.detach() for one in want]), atol=1e-5)
    tokens, logits = made.generate(inputs, 8)
    got = made.model.generate(
        PROMPT, list(images), policy="dense", max_new_tokens=8, return_logits=True
    )
    assert list(got.token_ids) == tokens
    np.testing.assert_allclose(got.logits, logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "one",
    [
        case("siglip", "full", -2, LlamaConfig, vision_use_head=True),
        case("siglip", "full", [0, -3, 3], LlamaConfig),
        case("siglip", "default", -1),
        case("clip", "full", -1),
    ],
    ids=lambda one: one.name,
)
def test_towers_and_choices_of_features(one: Case, make: Callable[[Case], Made]) -> None:
    made = make(one)
    features_and_tokens(made, picture((61, 40)), picture((20, 90), 1))
    layout = made.model.package.manifest.image.layout
    assert isinstance(layout, FixedImage)
    assert layout.grid == (GRID, GRID)


def with_tower(one: Case, kind: str, strategy: str) -> Case:
    """A case of another family with another tower of the same size."""
    config = type(one.config).from_dict(one.config.to_dict())
    names = (*SIZES, "image_size", "patch_size")
    config.vision_config = tower(kind, **{n: getattr(config.vision_config, n) for n in names})
    config.vision_feature_select_strategy = strategy

    def make(tokenizer: Any) -> Any:
        made = one.processor(tokenizer)
        if hasattr(made, "num_additional_image_tokens"):
            made.vision_feature_select_strategy = strategy
            made.num_additional_image_tokens = int(kind == "clip")
        return made

    return replace(one, name=f"{one.name}-{kind}", config=config, processor=make)


@pytest.mark.parametrize(
    ("one", "model"),
    [
        (with_tower(next_cases.CASES[0], "siglip", "full"), LlavaNextForConditionalGeneration),
        (
            with_tower(onevision_cases.CASES[0], "clip", "default"),
            LlavaOnevisionForConditionalGeneration,
        ),
    ],
    ids=["llava_next", "llava_onevision"],
)
def test_tiles_of_another_tower(one: Case, model: Any, make: Callable[[Case], Made]) -> None:
    assert one.model is model
    features_and_tokens(make(one), picture((97, 61)))


@pytest.mark.parametrize("name", ["SiglipImageProcessor", "SiglipImageProcessorFast"])
def test_what_a_siglip_processor_leaves_unsaid(
    name: str, tmp_path: Path, make: Callable[[Case], Made]
) -> None:
    """Its mean and deviation are not CLIP's, and it cuts no square out of a picture."""
    folder = tmp_path / "model"
    shutil.copytree(make(case("siglip", "full", -1)).folder, folder)
    side = {"height": SIDE, "width": SIDE}
    settings = {"image_processor_type": name, "size": side}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    layout = make_plan(Options(str(folder), tmp_path / "x.avl")).family.traits.image.layout
    image = picture((61, 40))
    want = SiglipImageProcessorPil(size=side)(image, return_tensors="np")["pixel_values"]
    found = layout.prepare(image, "x").inputs[PIXELS]
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize(("tokens", "first"), [(10, [-1, 0, 1]), (9, [0, 1, 2]), (8, [1, 2, 3])])
def test_cells_of_tokens(tokens: int, first: list[int]) -> None:
    steps = ImageProcessing(True, (6, 6), 3, None, None, None, None)
    media = FixedImage("fixed", steps, (3, 3), tokens).prepare(picture((6, 6)), "x")
    assert media.cells.index[:3].tolist() == first
    assert media.cells.index[-1] == 8 and len(media.cells.index) == tokens


@pytest.mark.parametrize("tokens", [0, 7, 11])
def test_tokens_that_fit_no_grid(tokens: int) -> None:
    steps = ImageProcessing(True, (6, 6), 3, None, None, None, None)
    with pytest.raises(FormatError, match="a token for each cell, or one more or less"):
        FixedImage("fixed", steps, (3, 3), tokens)

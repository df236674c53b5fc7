"""Mistral 3: pictures of any size in lines with breaks, cells of 2 x 2 patches merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Mistral3Config, Mistral3ForConditionalGeneration
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from families.pixtral import EDGE, PATCH, TEXT, VISION, PixtralTests, processor_class
from families.support import Case, refused, without_checks

SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
)
# Of mistralai/Ministral-3-8B-Instruct-2512's, without tools and its default system prompt.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[INST]{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for block in message['content'] %}{% if block['type'] == 'text' %}{{ block['text'] }}"
    "{% elif block['type'] in ['image', 'image_url'] %}[IMG]{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'system' %}[/SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[/INST]{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
ORIGINAL = 16
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 128.0,
    "original_max_position_embeddings": ORIGINAL,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
PROCESSOR = {"patch_size": PATCH, "spatial_merge_size": 2, "processor_class": "PixtralProcessor"}


def config(text: dict[str, Any], **changes: Any) -> Mistral3Config:
    ids = {name: SPECIAL.index(f"[{name}]") for name in ("IMG",)}
    return Mistral3Config(
        text_config={**TEXT, **text},
        vision_config=VISION,
        image_token_index=ids["IMG"],
        spatial_merge_size=2,
        **changes,
    )


def processor(tokenizer: Any) -> Any:
    return without_checks(processor_class())(
        PixtralImageProcessorPil(size={"longest_edge": EDGE}),
        tokenizer,
        patch_size=PATCH,
        spatial_merge_size=2,
        chat_template=tokenizer.chat_template,
    )


COMMON: dict[str, Any] = {
    "model": Mistral3ForConditionalGeneration,
    "special": SPECIAL,
    "bos": "<s>",
    "eos": "</s>",
    "pad": "<unk>",
    "template": TEMPLATE,
    "processor": processor,
    "files": {"processor_config.json": PROCESSOR},
}
CASES = (
    # As Mistral-Small-3.1.
    Case(
        name="mistral3",
        config=config({"model_type": "mistral"}, tie_word_embeddings=False),
        **COMMON,
    ),
    # As Ministral 3: queries are scaled anew every ORIGINAL positions.
    Case(
        name="mistral3-ministral3",
        config=config(
            {"model_type": "ministral3", "rope_parameters": YARN}, tie_word_embeddings=False
        ),
        **COMMON,
    ),
)


class TestMistral3(PixtralTests):
    cases = CASES
    turns = ((), ((97, 61),), ((40, 130), (64, 64), (3, 50)))


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("processor_config.json", {"patch_size": None}, "patch_size to be 4 as in config.json"),
        ("processor_config.json", {"spatial_merge_size": 1}, "spatial_merge_size to be 2"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 9}}, "size to have a longest_edge"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize to be true"),
        ("config.json", {"vision_feature_layer": [-1, -2]}, "expected one vision_feature_layer"),
        ("config.json", {"vision_config": {"model_type": "clip_vision_model"}}, "a pixtral tower"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, file: str, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASES[0]), tmp_path, {file: changes})

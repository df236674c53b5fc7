"""PaliGemma: a prompt whose tokens all see one another, BOS behind pictures, and no turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from avl_runtime.prompts.chat_template import TemplateError
from families.engines import EngineTests
from families.gemma import PATCH, SIDE, TEXT, VISION
from families.shared import PROMPT, FamilyTests
from families.support import (
    Case,
    Images,
    Made,
    call_processor,
    picture,
    refused,
    without_checks,
)
from families.windows import WindowTests

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<image>")
# What people write themselves, as PaliGemma has no template: the processor adds BOS and a break.
WRITTEN = (
    "{% for item in messages[0]['content'] %}"
    "{{ '<image>' if item['type'] == 'image' else item['text'] }}{% endfor %}"
)


def processor(tokenizer: Any) -> Any:
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = (SIDE // PATCH) ** 2
    return without_checks(PaliGemmaProcessor)(images, tokenizer, chat_template=WRITTEN)


def encode(parts: Any, text: str, images: Images, videos: list[Images], **options: Any) -> Any:
    """As people call the processor; it takes no prompt without a picture, though its model does."""
    if images:
        return call_processor(parts, text, images, videos, **options)
    inputs = parts.tokenizer(f"<bos>{text}\n", add_special_tokens=False, return_tensors="pt")
    return {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}


CASE = Case(
    name="paligemma",
    model=PaliGemmaForConditionalGeneration,
    config=PaliGemmaConfig(
        text_config={**TEXT, "model_type": "gemma", "num_hidden_layers": 3},
        vision_config=VISION,
        image_token_index=SPECIAL.index("<image>"),
        projection_dim=TEXT["hidden_size"],
        hidden_size=TEXT["hidden_size"],
    ),
    special=SPECIAL,
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
    template="",
    processor=processor,
    encode=encode,
    files={"processor_config.json": {}},
)


class TestPaliGemma(FamilyTests, WindowTests, EngineTests):
    cases = (CASE,)
    divided = TEXT["hidden_size"] ** 0.5
    turns_follow, kind = False, 1

    def test_parts_and_messages_are_those_of_transformers(self, made: Made) -> None:
        """Text and pictures in any order; BOS is behind the last one."""
        images = [picture((97, 61)), picture((30, 40), 1)]
        shown = [{"type": "image", "image": image} for image in images]
        texts = [{"type": "text", "text": text} for text in ("Here: ", " or ", "Which?")]
        for parts in (
            [texts[0], shown[0], texts[1], shown[1], texts[2]],
            [texts[2], *shown],
        ):
            want = made.encode_messages([{"role": "user", "content": parts}], images)
            found = made.model.processor.encode(parts)
            assert found.input_ids.tolist() == want["input_ids"][0].tolist()
            assert found.ends is not None
            assert set(found.ends.tolist()) == {len(found.input_ids)}

    def test_a_second_turn_with_a_picture_goes_on_from_the_first(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There is none: whoever asks for one, or for a system prompt, is told."""
        chat = made.model.chat()
        chat.send(PROMPT, [picture((97, 61))], max_new_tokens=2)
        with pytest.raises(TemplateError, match="this model answers one question"):
            chat.send("And here?", max_new_tokens=2)
        with pytest.raises(
            TemplateError, match="expected a chat template with a place for a system"
        ):
            made.model.generate(PROMPT, system="Be brief.")


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        (
            "preprocessor_config.json",
            {"image_seq_length": 9},
            "image_seq_length of 64, the patches",
        ),
        ("preprocessor_config.json", {"size": {"height": 9, "width": 9}}, "pictures of 24 x 24"),
        ("processor_config.json", {"chat_template": "{{ 1 }}"}, "expected no chat template"),
        # PaliGemma 2.
        ("config.json", {"text_config": {**TEXT, "model_type": "gemma2"}}, "softcap of 50.0"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, file: str, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASE), tmp_path, {file: changes})

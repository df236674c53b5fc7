"""Write avl-tiny as a Hugging Face checkpoint: fp16 safetensors, processor, chat template."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from avl_runtime.tasks.scene import IMAGE_SIZE
from batches import GRID, MEAN, PATCH, STD
from tokens import CHAT_TEMPLATE


def make_processor(tokenizer: Tokenizer) -> LlavaProcessor:
    """The processor whose image tokens match the tower's GRID x GRID patches."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[float(x) for x in MEAN],
        image_std=[float(x) for x in STD],
    )
    assert GRID * PATCH == IMAGE_SIZE
    return LlavaProcessor(
        images,
        fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def save(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `model` in fp16 with everything its processor needs into `folder`."""
    half = copy.deepcopy(model).half()
    half.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=64
    )
    for config in (half.config, half.config.text_config, half.config.vision_config):
        config.dtype = torch.float16
        config._attn_implementation = None
    half.save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)

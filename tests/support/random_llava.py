"""Small LLaVA checkpoints with random weights, written as Hugging Face folders."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from support.random_parts import byte_level_tokenizer, randomize

PAD, BOS, EOS, IMAGE = range(4)
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
VOCABULARY = 320
CORPUS = (
    "USER: ASSISTANT: What is in the picture? Describe the image. Read the text. "
    "How many objects are there? Is the red ring above the blue square? Naïve façade, 12.5 €."
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ 'USER: ' }}{%- else -%}{{ 'ASSISTANT: ' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}\
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}{{ ' ' }}{%- else -%}{{ '</s>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is drawn at random about a checkpoint."""

    backbone: Literal["llama", "qwen2", "mistral"]
    layers: int
    kv_heads: int
    group: int  # query heads per KV head
    head_dim: int
    hidden: int
    intermediate: int
    tied: bool
    stored_half: bool  # weights lie in the shard as fp16
    grid: int  # the image is grid x grid patches
    patch: int
    vision_hidden: int
    vision_layers: int
    feature_layer: Literal[-2, -1]
    rope_theta: float

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def image_size(self) -> int:
        return self.grid * self.patch

    @property
    def tokens_per_image(self) -> int:
        return self.grid * self.grid


def draw_shape(seed: int) -> Shape:
    """The shape with this seed. Backbones, groups and head sizes take turns, the rest is drawn."""
    rng = random.Random(f"random-llava/{seed}")
    backbone: Literal["llama", "qwen2", "mistral"] = ("llama", "qwen2", "mistral")[seed % 3]  # type: ignore[assignment]
    group = (1, 2, 4)[seed // 3 % 3]
    head_dim = (16, 32, 64)[(seed + seed // 9) % 3]
    kv_heads = rng.choice((1, 2, 3) if group < 4 else (1, 2))
    heads = kv_heads * group
    # Qwen2 derives head_dim from hidden_size; the others may state it, but want whole multiples.
    width = rng.choice((48, 64, 96, 128))
    hidden = heads * head_dim if backbone == "qwen2" else 2 * heads * (width // (2 * heads))
    return Shape(
        backbone=backbone,
        layers=rng.randint(3, 6),
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        hidden=hidden,
        intermediate=rng.choice((64, 96, 160)),
        tied=rng.random() < 0.4,
        stored_half=rng.random() < 0.4,
        grid=rng.choice((4, 5, 6, 8)),
        patch=rng.choice((4, 7, 8)),
        vision_hidden=rng.choice((32, 48)),
        vision_layers=rng.choice((2, 3)),
        feature_layer=rng.choice((-2, -1)),
        rope_theta=rng.choice((10_000.0, 1_000_000.0)),
    )


def write_checkpoint(folder: Path, seed: int) -> Shape:
    """Write the checkpoint with this seed into `folder`: weights, tokenizer, processor, template.

    Special tokens never win greedy decoding, so a run has exactly as many steps as it asks for.
    """
    shape = draw_shape(seed)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(make_config(shape)).eval()
    randomize(model, len(SPECIAL))
    if shape.stored_half:
        model = model.half()
        for config in (model.config, model.config.text_config, model.config.vision_config):
            config.dtype = torch.float16
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_new_tokens=32
    )
    model.save_pretrained(folder)
    make_processor(shape).save_pretrained(folder)
    return shape


def make_config(shape: Shape) -> LlavaConfig:
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}
    stated = {} if shape.backbone == "qwen2" else {"head_dim": shape.head_dim}
    if shape.backbone == "mistral":
        stated["sliding_window"] = None
    text = kinds[shape.backbone](
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **stated,
    )
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=2 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=2,
        image_size=shape.image_size,
        patch_size=shape.patch,
        projection_dim=shape.vision_hidden,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=shape.tokens_per_image,
        vision_feature_layer=shape.feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=shape.tied,
    )


def build_tokenizer() -> Tokenizer:
    """A byte-level tokenizer for every shape."""
    return byte_level_tokenizer(CORPUS, SPECIAL, "<s>", VOCABULARY)


def make_processor(shape: Shape) -> LlavaProcessor:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": shape.image_size},
        crop_size={"height": shape.image_size, "width": shape.image_size},
    )
    return LlavaProcessor(
        images,
        fast,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def draw_images(seed: int, count: int, size: int) -> list[Image.Image]:
    """`count` square RGB images of noise in coarse blocks, `size` pixels a side."""
    rng = np.random.default_rng(seed)
    blocks = [rng.integers(0, 256, (size // 2, size // 2, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(b).resize((size, size), Image.Resampling.BILINEAR) for b in blocks]

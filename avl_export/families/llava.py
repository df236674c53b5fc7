"""LLaVA 1.5 and its relatives: CLIP tower, two-layer projector, Llama-like decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging as transformers_logging

from avl_export.checkpoint import Checkpoint
from avl_export.families.base import FamilyError, Traits
from avl_export.families.preprocessing import chat_template, image_processing, special_tokens
from avl_runtime.package import Dims

TEXT_TYPES = ("llama", "mistral", "qwen2")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class ClipFeatures(nn.Module):
    """The CLIP tower up to the layers that LLaVA reads, and the projector.

    `layers` counts the encoder layers before each feature that is read.
    """

    def __init__(self, model: nn.Module, layers: tuple[int, ...], keep_class: bool) -> None:
        super().__init__()
        inner: Any = model.get_submodule("model")
        tower = inner.vision_tower
        self.embeddings = tower.embeddings
        self.pre_norm = tower.pre_layrnorm
        self.layers = nn.ModuleList(tower.encoder.layers[: max(layers)])
        self.projector = inner.multi_modal_projector
        self.read = layers
        self.first = 0 if keep_class else 1

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[images, 3, H, W] -> [images, tokens, C]."""
        hidden = self.pre_norm(self.embeddings(pixel_values))
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, None)
            states.append(hidden)
        picked = [states[index][:, self.first :] for index in self.read]
        features = picked[0] if len(picked) == 1 else torch.cat(picked, dim=-1)
        return cast(torch.Tensor, self.projector(features))


@dataclass(frozen=True, slots=True)
class Llava:
    """A LLaVA checkpoint; see `families.base.Family`."""

    name: str
    folder: Path
    traits: Traits
    model: nn.Module
    feature_layers: tuple[int, ...]
    keep_class: bool

    @property
    def text_model(self) -> nn.Module:
        return self.model.get_submodule("model.language_model")

    @property
    def lm_head(self) -> nn.Module:
        return self.model.get_submodule("lm_head")

    def vision_module(self) -> nn.Module:
        return ClipFeatures(self.model, self.feature_layers, self.keep_class)

    def constants(self) -> dict[str, torch.Tensor]:
        text: Any = self.text_model
        rotary = type(text.rotary_emb)(text.config)
        positions = self.traits.grid[0] * self.traits.grid[1] + 1
        return {
            "model.language_model.rotary_emb.inv_freq": rotary.inv_freq,
            "model.vision_tower.embeddings.position_ids": torch.arange(positions)[None],
        }

    def reference(self) -> nn.Module:
        bar = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            model = LlavaForConditionalGeneration.from_pretrained(
                self.folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                use_safetensors=True,
            )
        finally:
            if bar:
                transformers_logging.enable_progress_bar()
        return cast(nn.Module, model.eval())

    def layers_of(self, model: nn.Module) -> Sequence[nn.Module]:
        return list(model.get_submodule("model.language_model.layers").children())

    def projector_of(self, model: nn.Module) -> nn.Module:
        return model.get_submodule("model.multi_modal_projector")


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Llava:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    where = checkpoint.folder / "config.json"
    try:
        config = LlavaConfig.from_dict(dict(checkpoint.config))
        _check_parts(config, str(where))
        with torch.device("meta"):
            model = LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    except FamilyError:
        raise
    except Exception as error:  # transformers refuses a configuration with any kind of error
        line = " ".join(str(error).split())[:200]
        raise FamilyError(
            f"{where}: expected a LLaVA configuration, found {line}; fix config.json"
        ) from None
    text, vision = config.text_config, config.vision_config
    layers = _feature_layers(config, str(where))
    side = vision.image_size // vision.patch_size
    keep_class = config.vision_feature_select_strategy == "full"
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    window = getattr(text, "sliding_window", None)
    traits = Traits(
        dims=Dims(
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=head_dim,
            vocab_size=text.vocab_size,
            # Within its window, windowed attention is full attention.
            max_positions=min(text.max_position_embeddings, window or 1 << 62),
        ),
        tokens=special_tokens(checkpoint, config),
        image_processing=image_processing(checkpoint, vision.image_size),
        chat_template=chat_template(checkpoint),
        tokens_per_image=side * side + int(keep_class),
        grid=(side, side),
        image_shape=(vision.num_channels, vision.image_size, vision.image_size),
    )
    return Llava("llava", checkpoint.folder, traits, model, layers, keep_class)


def _check_parts(config: Any, where: str) -> None:
    text, vision = config.text_config, config.vision_config
    if vision.model_type != "clip_vision_model":
        raise FamilyError(
            f"{where}: expected a clip_vision_model tower, found {vision.model_type!r}; "
            "this version of avl cannot export it"
        )
    if text.model_type not in TEXT_TYPES:
        raise FamilyError(
            f"{where}: expected a decoder of {', '.join(TEXT_TYPES)}, found "
            f"{text.model_type!r}; this version of avl cannot export it"
        )
    rope = (text.rope_parameters or {}).get("rope_type", "default")
    if rope not in STATIC_ROPE:
        raise FamilyError(
            f"{where}: expected a rope_type of {', '.join(STATIC_ROPE)}, found {rope!r}, whose "
            "frequencies change with the length; this version of avl cannot export it"
        )


def _feature_layers(config: Any, where: str) -> tuple[int, ...]:
    """Encoder layers before each feature read: -2 of 24 layers is 23."""
    total = config.vision_config.num_hidden_layers
    asked = config.vision_feature_layer
    asked = [asked] if isinstance(asked, int) else list(asked)
    counts = tuple(n + total + 1 if n < 0 else n for n in asked)
    if not counts or not all(0 <= n <= total for n in counts):
        raise FamilyError(
            f"{where}: expected vision_feature_layer within {-total - 1} to {total}, "
            f"found {asked}; fix config.json"
        )
    return counts

"""PaddleOCR-VL: pictures of any size, learned positions stretched, M-RoPE, an ERNIE decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.patch_encoder import (
    PatchRotary,
    embed_patches,
    frames_graph,
    mix_positions,
    run_siglip,
)
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import widened_image
from avl_export.families.qwen import VISION, QwenFamily, qwen_traits
from avl_export.families.replicate import repeat
from avl_plugins.graph_io import PATCH_POSITIONS, PIXELS
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Media
from avl_runtime.vision.patches import Patches


class NaVitEncoder(nn.Module):
    """The encoder on a picture whose patches lie cell by cell, and the projector of cells."""

    def __init__(self, tower: Any, projector: Any) -> None:
        super().__init__()
        self.embedding = tower.embeddings.patch_embedding
        self.table = tower.embeddings.position_embedding
        self.rotary = PatchRotary(tower.encoder.rotary_pos_emb)
        self.layers = tower.encoder.layers
        self.norm = tower.post_layernorm
        self.projector = projector
        down, across = projector.merge_kernel_size
        self.parts = down * across

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        places: torch.Tensor,
        shares: torch.Tensor,
    ) -> torch.Tensor:
        """[1, P, D], [P, 2], [P, 4] and [P, 4], see `Patches.inputs` -> features [1, cells, C]."""
        hidden = embed_patches(self.embedding, pixel_values)
        hidden = hidden + mix_positions(self.table.weight, places, shares)
        turns = self.rotary(position_ids, hidden)
        for layer in self.layers:
            hidden = repeat(run_siglip, layer, hidden, self.parts, turns)
        normed = self.projector.pre_norm(self.norm(hidden))
        cells = normed.reshape(1, -1, self.parts * normed.shape[-1])
        wide = self.projector.act(self.projector.linear_1(cells))
        return cast(torch.Tensor, self.projector.linear_2(wide))


@dataclass(frozen=True, slots=True)
class PaddleOcrVl(QwenFamily):
    """A PaddleOCR-VL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = PaddleOCRVLForConditionalGeneration
    patches: Patches

    def encoders(self) -> Sequence[EncoderGraph]:
        part, channels = self.model.get_submodule, self.config.vision_config.num_channels
        module = NaVitEncoder(part("model.visual.vision_model"), part("model.projector"))
        return [frames_graph(VISION, module, self.patches, channels, self.dtype)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        # Zero-argument super() knows no class here: slots make the decorator build a new one.
        inputs = QwenFamily.reference_inputs(self, prompt)
        if prompt.media:
            size = self.patches.size
            rows = np.concatenate([_rows(media) for media in prompt.media])
            inputs["pixel_values"] = torch.from_numpy(rows.reshape(-1, 3, size, size))
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> PaddleOcrVl:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    patches = Patches(
        size=vision.patch_size,
        temporal=1,
        merge=vision.spatial_merge_size,
        window=None,
        table=vision.image_size // vision.patch_size,
        stretch="edges",
    )
    traits = qwen_traits(checkpoint, config, widened_image(checkpoint, patches), None)
    return PaddleOcrVl("paddleocr_vl", checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    vision = config.vision_config
    if vision.num_channels != 3 or vision.image_size < vision.patch_size:
        raise FamilyError(
            f"{where}: expected pictures of three channels, at least a patch of "
            f"{vision.patch_size} pixels large, found num_channels {vision.num_channels} and "
            f"image_size {vision.image_size}; fix config.json"
        )


def _rows(media: Media) -> NDArray[np.float32]:
    """Patches row by row, as transformers has them."""
    places = media.inputs[PATCH_POSITIONS]
    return cast("NDArray[np.float32]", media.inputs[PIXELS][0, np.lexsort(places.T[::-1])])

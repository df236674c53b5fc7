"""LFM2-VL: SigLIP 2 over patches of any picture, cells of them, a decoder of short convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.frame_attention import frame_attention
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.patched_tiles import patched_tiles
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_export.families.replicate import repeat
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS, TABLE_SHARES
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Media
from avl_runtime.vision.patched_tiles import PatchedTiles

VISION, TOWER = "vision.onnx", "siglip2_vision_model"


class NaFlexEncoder(nn.Module):
    """SigLIP 2 on pictures of one size whose patches lie cell by cell, and the projector."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        tower, projector = inner.vision_tower, inner.multi_modal_projector
        self.embedding = tower.embeddings.patch_embedding
        self.table = tower.embeddings.position_embedding
        self.layers = tower.encoder.layers
        self.norm = tower.post_layernorm
        self.projector = projector
        self.parts = projector.factor**2

    def forward(self, pixel_values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """[T, P, D] and [P, table**2], see `PatchedTiles` -> features [T, cells, C]."""
        hidden = self.embedding(pixel_values) + shares @ self.table.weight
        for layer in self.layers:
            hidden = repeat(_encode, layer, hidden, self.parts)
        normed = self.norm(hidden)
        cells = normed.reshape(normed.shape[0], -1, self.parts * normed.shape[-1])
        norm, outer = self.projector.layer_norm, self.projector
        cells = cells if norm is None else norm(cells)
        return cast(torch.Tensor, outer.linear_2(outer.act(outer.linear_1(cells))))


def _encode(layer: Any, hidden: torch.Tensor, parts: int) -> torch.Tensor:
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    query, key, value = (
        project(normed) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    heads, scale = attention.num_heads, attention.scale
    seen = frame_attention(query, key, value, None, heads, parts, scale)
    hidden = hidden + attention.out_proj(seen)
    return cast(torch.Tensor, hidden + layer.mlp(layer.layer_norm2(hidden)))


@dataclass(frozen=True, slots=True)
class Lfm2Vl(HfFamily):
    """An LFM2-VL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Lfm2VlForConditionalGeneration
    layout: PatchedTiles

    def encoders(self) -> Sequence[EncoderGraph]:
        vision, merged = self.config.vision_config, self.layout.merge**2
        count = 5 * merged
        example = {
            PIXELS: torch.empty(
                (2, count, vision.num_channels * vision.patch_size**2),
                dtype=self.dtype,
                device="meta",
            ),
            TABLE_SHARES: torch.empty((count, vision.num_patches), dtype=self.dtype, device="meta"),
        }
        patches = merged * torch.export.Dim("cells")
        dynamic: dict[str, dict[int, Any]] = {
            PIXELS: {0: torch.export.Dim("tiles"), 1: patches},
            TABLE_SHARES: {0: patches},
        }
        encoder = NaFlexEncoder(self.model.get_submodule("model"))
        return [EncoderGraph(VISION, encoder, example, dynamic)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if not prompt.media:
            return inputs
        rows = [one for media in prompt.media for one in self._rows(media)]
        shapes = [shape for media in prompt.media for shape in self.layout.shapes(media)]
        most = max(map(len, rows))
        padded = [np.pad(one, ((0, most - len(one)), (0, 0))) for one in rows]
        held = [np.arange(most) < len(one) for one in rows]
        return inputs | {
            "pixel_values": torch.from_numpy(np.stack(padded)),
            "pixel_attention_mask": torch.from_numpy(np.stack(held).astype(np.int64)),
            "spatial_shapes": torch.tensor(shapes),
        }

    def _rows(self, media: Media) -> list[NDArray[np.float32]]:
        """Patches of each tile row by row, as transformers has them."""
        merge, found = self.layout.merge, []
        tiles = (one for run in media.runs() for one in run[PIXELS])
        for tile, (rows, columns) in zip(tiles, self.layout.shapes(media), strict=True):
            cells = tile.reshape(rows // merge, columns // merge, merge, merge, -1)
            found.append(cells.swapaxes(1, 2).reshape(rows * columns, -1))
        return found


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Lfm2Vl:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Lfm2VlConfig, Lfm2VlForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    layout = patched_tiles(
        checkpoint, vision.patch_size, config.downsample_factor, math.isqrt(vision.num_patches)
    )
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(
            file=VISION,
            placeholder=token_text(checkpoint, config.image_token_id),
            token=config.image_token_id,
            layout=layout,
        ),
    )
    return Lfm2Vl("lfm2_vl", checkpoint.folder, traits, model, decoder, layout)


def _check_parts(config: Any, where: str) -> None:
    vision, factor = config.vision_config, config.downsample_factor
    if vision.model_type != TOWER:
        raise FamilyError(
            f"{where}: expected a tower of {TOWER}, found {quoted(vision.model_type)}; this "
            "version of avl cannot export it"
        )
    square = math.isqrt(max(0, vision.num_patches)) ** 2 == vision.num_patches > 0
    if not square or type(factor) is not int or factor < 1 or vision.num_channels != 3:
        raise FamilyError(
            f"{where}: expected pictures of three channels, a square number of num_patches and a "
            f"downsample_factor of at least 1, found {vision.num_channels}, {vision.num_patches} "
            f"and {quoted(factor, 20)}; fix config.json"
        )

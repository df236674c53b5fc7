"""LFM2-VL: SigLIP 2 over patches of any picture, cells of them, a decoder of short convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.naflex import NaFlexEncoder, check_naflex, naflex_graph
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.patched_tiles import patched_tiles
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Media
from avl_runtime.vision.patched_tiles import PatchedTiles

VISION = "vision.onnx"


@dataclass(frozen=True, slots=True)
class Lfm2Vl(HfFamily):
    """An LFM2-VL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Lfm2VlForConditionalGeneration
    layout: PatchedTiles

    def encoders(self) -> Sequence[EncoderGraph]:
        encoder, vision = (
            NaFlexEncoder(self.model.get_submodule("model")),
            self.config.vision_config,
        )
        return [naflex_graph(VISION, encoder, vision, self.layout.merge, self.dtype)]

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
    check_naflex(config.vision_config, where)
    factor = config.downsample_factor
    if type(factor) is not int or factor < 1:
        raise FamilyError(
            f"{where}: expected a downsample_factor of at least 1, found {quoted(factor, 20)}; "
            "fix config.json"
        )

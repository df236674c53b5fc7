"""MiniCPM-V 4.6: a tower that merges patches on its way, pictures in slices, Qwen3.5's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.merging import MergingEncoder
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_export.families.processors.slices import sliced_image
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS, TABLE_ROWS
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Media
from avl_runtime.vision.slices import MERGE, SlicedImage

VISION = "vision.onnx"


@dataclass(frozen=True, slots=True)
class MiniCpmV46(HfFamily):
    """A MiniCPM-V 4.6 checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = MiniCPMV4_6ForConditionalGeneration
    layout: SlicedImage

    def encoders(self) -> Sequence[EncoderGraph]:
        count, width = 5 * MERGE**2, 3 * self.layout.size**2
        pixels = torch.empty((2, count, width), dtype=self.dtype, device="meta")
        places = torch.empty(count, dtype=torch.int64, device="meta")
        patches = MERGE**2 * torch.export.Dim("cells")
        dynamic: dict[str, dict[int, Any]] = {
            PIXELS: {0: torch.export.Dim("parts"), 1: patches},
            TABLE_ROWS: {0: patches},
        }
        encoder = MergingEncoder(self.model.get_submodule("model"), self.config.insert_layer_id)
        return [EncoderGraph(VISION, encoder, {PIXELS: pixels, TABLE_ROWS: places}, dynamic)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if not prompt.media:
            return inputs
        strips = [strip for media in prompt.media for strip in self._strips(media)]
        shapes = [shape for media in prompt.media for shape in self.layout.shapes(media)]
        packed = torch.from_numpy(np.concatenate(strips, axis=-1))[None]
        return inputs | {"pixel_values": packed, "target_sizes": torch.tensor(shapes)}

    def _strips(self, media: Media) -> list[np.ndarray]:
        """Each part as transformers packs it: its patches row by row, side by side [3, size, n]."""
        size, found = self.layout.size, []
        parts = (one for run in media.runs() for one in run[PIXELS])
        for part, (rows, columns) in zip(parts, self.layout.shapes(media), strict=True):
            cells = part.reshape(rows // MERGE, columns // MERGE, 2, 2, 2, 2, 3, size, size)
            found.append(cells.transpose(6, 7, 0, 2, 4, 1, 3, 5, 8).reshape(3, size, -1))
        return found


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> MiniCpmV46:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        *(checkpoint, MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, dtype, _check_parts)
    )
    vision = config.vision_config
    layout = sliced_image(checkpoint, vision.patch_size, vision.image_size // vision.patch_size)
    placeholder = token_text(checkpoint, config.image_token_id)
    image = ImageEncoder(VISION, placeholder, config.image_token_id, layout)
    tokens, template = special_tokens(checkpoint, config), chat_template(checkpoint)
    traits = Traits(tokens=tokens, chat_template=template, image=image)
    return MiniCpmV46("minicpmv4_6", checkpoint.folder, traits, model, decoder, layout)


def _check_parts(config: Any, where: str) -> None:
    vision, last = config.vision_config, config.vision_config.num_hidden_layers - 1
    ints = (vision.patch_size, vision.image_size, config.insert_layer_id)
    cells = tuple(vision.window_kernel_size), tuple(config.merge_kernel_size), config.merger_times
    if any(type(one) is not int for one in ints) or not 0 <= config.insert_layer_id <= last:
        raise FamilyError(
            f"{where}: expected patch_size and image_size of one number each and insert_layer_id "
            f"from 0 to {last}, found {', '.join(quoted(one, 20) for one in ints)}; fix the file"
        )
    if cells != ((2, 2), (2, 2), 1) or config.downsample_mode != "16x" or vision.num_channels != 3:
        raise FamilyError(
            f"{where}: expected windows and cells of 2 x 2 that are merged once each, "
            f"downsample_mode 16x and three channels, found {cells}, "
            f"{quoted(config.downsample_mode, 20)} and {vision.num_channels}; this version of avl "
            "cannot export it"
        )

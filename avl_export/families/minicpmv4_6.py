"""MiniCPM-V 4.6: a tower that merges patches on its way, slices, and Qwen3.5's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from avl_export.families.processors.slices import MODE, MODES, sliced_image, sliced_video
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS, TABLE_ROWS
from avl_runtime.package.manifest import ImageEncoder, VideoEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Kind, Media
from avl_runtime.vision.sliced_video import SlicedVideo
from avl_runtime.vision.slices import SlicedImage, cell_order

VISION = "vision.onnx"


@dataclass(frozen=True, slots=True)
class MiniCpmV46(HfFamily):
    """A MiniCPM-V 4.6 checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = MiniCPMV4_6ForConditionalGeneration
    layout: SlicedImage

    def encoders(self) -> Sequence[EncoderGraph]:
        merge, width = self.layout.merge, 3 * self.layout.size**2
        pixels = torch.empty((2, 5 * merge**2, width), dtype=self.dtype, device="meta")
        places = torch.empty(5 * merge**2, dtype=torch.int64, device="meta")
        patches = merge**2 * torch.export.Dim("cells")
        dynamic: dict[str, dict[int, Any]] = {
            PIXELS: {0: torch.export.Dim("parts"), 1: patches},
            TABLE_ROWS: {0: patches},
        }
        behind = self.config.insert_layer_id if merge == MODES[MODE] else None
        encoder = MergingEncoder(self.model.get_submodule("model"), behind)
        return [EncoderGraph(VISION, encoder, {PIXELS: pixels, TABLE_ROWS: places}, dynamic)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        kinds: tuple[tuple[Kind, str], ...] = (("image", ""), ("video", "_videos"))
        for kind, name in kinds:
            parts = [part for one in prompt.media if one.kind == kind for part in self._parts(one)]
            if parts:
                strips, shapes = zip(*parts, strict=True)
                inputs[f"pixel_values{name}"] = torch.from_numpy(np.concatenate(strips, -1))[None]
                inputs[f"target_sizes{name}"] = torch.tensor(shapes)
        return inputs

    def _parts(self, media: Media) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Each part as transformers packs it, [3, size, n] with patches row by row; its shape."""
        layout, size = self.layout, self.layout.size
        video = self.traits.video
        if media.kind == "video" and video is not None and isinstance(video.layout, SlicedVideo):
            shapes = video.layout.shapes(media)
        else:
            shapes = layout.shapes(media)
        parts = (one for run in media.runs() for one in run[PIXELS])
        for part, shape in zip(parts, shapes, strict=True):
            patches = part[cell_order(*shape, layout.merge).argsort()]
            strip = patches.reshape(-1, 3, size, size).transpose(1, 2, 0, 3)
            yield strip.reshape(3, size, -1), shape


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> MiniCpmV46:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        *(checkpoint, MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, dtype, _check_parts)
    )
    vision, mode = config.vision_config, config.downsample_mode
    table = vision.image_size // vision.patch_size
    layout = sliced_image(checkpoint, vision.patch_size, table, mode)
    placeholder = token_text(checkpoint, config.image_token_id)
    image, video = ImageEncoder(VISION, placeholder, config.image_token_id, layout), None
    if config.video_token_id is not None:
        shown = token_text(checkpoint, config.video_token_id)
        frames = sliced_video(checkpoint, layout, mode)
        video = VideoEncoder(VISION, shown, config.video_token_id, frames)
    tokens, template = special_tokens(checkpoint, config), chat_template(checkpoint)
    traits = Traits(tokens=tokens, chat_template=template, image=image, video=video)
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
    known = config.downsample_mode in MODES
    if cells != ((2, 2), (2, 2), 1) or not known or vision.num_channels != 3:
        raise FamilyError(
            f"{where}: expected windows and cells of 2 x 2 that are merged once each, "
            f"downsample_mode {' or '.join(MODES)} and three channels, found {cells}, "
            f"{quoted(config.downsample_mode, 20)} and {vision.num_channels}; this version of avl "
            "cannot export it"
        )

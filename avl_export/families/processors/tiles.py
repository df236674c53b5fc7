"""What families that cut pictures into tiles share (LLaVA-NeXT, LLaVA-OneVision)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.processors.preprocessing import image_processing, image_processor
from avl_plugins.graph_io import PIXELS
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.anyres import Resolutions
from avl_runtime.vision.steps import ImageProcessing


class TilesAndBreak(nn.Module):
    """Features of tiles and, behind them, that of a line break (the model's image_newline)."""

    def __init__(self, tower: nn.Module, line_break: nn.Parameter) -> None:
        super().__init__()
        self.tower = tower
        self.line_break = line_break

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[tiles, 3, H, W] -> [tiles * side * side + 1, C]."""
        return torch.cat([self.tower(pixel_values).flatten(0, 1), self.line_break[None]])


def tile_processing(checkpoint: Checkpoint, tile: int) -> ImageProcessing:
    """The steps that turn a picture into a tile of `tile` x `tile` pixels.

    Raises:
        FamilyError: tiles of the image processor have another size, or it is not supported.
    """
    steps = image_processing(checkpoint, tile, pads_batches=True)
    if steps.resize not in (None, tile, (tile, tile)) or steps.crop not in (None, (tile, tile)):
        _, place = image_processor(checkpoint)
        raise FamilyError(
            f"{place}: expected size and crop_size of {tile}, the image_size of config.json, found "
            f"{steps.resize} and {steps.crop}; fix the file"
        )
    return dataclasses.replace(steps, resize=(tile, tile), crop=None)


def resolutions(checkpoint: Checkpoint, config: Any) -> Resolutions:
    """The resolutions, height and width, into which pictures are fitted before they are cut.

    Raises:
        FamilyError: they are no whole numbers of tiles, or model and image processor differ.
    """
    tile = config.vision_config.image_size
    found = tuple((height, width) for height, width in config.image_grid_pinpoints)
    where = checkpoint.folder / "config.json"
    if not found or any(side % tile or side < tile for pair in found for side in pair):
        raise FamilyError(
            f"{where}: expected image_grid_pinpoints of whole tiles of {tile} pixels, "
            f"found {str(config.image_grid_pinpoints)[:60]}; fix config.json"
        )
    raw, place = image_processor(checkpoint)
    theirs = raw.get("image_grid_pinpoints", found)
    if tuple(map(tuple, theirs)) != found:
        raise FamilyError(
            f"{place}: expected the image_grid_pinpoints of config.json, found "
            f"{str(theirs)[:60]}; fetch both files again"
        )
    return found


def reference_tiles(prompt: Prompt) -> dict[str, torch.Tensor]:
    """What transformers' models of tiled pictures, and of frames beside them, are called with."""
    inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
    images = [media for media in prompt.media if media.kind == "image"]
    frames = [media.inputs[PIXELS] for media in prompt.media if media.kind == "video"]
    if images:
        tiles = np.concatenate([media.inputs[PIXELS] for media in images])
        inputs["pixel_values"] = torch.from_numpy(tiles)
        inputs["image_sizes"] = torch.tensor([media.size for media in images])
    if frames:
        inputs["pixel_values_videos"] = torch.from_numpy(np.stack(frames))
    return inputs

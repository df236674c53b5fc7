"""InternVL in transformers' layout: InternViT, pixel shuffle, projector, Llama-like decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import (
    check_side,
    image_processor,
    named_token,
    processing_of,
    special_tokens,
    tile_defaults,
    token_text,
)
from avl_export.families.processors.videos import frame_count, frame_processing
from avl_export.families.replicate import repeat
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS
from avl_runtime.package.manifest import ImageEncoder, VideoEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.tiles import FrameLines, TiledImage

FRAMES = 8  # what the model's authors show
TILES = (1, 12)  # transformers' defaults


class TileFeatures(nn.Module):
    """InternViT up to the layer that is read, pixel shuffle, and the projector.

    Args:
        layers: encoder layers before the state that is read.
        normed: whether the tower's last norm follows.
        ratio: side of the shuffled grid of features, as a share of the grid's.
    """

    def __init__(self, inner: Any, layers: int, normed: bool, ratio: float) -> None:
        super().__init__()
        tower = inner.vision_tower
        every = tower.layers if hasattr(tower, "layers") else tower.encoder.layer
        self.embeddings = tower.embeddings
        self.layers = nn.ModuleList(every[:layers])
        self.norm = tower.layernorm if normed else nn.Identity()
        self.projector = inner.multi_modal_projector
        self.ratio = ratio

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[tiles, 3, H, W] -> [tiles, tokens, hidden]."""
        hidden = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden = repeat(_encode, layer, hidden)
        patches = self.norm(hidden)[:, 1:]  # without the class token
        return cast(torch.Tensor, self.projector(self._shuffled(patches)))

    def _shuffled(self, patches: torch.Tensor) -> torch.Tensor:
        """[tiles, side**2, C] -> [tiles, (side * ratio)**2, C / ratio**2]."""
        tiles, count, channels = patches.shape
        side, small = int(count**0.5), int(count**0.5 * self.ratio)
        step = side // small
        split = patches.reshape(tiles, small, step, small, step, channels)
        return split.permute(0, 1, 3, 2, 4, 5).reshape(tiles, small * small, -1)


def _encode(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, layer(hidden))


@dataclass(frozen=True, slots=True)
class InternVL(HfFamily):
    """An InternVL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = InternVLForConditionalGeneration

    def encoders(self) -> Sequence[EncoderGraph]:
        config = self.config
        total, asked = config.vision_config.num_hidden_layers, config.vision_feature_layer
        features = TileFeatures(
            self.model.get_submodule("model"),
            layers=asked if asked >= 0 else total + 1 + asked,
            normed=asked == -1,
            ratio=config.downsample_ratio,
        )
        vision = config.vision_config
        pixels = torch.empty(
            (2, vision.num_channels, *vision.image_size), dtype=self.dtype, device="meta"
        )
        dynamic = {PIXELS: {0: torch.export.Dim("tiles")}}
        return [EncoderGraph("vision.onnx", features, {PIXELS: pixels}, dynamic)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if prompt.media:
            pixels = np.concatenate([media.inputs[PIXELS] for media in prompt.media])
            inputs["pixel_values"] = torch.from_numpy(pixels)
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> InternVL:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, InternVLConfig, InternVLForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    tile = vision.image_size[0]
    side = int(tile // vision.patch_size[0] * config.downsample_ratio)
    around = picture_ends(checkpoint)
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(
            file="vision.onnx",
            placeholder=token_text(checkpoint, config.image_token_id),
            token=config.image_token_id,
            layout=tile_layout(checkpoint, tile, (side, side), around),
        ),
        video=VideoEncoder(
            file="vision.onnx",
            placeholder=_known(checkpoint, "video_token"),
            token=config.image_token_id,
            layout=FrameLines(
                kind="frame_lines",
                processing=frame_processing(checkpoint, tile_defaults(tile), tile),
                frames=frame_count(checkpoint, FRAMES),
                grid=(side, side),
                around=around,
            ),
        ),
    )
    return InternVL("internvl", checkpoint.folder, traits, model, decoder)


def tile_layout(
    checkpoint: Checkpoint, tile: int, grid: tuple[int, int], around: tuple[str, str]
) -> TiledImage:
    """The layout that the settings of a GotOcr2ImageProcessor describe.

    Args:
        tile: its side in pixels, of which `grid` is what features show.
        around: texts in front of a picture's tokens and behind them.

    Raises:
        FamilyError: tiles have another size, or numbers of tiles are none.
    """
    raw, place = image_processor(checkpoint)
    steps = processing_of(raw, place, tile_defaults(tile))
    # Tiles are never cropped, whatever the settings say; resizing is up to the layout.
    check_side(replace(steps, crop=None), tile, place)
    least, most = (
        default if (found := raw.get(name)) is None else found
        for name, default in zip(("min_patches", "max_patches"), TILES, strict=True)
    )
    if not all(isinstance(n, int) for n in (least, most)) or not 1 <= least <= most:
        raise FamilyError(
            f"{place}: expected min_patches of at least 1 and max_patches not below it, found "
            f"{str(least)[:20]} and {str(most)[:20]}; fix the file"
        )
    return TiledImage(
        kind="tiles",
        processing=replace(steps, resize=None, crop=None),
        tile=(tile, tile),
        tiles=(least, most),
        grid=grid,
        around=around,
    )


def picture_ends(checkpoint: Checkpoint) -> tuple[str, str]:
    """The texts in front of a picture's tokens and behind them.

    Raises:
        FamilyError: transformers' tokenizer knows none.
    """
    return _known(checkpoint, "start_image_token"), _known(checkpoint, "end_image_token")


def _known(checkpoint: Checkpoint, name: str) -> str:
    """A token that transformers' tokenizer knows by name."""
    found = named_token(checkpoint, name)
    if found is None:
        raise FamilyError(
            f"{checkpoint.folder / 'tokenizer_config.json'}: expected {name}, as transformers' "
            "processor does, found none; fetch the checkpoint again"
        )
    return found


def _check_parts(config: Any, where: str) -> None:
    check_tower(config, "internvl_vision", where)


def check_tower(config: Any, kind: str, where: str) -> None:
    """Refuse an InternViT that `TileFeatures` cannot stand for.

    Raises:
        FamilyError: it is of another kind, or its tiles are none that are shuffled to a square.
    """
    vision = config.vision_config
    if vision.model_type != kind:
        raise FamilyError(
            f"{where}: expected an {kind} tower, found {quoted(vision.model_type)}; "
            "this version of avl cannot export it"
        )
    asked, total = config.vision_feature_layer, vision.num_hidden_layers
    if not isinstance(asked, int) or not -total - 1 <= asked <= total:
        raise FamilyError(
            f"{where}: expected a vision_feature_layer from {-total - 1} to {total}, found "
            f"{str(asked)[:60]}; fix config.json"
        )
    if config.vision_feature_select_strategy != "default":
        raise FamilyError(
            f"{where}: expected vision_feature_select_strategy default, found "
            f"{quoted(config.vision_feature_select_strategy)}; this version of avl cannot export it"
        )
    (height, width), (down, across) = vision.image_size, vision.patch_size
    step = round(1 / config.downsample_ratio)
    if (height, down) != (width, across) or step * config.downsample_ratio != 1:
        raise FamilyError(
            f"{where}: expected square tiles and patches and a downsample_ratio of 1 by a whole "
            f"number, found tiles of {height} x {width}, patches of {down} x {across} and "
            f"{config.downsample_ratio}; this version of avl cannot export it"
        )
    if height % (down * step):
        raise FamilyError(
            f"{where}: expected an image_size that is a multiple of {step} patches of {down} "
            f"pixels, found {height}; fix config.json"
        )

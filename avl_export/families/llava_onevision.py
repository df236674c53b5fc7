"""LLaVA-OneVision: SigLIP tower, tiles with blended features, videos, Qwen2 decoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.clip import (
    ClipFeatures,
    check_grid,
    clip_graph,
    feature_layers,
)
from avl_export.families.encoders.clip_attention import tiles_attended
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import (
    special_tokens,
    tile_defaults,
    token_text,
)
from avl_export.families.processors.tiles import (
    TilesAndBreak,
    reference_tiles,
    resolutions,
    tile_processing,
)
from avl_export.families.processors.videos import frame_count, frame_processing
from avl_plugins.errors import quoted
from avl_runtime.package.manifest import ImageEncoder, VideoEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.blended import BlendedImage, BlendedVideo, SquareImage

FRAMES = 32  # the most that the model was trained on
GRAPH = "vision.onnx"


@dataclass(frozen=True, slots=True)
class LlavaOnevision(HfFamily):
    """A LLaVA-OneVision checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = LlavaOnevisionForConditionalGeneration
    feature_layers: tuple[int, ...]

    def encoders(self) -> Sequence[EncoderGraph]:
        part = self.model.get_submodule
        tower = ClipFeatures(
            part("model.vision_tower"),
            part("model.multi_modal_projector"),
            self.feature_layers,
            keep_first=self.config.vision_feature_select_strategy == "full",
        )
        line_break = self.model.get_parameter("model.image_newline")
        module, vision = TilesAndBreak(tower, line_break), self.config.vision_config
        attending = tiles_attended(tower, vision, line_break)
        return [clip_graph(GRAPH, module, vision, self.dtype, attending=attending)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = reference_tiles(prompt)
        if "pixel_values" in inputs:
            inputs["batch_num_images"] = torch.tensor([len(inputs["image_sizes"])])
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> LlavaOnevision:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, dtype, _check
    )
    tile = config.vision_config.image_size
    side = tile // config.vision_config.patch_size
    processing = tile_processing(checkpoint, tile)
    mean = processing.mean or (0.0, 0.0, 0.0)
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(
            file=GRAPH,
            placeholder=token_text(checkpoint, config.image_token_id),
            token=config.image_token_id,
            layout=BlendedImage(
                kind="blended",
                processing=processing,
                resolutions=resolutions(checkpoint, config),
                tile=tile,
                side=side,
                most=int(config.vision_aspect_ratio.removeprefix("anyres_max_")),
            ),
            several=SquareImage(
                kind="square",
                processing=processing,
                background=(int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255)),
                side=side,
            ),
        ),
        video=VideoEncoder(
            file=GRAPH,
            placeholder=token_text(checkpoint, config.video_token_id),
            token=config.video_token_id,
            layout=BlendedVideo(
                kind="blended_video",
                processing=frame_processing(checkpoint, tile_defaults(tile), tile),
                frames=frame_count(checkpoint, FRAMES),
                side=side,
            ),
        ),
    )
    layers = feature_layers(config, str(checkpoint.folder / "config.json"))
    return LlavaOnevision("llava_onevision", checkpoint.folder, traits, model, decoder, layers)


def _check(config: Any, where: str) -> None:
    check_grid(config, where)
    if not re.fullmatch(r"anyres_max_[1-9]\d*", config.vision_aspect_ratio):
        raise FamilyError(
            f"{where}: expected vision_aspect_ratio anyres_max_N, found "
            f"{quoted(config.vision_aspect_ratio)}; this version of avl cannot export it"
        )

"""Video-LLaVA: CLIP-like towers for pictures and for videos, one projector, LLaVA's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.clip import (
    ClipFeatures,
    check_clip,
    clip_graph,
    feature_layers,
)
from avl_export.families.encoders.clip_attention import attended
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import (
    check_side,
    clip_defaults,
    image_processing,
    image_processor,
    special_tokens,
    token_text,
)
from avl_export.families.processors.videos import frame_count, frame_processing
from avl_plugins.graph_io import PIXELS
from avl_runtime.package.manifest import ImageEncoder, VideoEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.fixed import FixedImage
from avl_runtime.vision.frames import FixedVideo

FRAMES = 8  # what the model was trained on


@dataclass(frozen=True, slots=True)
class VideoLlava(HfFamily):
    """A Video-LLaVA checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = VideoLlavaForConditionalGeneration
    feature_layers: tuple[int, ...]

    def encoders(self) -> Sequence[EncoderGraph]:
        # Of a picture's tokens the class token may be left out, of a frame's it never is.
        keep = self.config.vision_feature_select_strategy == "full"
        return [
            self._graph("vision.onnx", "model.image_tower", keep),
            self._graph("video.onnx", "model.video_tower", True),
        ]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            pixels = [part.inputs[PIXELS] for part in prompt.media if part.kind == kind]
            if pixels:
                joined = np.concatenate(pixels) if kind == "image" else np.stack(pixels)
                inputs[name] = torch.from_numpy(joined)
        return inputs

    def _graph(self, file: str, tower: str, keep_class: bool) -> EncoderGraph:
        part = self.model.get_submodule
        projector = part("model.multi_modal_projector")
        features = ClipFeatures(part(tower), projector, self.feature_layers, keep_class)
        vision = self.config.vision_config
        attending = attended(features, vision)
        return clip_graph(file, features, vision, self.dtype, attending=attending)


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> VideoLlava:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, VideoLlavaConfig, VideoLlavaForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    layers = feature_layers(config, str(checkpoint.folder / "config.json"))
    side = vision.image_size // vision.patch_size
    processing = image_processing(checkpoint, vision.image_size)
    check_side(processing, vision.image_size, image_processor(checkpoint)[1])
    keep_class = config.vision_feature_select_strategy == "full"
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(
            file="vision.onnx",
            placeholder=token_text(checkpoint, config.image_token_id),
            token=config.image_token_id,
            layout=FixedImage(
                kind="fixed",
                processing=processing,
                grid=(side, side),
                tokens=side * side + int(keep_class),
            ),
        ),
        video=VideoEncoder(
            file="video.onnx",
            placeholder=token_text(checkpoint, config.video_token_id),
            token=config.video_token_id,
            layout=FixedVideo(
                kind="fixed_video",
                processing=frame_processing(
                    checkpoint, clip_defaults(vision.image_size), vision.image_size
                ),
                frames=frame_count(checkpoint, FRAMES),
                grid=(side, side),
                tokens=side * side + 1,
            ),
        ),
    )
    return VideoLlava("video_llava", checkpoint.folder, traits, model, decoder, layers)


def _check_parts(config: Any, where: str) -> None:
    check_clip(config.vision_config, where)

"""LLaVA-NeXT-Video: LLaVA-NeXT with videos, of whose frames a quarter of the features remains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.clip import ClipFeatures, clip_graph, feature_layers
from avl_export.families.hf import meta_model
from avl_export.families.llava_next import LlavaNext, check_parts, image_encoder
from avl_export.families.processors.preprocessing import (
    clip_defaults,
    special_tokens,
    token_text,
)
from avl_export.families.processors.videos import frame_count, frame_processing
from avl_plugins.errors import quoted
from avl_runtime.package.manifest import VideoEncoder
from avl_runtime.vision.frames import FixedVideo

FRAMES = 8  # what the model's page shows
STRIDE = 2  # of the pooling, as transformers' processor counts tokens
GRAPH = "video.onnx"


class Pooled(nn.Module):
    """Pooling, and the projector behind it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.pool = inner.vision_resampler
        self.projector = inner.multi_modal_projector

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[frames, side**2, C * states] -> [frames, (side / 2)**2, hidden]."""
        return cast(torch.Tensor, self.projector(self.pool(features)))


@dataclass(frozen=True, slots=True)
class LlavaNextVideo(LlavaNext):
    """A LLaVA-NeXT-Video checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = LlavaNextVideoForConditionalGeneration

    def encoders(self) -> Sequence[EncoderGraph]:
        inner: Any = self.model.get_submodule("model")
        keep = self.config.vision_feature_select_strategy == "full"
        frames = ClipFeatures(inner.vision_tower, Pooled(inner), self.feature_layers, keep)
        video = clip_graph(GRAPH, frames, self.config.vision_config, self.dtype)
        return [*LlavaNext.encoders(self), video]


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> LlavaNextVideo:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, dtype, _check
    )
    tile = config.vision_config.image_size
    half = tile // config.vision_config.patch_size // STRIDE
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=image_encoder(checkpoint, config),
        video=VideoEncoder(
            file=GRAPH,
            placeholder=token_text(checkpoint, config.video_token_id),
            token=config.video_token_id,
            layout=FixedVideo(
                kind="fixed_video",
                processing=frame_processing(checkpoint, clip_defaults(tile), tile),
                frames=frame_count(checkpoint, FRAMES),
                grid=(half, half),
                tokens=half * half,
            ),
        ),
    )
    layers = feature_layers(config, str(checkpoint.folder / "config.json"))
    return LlavaNextVideo("llava_next_video", checkpoint.folder, traits, model, decoder, layers)


def _check(config: Any, where: str) -> None:
    check_parts(config, where)
    side = config.vision_config.image_size // config.vision_config.patch_size
    if config.spatial_pool_stride != STRIDE or side % STRIDE:
        raise FamilyError(
            f"{where}: expected a spatial_pool_stride of {STRIDE} and an even number of patches "
            f"along a side, for which transformers' processor counts tokens, found "
            f"{quoted(config.spatial_pool_stride, 20)} and {side}; fix config.json"
        )

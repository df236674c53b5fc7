"""What Qwen-VLs and families like them share: patches, M-RoPE, and how transformers is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.patch_encoder import frames_graph
from avl_export.families.hf import HfFamily
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_plugins.graph_io import ORDER, PATCH_POSITIONS, PIXELS
from avl_runtime.package.manifest import ImageEncoder, VideoEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import ImageLayout, Media, VideoLayout
from avl_runtime.vision.patches import Patches, Stretch

VISION = "vision.onnx"
NAMES = {  # kind of media -> what transformers calls its pixel values and grids
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}


@dataclass(frozen=True, slots=True)
class QwenFamily(HfFamily):
    """A checkpoint of a Qwen-VL; see `families.base.Family`."""

    @property
    def visual(self) -> nn.Module:
        """The encoder."""
        return self.model.get_submodule("model.visual")

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(prompt.input_ids)[None]
        config = self.config
        types = torch.zeros_like(ids, dtype=torch.int32)
        types[ids == config.image_token_id] = 1
        types[ids == config.video_token_id] = 2
        inputs = {"input_ids": ids, "mm_token_type_ids": types}
        for kind, (pixels, grids) in NAMES.items():
            media = [part for part in prompt.media if part.kind == kind]
            if media:
                inputs[pixels] = torch.from_numpy(np.concatenate([_pixels(m) for m in media]))
                inputs[grids] = torch.tensor([_grid(part) for part in media])
        return inputs


@dataclass(frozen=True, slots=True)
class FramesFamily(QwenFamily):
    """One whose encoder reads whole frames; `encoder_class` is made of transformers' own."""

    encoder_class: ClassVar[type[nn.Module]]
    patches: Patches

    def encoders(self) -> Sequence[EncoderGraph]:
        module, channels = self.encoder_class(self.visual), self.config.vision_config.in_channels
        return [frames_graph(VISION, module, self.patches, channels, self.dtype)]


def vision_patches(
    vision: Any,
    table: int | None = None,
    window: int | None = None,
    stretch: Stretch = "corners",
) -> Patches:
    """How the encoder that `vision` configures cuts pictures; the rest as `Patches` has it."""
    return Patches(
        size=vision.patch_size,
        temporal=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        window=window,
        table=table,
        stretch=stretch,
    )


def qwen_traits(
    checkpoint: Checkpoint,
    config: Any,
    image: ImageLayout,
    video: VideoLayout | None,
    deepstack: tuple[int, ...] = (),
    *,
    one_token: bool = False,
) -> Traits:
    """What the manifest says; one graph reads pictures and videos.

    Args:
        one_token: frames of videos become tokens of pictures.
    """
    image_token, video_token = config.image_token_id, config.video_token_id
    films = None
    if video is not None:
        becomes = image_token if one_token else video_token
        films = VideoEncoder(VISION, token_text(checkpoint, video_token), becomes, video)
    return Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(VISION, token_text(checkpoint, image_token), image_token, image),
        video=films,
        deepstack=deepstack,
    )


def check_cut(vision: Any, where: str) -> None:
    """Refuse patches that are no squares of several frames.

    Raises:
        FamilyError: patch_size or temporal_patch_size is not one number.
    """
    for name in ("patch_size", "temporal_patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise FamilyError(
                f"{where}: expected {name} to be one number, found {getattr(vision, name)}; "
                "this version of avl cannot export it"
            )


def _pixels(media: Media) -> NDArray[np.float32]:
    """Pixel values [T * P, D] as transformers orders them: cell by cell, nothing in between."""
    values = media.inputs[PIXELS]
    width = values.shape[-1]
    order = media.inputs.get(ORDER)
    if order is not None:
        frames, rows, columns = _grid(media)
        merged = rows * columns // len(order)
        values = values.reshape(frames, -1, merged, width)[:, order]
    return values.reshape(-1, width)


def _grid(media: Media) -> tuple[int, int, int]:
    """Groups of frames, and rows and columns of patches."""
    rows, columns = media.inputs[PATCH_POSITIONS].reshape(-1, 2).max(0).tolist()
    return len(media.inputs[PIXELS]), rows + 1, columns + 1

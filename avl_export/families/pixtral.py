"""What families of Pixtral's tower share: pictures of any size, cut into lines of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.pixtral import PixtralFeatures, pixtral_graph, reference_pictures
from avl_export.families.hf import HfFamily
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.patches import Patches

VISION = "vision.onnx"


@dataclass(frozen=True, slots=True)
class PixtralFamily(HfFamily):
    """A checkpoint with Pixtral's tower; see `families.base.Family`.

    Attributes:
        tower, projector: names of these in transformers' model.
        tower_layers: those in front of the state that is read.
    """

    tower: ClassVar[str]
    projector: ClassVar[str]
    layout: LinedImage
    tower_layers: int

    def encoders(self) -> Sequence[EncoderGraph]:
        part, vision = self.model.get_submodule, self.config.vision_config
        features = PixtralFeatures(part(self.tower), part(self.projector), self.tower_layers)
        return [pixtral_graph(VISION, features, self.layout, vision, self.dtype)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if prompt.media:
            inputs |= reference_pictures(prompt.media, self.layout)
        return inputs


def pixtral_patches(config: Any) -> Patches:
    """How a picture is cut."""
    return Patches(
        size=config.vision_config.patch_size,
        temporal=1,
        merge=config.spatial_merge_size,
        window=None,
        table=None,
    )


def pixtral_traits(checkpoint: Checkpoint, config: Any, layout: LinedImage) -> Traits:
    """What the manifest says."""
    token = config.image_token_id
    return Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(VISION, token_text(checkpoint, token), token, layout),
    )

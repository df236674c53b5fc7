"""What the tests of Qwen2.5-VL and Qwen3-VL share: tokens, sizes and transformers' processors."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import image_processing_backends

from families.shared import FamilyTests

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOKENS = {
    "image_token_id": SPECIAL.index("<|image_pad|>"),
    "video_token_id": SPECIAL.index("<|video_pad|>"),
    "vision_start_token_id": SPECIAL.index("<|vision_start|>"),
    "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
}
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": SPECIAL.index("<|im_end|>"),
    "pad_token_id": SPECIAL.index("<|endoftext|>"),
}
MODES = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


class PatchTests(FamilyTests):
    """`FamilyTests` for encoders that take one run of patches a picture, in an order of their own."""

    films = (((4, (40, 30)),), ((5, (33, 70)), (2, (8, 8))))

    @staticmethod
    def _same_pixels(inputs: list[dict[str, np.ndarray]], want: np.ndarray) -> None:
        np.testing.assert_allclose(as_theirs(inputs), want, atol=1e-6, rtol=0)


def as_theirs(inputs: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """Our pixel values as transformers lays them out, [patches, D]."""
    rows = []
    for one in inputs:
        values = one["pixel_values"]
        if "order" in one:
            empty = np.repeat(one["mask"] < 0, 1, axis=1)
            assert not values[:, empty].any()
            frames, width = len(values), values.shape[-1]
            values = values.reshape(frames, -1, 4, width)[:, one["order"]]
        rows.append(values.reshape(-1, values.shape[-1]))
    return np.concatenate(rows)


def video_processor(family: str, **settings: Any) -> Any:
    """transformers' own video processor of `family`, qwen2_vl or qwen3_vl.

    It needs torchvision, of which it calls three functions; here they are torch's. Compared once
    with the same classes on torchvision 0.28: the same to the last bit.
    """
    return _video_class(family)(**settings)


@functools.cache
def _video_class(family: str) -> Any:
    functional = types.ModuleType("torchvision.transforms.v2.functional")
    functional.resize = _resize  # type: ignore[attr-defined]
    functional.normalize = _normalize  # type: ignore[attr-defined]
    functional.grayscale_to_rgb = lambda video: video  # type: ignore[attr-defined]
    functional.InterpolationMode = types.SimpleNamespace(LANCZOS="lanczos")  # type: ignore[attr-defined]
    parents = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    modules = {name: types.ModuleType(name) for name in parents}
    modules[functional.__name__] = functional
    modules["torchvision.transforms.v2"].functional = functional  # type: ignore[attr-defined]
    name = f"transformers.models.{family}.video_processing_{family}"
    with patch.dict(sys.modules, modules):
        module = importlib.import_module(name)
        base = importlib.import_module("transformers.video_processing_utils")
    theirs = next(
        value
        for name, value in vars(module).items()
        if name.endswith("VLVideoProcessor") and value.__module__ == module.__name__
    )
    names = {"tvF": functional, "pil_torch_interpolation_mapping": MODES}

    class OnTorch(theirs):  # type: ignore[misc,valid-type]
        def preprocess(self, videos: Any, **kwargs: Any) -> Any:
            with (
                patch.multiple(image_processing_backends, create=True, **names),
                patch.object(base, "tvF", functional, create=True),
            ):
                return super().preprocess(videos, **kwargs)

    return OnTorch


def _resize(video: Tensor, size: Any, interpolation: str, antialias: bool) -> Tensor:
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    flat = video.reshape(-1, *video.shape[-3:])
    new = torch.nn.functional.interpolate(
        flat, tuple(size), mode=interpolation, antialias=antialias, align_corners=False
    )
    return new.reshape(*video.shape[:-2], *new.shape[-2:])


def _normalize(video: Tensor, mean: Tensor, std: Tensor, inplace: bool) -> Tensor:
    return (video - mean[:, None, None]) / std[:, None, None]

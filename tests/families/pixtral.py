"""What the tests of families with Pixtral's tower share."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from families.shared import FamilyTests

PATCH, EDGE = 4, 60
VISION: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": EDGE,
}
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}


class PixtralTests(FamilyTests):
    """`FamilyTests` for pictures of any size, which transformers pads to one."""

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """All patches of transformers' pictures, row by row, without what pads them."""
        pairs = zip(inputs["pixel_values"].numpy(), inputs["image_sizes"].tolist(), strict=True)
        return np.concatenate([_rows(values[:, :h, :w]) for values, (h, w) in pairs])

    @staticmethod
    def _same_pixels(inputs: list[dict[str, np.ndarray]], want: np.ndarray) -> None:
        got = []
        for one in inputs:
            values, places = one["pixel_values"][0], one["position_ids"]
            held = one["mask"] == 0 if "mask" in one else np.ones(len(places), bool)
            assert not values[~held].any()
            got.append(values[held][np.lexsort(places[held].T[::-1])])
        np.testing.assert_allclose(np.concatenate(got), want, atol=1e-6, rtol=0)


def _rows(values: np.ndarray) -> np.ndarray:
    """[3, H, W] -> [patches, 3 * PATCH**2]."""
    rows, columns = (side // PATCH for side in values.shape[1:])
    split = values.reshape(3, rows, PATCH, columns, PATCH).transpose(1, 3, 0, 2, 4)
    return split.reshape(rows * columns, -1)


def processor_class() -> Any:
    """transformers' PixtralProcessor, whose module imports torchvision and calls none of it."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    modules = {name: types.ModuleType(name) for name in names}
    vars(modules[names[-1]])["functional"] = types.ModuleType("functional")
    with patch.dict(sys.modules, modules):
        module = importlib.import_module("transformers.models.pixtral.processing_pixtral")
    return module.PixtralProcessor

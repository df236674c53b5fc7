"""Image features by content hash, so that the same picture is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.backends import Backend
from avl_runtime.processor import Prompt

LIMIT = 256 << 20  # bytes of features kept


class FeatureCache:
    """The least recently used features leave when LIMIT is passed."""

    def __init__(self, backend: Backend, limit: int = LIMIT) -> None:
        self._backend = backend
        self._limit = limit
        self._features: OrderedDict[str, NDArray[Any]] = OrderedDict()
        self.encoded = 0  # images that went through the vision graph

    def of(self, prompt: Prompt) -> NDArray[Any]:
        """Features of a prompt's images in order, [image tokens, C]; [0, 0] without images."""
        found: dict[str, NDArray[Any]] = {}
        for index, key in enumerate(prompt.image_hashes):
            if key not in found:
                found[key] = self._one(key, prompt.pixel_values[index : index + 1])
        if not found:
            return np.zeros((0, 0), np.float32)
        return np.concatenate([found[key] for key in prompt.image_hashes])

    def _one(self, key: str, pixel_values: NDArray[np.float32]) -> NDArray[Any]:
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        # One image at a time: the tower's activations are the largest of a run.
        features: NDArray[Any] = self._backend.image_features(pixel_values)[0]
        self._features[key] = features
        self.encoded += 1
        while len(self._features) > 1 and self._held() > self._limit:
            self._features.popitem(last=False)
        return features

    def _held(self) -> int:
        return sum(features.nbytes for features in self._features.values())

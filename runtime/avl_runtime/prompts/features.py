"""Image and video features by content hash, so that the same picture is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence

from avl_runtime.execute import Backend
from avl_runtime.vision import Features, Media

LIMIT = 256 << 20  # bytes of features kept


class FeatureCache:
    """The least recently used features leave when LIMIT is passed; `made` as `Media.features`."""

    def __init__(self, backend: Backend, made: Sequence[str], limit: int = LIMIT) -> None:
        self._backend, self._made = backend, made
        self._limit = limit
        self._features: OrderedDict[tuple[str, str], Features] = OrderedDict()
        self.encoded = 0  # pictures and videos that went through a graph

    def encoding(self, media: Sequence[Media]) -> Generator[None, None, list[Features]]:
        """Features of pictures and videos, in order; stops behind each run of an encoder."""
        found: dict[tuple[str, str], Features] = {}
        for one in media:
            key = (one.kind, one.digest)
            if key not in found:
                found[key] = yield from self._one(key, one)
        return [found[one.kind, one.digest] for one in media]

    def _one(self, key: tuple[str, str], media: Media) -> Generator[None, None, Features]:
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        # One at a time: an encoder's activations are the largest of a run.
        outputs = []
        for run in media.runs():
            outputs.append(self._backend.encode(media.kind, run))
            yield
        features = media.features(outputs, self._made)
        self._features[key] = features
        self.encoded += 1
        while len(self._features) > 1 and self._held() > self._limit:
            self._features.popitem(last=False)
        return features

    def _held(self) -> int:
        return sum(features.nbytes for features in self._features.values())

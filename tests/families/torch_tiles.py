"""transformers' image processor of LFM2-VL, which needs torchvision, with torch in its place.

torchvision calls torch's own functions for all that it is asked here. Compared once with the
processor on torchvision (transformers 5.23, torchvision 0.28): the same to the last bit.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import image_processing_backends as backends
from transformers.models import lfm2_vl

MODES = {Image.Resampling.BILINEAR: "bilinear"}


def resize(image: Tensor, size: Any, interpolation: str, antialias: bool) -> Tensor:
    """torchvision's `resize` of uint8."""
    return torch.nn.functional.interpolate(
        image, size, mode=interpolation, antialias=antialias, align_corners=False
    )


def normalize(image: Tensor, mean: Any, std: Any, inplace: bool = False) -> Tensor:
    """torchvision's `normalize`."""
    shape = (-1, 1, 1)
    made: Tensor = (image - torch.as_tensor(mean).view(shape)) / torch.as_tensor(std).view(shape)
    return made


FUNCTIONAL = ModuleType("torchvision.transforms.v2.functional")
FUNCTIONAL.__dict__.update(
    resize=resize,
    normalize=normalize,
    InterpolationMode=SimpleNamespace(BILINEAR="bilinear", BICUBIC="bicubic", LANCZOS="lanczos"),
    pil_to_tensor=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
)


@contextmanager
def in_its_place() -> Iterator[None]:
    """Let transformers find these functions where it looks for torchvision's."""
    packages = {"torchvision.transforms.v2.functional": FUNCTIONAL}
    above: Any = FUNCTIONAL
    for name in ("torchvision.transforms.v2", "torchvision.transforms", "torchvision"):
        package: Any = ModuleType(name)
        setattr(package, above.__name__.rpartition(".")[2], above)
        packages[name] = above = package
    with (
        patch.dict(sys.modules, packages),
        patch.object(backends, "tvF", FUNCTIONAL, create=True),
        patch.object(backends, "pil_torch_interpolation_mapping", MODES, create=True),
    ):
        yield


def _loaded() -> Any:
    name = f"{lfm2_vl.__name__}.image_processing_lfm2_vl"
    path = Path(str(lfm2_vl.__file__)).with_name("image_processing_lfm2_vl.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with in_its_place(), patch.dict(sys.modules, {name: module}):
        spec.loader.exec_module(module)
    return module


class TorchTiles(_loaded().Lfm2VlImageProcessor):  # type: ignore[misc]
    """Lfm2VlImageProcessor."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        with in_its_place():
            return super().__call__(*given, **named)

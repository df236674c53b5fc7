"""What an encoder's engine takes on the GPU is estimated from its graph alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from avl_runtime.engines.encoder_size import EncoderSize, encoder_size
from avl_runtime.engines.graphs import prepare
from avl_runtime.package.package import load_package

# Towers of real width with two or three layers, fp16: the largest pixel_values of a profile, and
# what TensorRT-RTX 1.7.1 told of the engine, "Total Activation Memory".
MEASURED = {
    "llava-7b": (EncoderSize(588, 4096, 0), (1, 3, 336, 336), 20008960),
    "llava-next-7b": (EncoderSize(588, 4096, 0), (4, 3, 336, 336), 55459840),
    "llava-onevision-0.5b": (EncoderSize(588, 4304, 0), (4, 3, 384, 384), 53448704),
    "internvl3-2b": (EncoderSize(588, 4096, 0), (4, 3, 448, 448), 75571200),
    "qwen2.5-vl-3b": (EncoderSize(1176, 5120, 16), (4, 512, 64, 1176), 5250744320),
    "qwen3-vl-2b": (EncoderSize(1536, 4096, 4), (4, 8192, 1536), 715128832),
    "video-llava-7b": (EncoderSize(588, 4096, 0), (4, 3, 224, 224), 31350784),
}

# The same in fp32, for whose attention there is no kernel.
MEASURED_IN_FP32 = {
    "llava-next-7b": (EncoderSize(588, 4096, 0, 16, 64), (4, 3, 336, 336), 244990976),
    "llava-onevision-0.5b": (EncoderSize(588, 4304, 0, 16, 72), (4, 3, 384, 384), 374553600),
    "internvl3-2b": (EncoderSize(588, 4096, 0, 16, 64), (4, 3, 448, 448), 663946240),
    "video-llava-7b": (EncoderSize(588, 4096, 0, 16, 64), (4, 3, 224, 224), 67601408),
    "llava-7b": (EncoderSize(588, 4096, 0, 16, 64), (1, 3, 336, 336), 61567488),
    "video-llava-7b, pictures": (EncoderSize(588, 4096, 0, 16, 64), (1, 3, 224, 224), 18756096),
}


@pytest.mark.parametrize("model", MEASURED)
def test_estimates_are_near_what_was_measured(model: str) -> None:
    size, pixels, measured = MEASURED[model]
    assert 0.9 < size.scratch(pixels, 2) / measured < 2.1


@pytest.mark.parametrize("model", MEASURED_IN_FP32)
def test_estimates_of_attention_by_single_steps(model: str) -> None:
    size, pixels, measured = MEASURED_IN_FP32[model]
    assert 0.9 < size.scratch(pixels, 4) / measured < 1.5
    # In 16 bits it has a kernel, unless its heads are wide.
    plain = EncoderSize(size.patch, size.widest, size.parts).scratch(pixels, 2)
    assert size.scratch(pixels, 2) == plain
    wide = EncoderSize(size.patch, size.widest, size.parts, 4, 320)
    assert wide.scratch(pixels, 2) > plain


def test_a_tower_with_a_convolution(tiny_package: Path) -> None:
    """The widest rows are those inside the layers, some times as wide as their states."""
    package = load_package(tiny_package)
    dims = package.manifest.dims
    graph = prepare(package.read("vision.onnx"), dims, plugins=True).model.graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    (patch,) = (dims for dims in weights.values() if len(dims) == 4)
    rows = {dims[0] for dims in weights.values() if len(dims) == 2}
    found = encoder_size(graph)
    assert found is not None
    assert found.patch == patch[1] * patch[2] * patch[3]
    assert found.widest in rows
    assert found.widest >= 2 * patch[0]
    assert found.parts == 0
    assert (found.heads, found.head_dim) == (6, 32)
    decoder = prepare(package.read("decoder.0.onnx"), dims, plugins=True).model.graph
    assert encoder_size(decoder) is None


def test_attention_that_is_spelt_out() -> None:
    """Queries in four parts; a transposed weight, and one behind a cast."""
    model = onnx.parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 23]>
        g (float16[n, p, 24] pixel_values) => (float16[n, p, 7] y)
        <int64[4] s = {0, 4, -1, 24}> {
            t = Transpose <perm = [1, 0]> (a)
            c = Cast <to = 10> (b)
            h = MatMul (pixel_values, t)
            q = Reshape (pixel_values, s)
            y = MatMul (pixel_values, c)
        }"""
    )
    for name, shape in (("a", (9, 24)), ("b", (24, 7))):
        zeros = onnx.numpy_helper.from_array(np.zeros(shape, np.float16), name)
        model.graph.initializer.append(zeros)
    size = encoder_size(model.graph)
    assert size == EncoderSize(patch=24, widest=9, parts=4)
    # Two frames of 16 rows: rows of nine, and a quarter of the scores.
    assert size.scratch((2, 16, 24), 2) == (8 << 20) + 5 * 32 * 9 + 12 * 2 * 256 // 4

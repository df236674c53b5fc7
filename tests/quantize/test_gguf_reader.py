"""avl's reader of GGUF files against gguf-py's own, on what gguf-py's writer writes."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

from avl_export.checkpoint.gguf.header import read_gguf
from avl_export.checkpoint.gguf.types import LAYOUTS
from avl_export.checkpoint.safetensors_header import CheckpointError
from quantize.gguf_files import random_blocks

SINGLE = {
    Value.UINT8: 255,
    Value.INT8: -128,
    Value.UINT16: 65535,
    Value.INT16: -32768,
    Value.UINT32: (1 << 32) - 1,
    Value.INT32: -(1 << 31),
    Value.FLOAT32: 0.1,
    Value.BOOL: True,
    Value.STRING: "Größe ▁the\0",
    Value.UINT64: (1 << 64) - 1,
    Value.INT64: -(1 << 63),
    Value.FLOAT64: 0.1,
}
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def test_values_and_tensors_are_those_of_gguf_py(tmp_path: Path) -> None:
    """Every type of value, alone and in arrays, and every type of tensor that is read."""
    path, rng = tmp_path / "all.gguf", np.random.default_rng(0)
    file = gguf.GGUFWriter(path, "llama")
    for kind, value in SINGLE.items():
        file.add_key_value(f"one.{kind.name}", value, kind)
        file.add_key_value(f"three.{kind.name}", [value] * 3, Value.ARRAY, sub_type=kind)
    for number, layout in enumerate(LAYOUTS.values()):
        kind = Type[layout.name]
        shape = (3 + number, 2, 512)
        if layout.name in FLOATS:
            width = np.dtype(FLOATS[layout.name]).itemsize
            data = rng.integers(0, 256, (*shape[:-1], 512 * width), dtype=np.uint8)
        else:
            rows = random_blocks(rng, kind, (shape[0] * 2, 512))
            data = rows.reshape(*shape[:-1], -1)
        file.add_tensor(layout.name, data, raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()

    found, theirs = read_gguf(path), gguf.GGUFReader(path)
    named = {name for name in theirs.fields if not name.startswith("GGUF.")}
    assert found.values.keys() == named
    assert len(named) > 2 * len(SINGLE)
    for name in named:
        value = found.values[name]
        own = value.tolist() if isinstance(value, np.ndarray) else value
        assert own == theirs.fields[name].contents(), name
    assert found.tensors.keys() == {tensor.name for tensor in theirs.tensors}
    assert len(found.tensors) == len(LAYOUTS)
    whole = path.read_bytes()
    for tensor in theirs.tensors:
        record = found.tensors[tensor.name]
        assert record.type == tensor.tensor_type.name
        assert record.sizes == tuple(int(size) for size in reversed(tensor.shape))
        begin = record.offset
        assert whole[begin : begin + record.nbytes] == tensor.data.tobytes(), tensor.name


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (struct.pack("<IQ", 9, 1) * 5000, "an array of type 9"),  # within each other
        (struct.pack("<IQ", 0, 1 << 40), "1099511627776 bytes"),
        (struct.pack("<IQ", 8, 1 << 40) + bytes(1 << 16), "bytes at byte"),
    ],
    ids=["nested", "numbers", "words"],
)
def test_counts_that_lie_are_refused_at_once(value: bytes, said: str, tmp_path: Path) -> None:
    """gguf-py's reader recurses, or makes an array of each number until memory ends."""
    path = tmp_path / "lies.gguf"
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + value)
    with pytest.raises(CheckpointError, match=said):
        read_gguf(path)

"""The safetensors header parser accepts what safetensors writes and nothing that lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from avl_export.checkpoint.safetensors_header import CheckpointError, parse_header, read_header
from export.checkpoints import join_file, split_file

DTYPES = ("float32", "float16", "int64", "uint8", "bool")
arrays = st.builds(
    lambda dtype, shape: np.zeros(shape, dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=3),
)
files = st.dictionaries(st.text(min_size=1, max_size=8), arrays, min_size=1, max_size=5).map(save)


@settings(max_examples=60, deadline=None)
@given(files)
def test_agrees_with_safetensors(raw: bytes) -> None:
    length = int.from_bytes(raw[:8], "little")
    records = parse_header(raw[8 : 8 + length], len(raw) - 8 - length, "file")
    header = json.loads(raw[8 : 8 + length])
    assert set(records) == set(header)
    for name, record in records.items():
        assert list(record.shape) == header[name]["shape"]
        assert record.offset == 8 + length + header[name]["data_offsets"][0]


@settings(max_examples=150, deadline=None)
@given(files, st.data())
def test_never_reaches_past_the_file(raw: bytes, data: st.DataObject) -> None:
    """Any damage is refused, or leaves records that lie within the file."""
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(8, len(raw)))])
    length = int.from_bytes(cut[:8], "little")
    if length > len(cut) - 8:
        return
    try:
        records = parse_header(cut[8 : 8 + length], len(cut) - 8 - length, "file")
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    end = 8 + length
    for record in sorted(records.values(), key=lambda r: (r.offset, r.nbytes)):
        assert record.offset == end
        end += record.nbytes
    assert end == len(cut)


LIES: dict[str, Any] = {
    "past the end": lambda h, n: h["w"].update(data_offsets=[0, n + 4], shape=[n // 4 + 1]),
    "backwards": lambda h, n: h["w"].update(data_offsets=[n, 0]),
    "overlap": lambda h, n: h.update(x={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
    "gap": lambda h, n: h["w"].update(data_offsets=[4, n], shape=[n // 4 - 1]),
    "wrong shape": lambda h, n: h["w"].update(shape=[1]),
    "negative": lambda h, n: h["w"].update(shape=[-1, -4]),
    "huge shape": lambda h, n: h["w"].update(shape=[1 << 62, 1 << 62, 0, 5]),
    "float shape": lambda h, n: h["w"].update(shape=[4.0]),
    "unknown dtype": lambda h, n: h["w"].update(dtype="F7"),
    "list dtype": lambda h, n: h["w"].update(dtype=["F32"]),
    "no offsets": lambda h, n: h["w"].pop("data_offsets"),
    "not an object": lambda h, n: h.update(w=3),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"w": np.zeros(4, np.float32)}))
    header, data = split_file(path)
    LIES[lie](header, len(data))
    join_file(path, header, data)
    with pytest.raises(CheckpointError, match="expected"):
        read_header(path)


@pytest.mark.parametrize("raw", [b"", b"\1\0\0", b"\xff" * 8, b"\xff" * 80, bytes(8) + b"{}"])
def test_files_that_are_none_are_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError):
        read_header(path)


def test_reads_a_real_file(master: Path) -> None:
    path = master / "model.safetensors"
    records = read_header(path)
    with safe_open(path, "np") as file:
        assert set(records) == set(file.keys())
        for name, record in records.items():
            array = file.get_tensor(name)
            raw = path.read_bytes()[record.offset : record.offset + record.nbytes]
            assert raw == array.tobytes()

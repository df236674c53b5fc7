"""What is said of GGUF files that are damaged, or of models that are not read."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st

from avl_export.checkpoint.gguf.header import read_gguf
from avl_export.checkpoint.safetensors_header import CheckpointError

Refused = Callable[..., str]


def write(
    path: Path, arch: str = "llama", values: dict[str, Any] | None = None, **tensors: Type
) -> Path:
    """A file of small tensors of the types given."""
    file = gguf.GGUFWriter(path, arch)
    for name, value in (values or {}).items():
        add = file.add_uint32 if isinstance(value, int) else file.add_string
        add(name, value)
    file.add_array("tokenizer.ggml.tokens", ["a", "é", "<s>"])
    file.add_array("tokenizer.ggml.scores", [0.5, -1.0, 0.0])
    for name, kind in tensors.items():
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        data = np.zeros((3, 2 * nbytes), np.uint8) if size > 1 else np.zeros((3, 2), np.float32)
        file.add_tensor(name.replace("__", "."), data, raw_dtype=kind if size > 1 else None)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return write(path, output_norm__weight=Type.F32, output__weight=Type.Q4_0)


def test_what_gguf_py_writes(whole: Path) -> None:
    found, theirs = read_gguf(whole), gguf.GGUFReader(whole)
    assert found.values["tokenizer.ggml.tokens"] == ["a", "é", "<s>"]
    np.testing.assert_array_equal(found.values["tokenizer.ggml.scores"], [0.5, -1.0, 0.0])
    assert found.values.keys() == theirs.fields.keys() - {
        "GGUF.version",
        "GGUF.tensor_count",
        "GGUF.kv_count",
    }
    for tensor in theirs.tensors:
        record = found.tensors[tensor.name]
        assert record.sizes == tuple(int(size) for size in tensor.shape[::-1])
        assert (record.offset, record.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert record.type == tensor.tensor_type.name


@given(st.data())
def test_damaged_files_are_refused_or_read(whole: Path, data: st.DataObject) -> None:
    raw = bytearray(whole.read_bytes())
    cut = data.draw(st.integers(0, len(raw)))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = whole.with_name("damaged.gguf")
    path.write_bytes(raw[: cut if data.draw(st.booleans()) else len(raw)])
    try:
        found = read_gguf(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        size = path.stat().st_size
        assert all(one.offset + one.nbytes <= size for one in found.tensors.values())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected a whole GGUF file, found one of 0 bytes"),
        (b"GG", "expected a whole GGUF file, found one of 2 bytes"),
        (b"GGUF" + struct.pack("<IQ", 3, 0), "expected a whole GGUF file, found one of 16 bytes"),
        (b"GUFF", "does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer"),
        (b"PK" + bytes(30), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "found 1; convert"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), f"found {1 << 60} tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), f"found {1 << 60} values"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), f"found {1 << 62} bytes at byte 32"),
        # An array of 2 to the power of 60 numbers, of text, and of arrays.
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 4, 1 << 60), "bytes at byte"),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 8, 1 << 60), "bytes at byte"),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"a", 9, 9, 1), "an array of type 9"),
        (b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"a", 13), "a value of type 13"),
        (b"GGUF" + struct.pack("<IQQQcIQc", 3, 0, 1, 1, b"a", 8, 1, b"\xff"), "no UTF-8"),
        (b"GGUF" + struct.pack("<IQQQcI", 3, 1, 0, 1, b"a", 9), "of 9 dimensions"),
        (b"GGUF" + struct.pack("<IQQQcIQQIQ", 3, 1, 0, 1, b"a", 2, 8, 1 << 62, 0, 0), "ends at"),
        (b"GGUF" + struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"a", 1, 0, 0, 0), "a of [0] in F32"),
        (b"GGUF" + struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"a", 1, 33, 2, 0), "blocks of 32"),
        (b"GGUF" + struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"a", 1, 1, 0, 1) + bytes(64), "aligned"),
        (b"GGUF" + struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"a", 1, 1, 77, 0), "found type 77;"),
    ],
)
def test_headers_that_are_refused(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as refused:
        read_gguf(path)
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", [Type.Q5_K, Type.Q4_1, Type.IQ4_XS, Type.MXFP4], ids=str)
def test_other_types_are_named(kind: Type, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", blk__0__attn_q__weight=kind)
    with pytest.raises(CheckpointError, match=rf"blk.0.attn_q.weight: .* found {kind.name};"):
        read_gguf(path)


def test_files_that_are_refused(tmp_path: Path, refused: Refused) -> None:
    model, tower = write(tmp_path / "model.gguf"), write(tmp_path / "mmproj-a.gguf", "clip")
    assert "found none; is it" in (said := refused(model))
    assert str(tower) in said
    tower.rename(tmp_path / "tower.gguf")
    assert "found none; fetch the mmproj file" in refused(model)
    tower = tmp_path / "tower.gguf"
    assert "found no such file" in refused(model, "--mmproj", str(tmp_path / "none.gguf"))
    assert "found that of an encoder; pass it with --mmproj" in refused(
        tower, "--mmproj", str(tower)
    )
    assert "found that of a llama" in refused(model, "--mmproj", str(model))
    assert "expected a projector of mlp, idefics3 for a decoder of llama, found None" in refused(
        model, "--mmproj", str(tower)
    )
    assert "--revision: expected a hub id" in refused(
        model, "--mmproj", str(tower), "--revision", "main"
    )
    for name, said in (("gemma3", "found 'gemma3'"), ("qwen2", "found 'qwen2'")):
        other = write(tmp_path / f"{name}.gguf", name)
        assert said in refused(other, "--mmproj", str(tower))
    cut = write(tmp_path / "model-00001-of-00002.gguf", values={"split.count": 2})
    assert "llama-gguf-split --merge" in refused(cut, "--mmproj", str(tower))
    merger = write(tmp_path / "merger.gguf", "clip", {"clip.projector_type": "qwen2vl_merger"})
    assert "found 'qwen2vl_merger'" in refused(
        write(tmp_path / "qwen.gguf", "qwen2vl"), "--mmproj", str(merger)
    )
    mlp = write(tmp_path / "mlp.gguf", "clip", {"clip.projector_type": "mlp"})
    assert "pass --config" in refused(model, "--mmproj", str(mlp))

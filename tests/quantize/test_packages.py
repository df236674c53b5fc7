"""Quantized packages: what they store, what their graphs are, what they compute."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from avl_export.quantize.reading import read_weight
from avl_runtime import LVLM
from avl_runtime.execute.host.ort_options import session_config
from avl_runtime.package.package import load_package
from avl_runtime.prompts.embedding import Embedding
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score
from export.checkpoints import make_config, write_random
from quantize.conftest import TEXT, Exported, Exports, linears_of

LINEARS = 6 * 7  # of avl-tiny's decoder layers
VISION = 4 * 6 + 2  # and of its tower and projector


def tensors(exported: Exported) -> dict[str, np.ndarray]:
    """Everything that the package stores, read by the safetensors library."""
    found: dict[str, np.ndarray] = {}
    for path in exported.folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def dequantized(stored: dict[str, np.ndarray], name: str, block: int | None) -> np.ndarray:
    """The weight [outputs, inputs] that the codes of a linear stand for, code by code."""
    scales = stored[f"{name}.scale"].astype(np.float64)
    if f"{name}.int8" in stored:
        codes = stored[f"{name}.int8"].astype(np.int64)
    else:
        packed = stored[f"{name}.int4"].astype(np.int64)
        codes = np.stack([packed % 16, packed // 16], -1).reshape(len(packed), -1)
        codes -= 16 * (codes > 7)
    inputs, outputs = codes.shape
    weight = np.zeros((outputs, inputs))
    for i in range(inputs):
        weight[:, i] = codes[i] * (scales if block is None else scales[i // block])
    return weight


def optimized(exported: Exported, file: str, encoder: bool, tmp_path: Path) -> Counter[str]:
    """Node types after ONNX Runtime's optimizations, with the runtime's own settings."""
    package = load_package(exported.folder)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    for name, value in session_config(package.manifest.quantization, encoder, packs=True).items():
        options.add_session_config_entry(name, value)
    ort.InferenceSession(exported.folder / file, options, providers=["CPUExecutionProvider"])
    model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def test_manifest_and_files(tiny_int4: Exported, tiny_int8: Exported) -> None:
    for exported, bits, block in ((tiny_int4, 4, 64), (tiny_int8, 8, None)):
        package = load_package(exported.folder)
        package.check_shards(whole=True)
        assert package.manifest.weights.folder is None
        entry = package.manifest.quantization
        assert entry is not None
        assert (entry.bits, entry.block_size, entry.zero_points) == (bits, block, False)
        sizes = exported.plan.report()["quantization"]["files"]
        for shard in package.manifest.weights.shards:
            assert sizes[shard.path] == shard.size == (exported.folder / shard.path).stat().st_size
        assert sum(sizes.values()) == exported.plan.copied_nbytes
    assert load_package(tiny_int4.folder).manifest.quantization.parts == ("decoder",)
    assert len(load_package(tiny_int8.folder).manifest.quantization.parts) == 4


def test_report(tiny_int4: Exported, tiny_int8: Exported) -> None:
    report = tiny_int4.plan.report()
    quantization = report["quantization"]
    assert quantization["tensors"] == LINEARS
    weights = sum(np.prod(place.shape) for place in tiny_int4.plan.store.linears.values())
    assert quantization["bytes_before"] == 2 * weights
    assert quantization["bytes_after"] == weights // 2 + 4 * weights // 64
    assert quantization["kept"] == {}
    assert tiny_int8.plan.report()["quantization"]["tensors"] == LINEARS + VISION + 2
    assert "weights.int4.safetensors" in report["files"]


@pytest.mark.parametrize("name", ["tiny_int4", "tiny_int8"])
def test_weights_are_read_back_as_they_are_stored(
    name: str, request: pytest.FixtureRequest
) -> None:
    exported: Exported = request.getfixturevalue(name)
    stored, store = tensors(exported), exported.plan.store
    for parameter, place in store.linears.items():
        expected = dequantized(stored, parameter, place.block)
        np.testing.assert_allclose(read_weight(exported.folder, place), expected, rtol=1e-6, atol=0)


def test_weights_are_close_to_the_checkpoint(
    tiny_int4: Exported, tiny_int8: Exported, tiny_checkpoint: Path
) -> None:
    original = {
        key.rpartition("layers.")[2]: tensor.float().numpy()
        for key, tensor in load_file(tiny_checkpoint / "model.safetensors").items()
        if "language_model.model.layers" in key
    }
    for exported, bound in ((tiny_int4, 0.15), (tiny_int8, 0.015)):
        store = exported.plan.store
        found = [n for n in store.linears if "language_model.layers" in n]
        assert len(found) == LINEARS
        for name in found:
            weight = original[name.rpartition("layers.")[2]]
            error = np.linalg.norm(read_weight(exported.folder, store.linears[name]) - weight)
            assert error < bound * np.linalg.norm(weight), name


def test_graphs_are_exact_and_quantization_is_reported(
    tiny_int4: Exported, tiny_int8: Exported
) -> None:
    for exported in (tiny_int4, tiny_int8):
        report = exported.result.report
        assert report is not None
        assert report.logits <= 2e-5 * report.logit_scale
        assert report.features <= 1e-4
        assert report.quantization is not None
        assert report.quantization > 20 * report.logits
        assert "quantized weights" in report.line()
    assert tiny_int8.result.report.quantization < 0.3 * tiny_int4.result.report.quantization


def test_every_quantized_linear_is_fused(
    tiny_int4: Exported, tiny_int8: Exported, tmp_path: Path
) -> None:
    for exported, segments, vision in (
        (tiny_int4, (14, 28), 0),
        (tiny_int8, (14, 29), VISION),
    ):
        for number, expected in enumerate(segments):
            nodes = optimized(exported, f"decoder.{number}.onnx", False, tmp_path)
            assert nodes["MatMulNBits"] == expected
            assert nodes["DequantizeLinear"] == 0
            assert nodes["Gemm"] == (1 if exported is tiny_int4 and number else 0)
        nodes = optimized(exported, "vision.onnx", True, tmp_path)
        assert nodes["MatMulNBits"] == vision
        assert nodes["DequantizeLinear"] == 0


def test_graphs_are_valid_and_no_larger_than_before(
    tiny_int4: Exported, tiny_package: Path
) -> None:
    for file in ("decoder.0.onnx", "decoder.1.onnx", "vision.onnx"):
        onnx.checker.check_model(tiny_int4.folder / file)
        plain = onnx.load(tiny_package / file, load_external_data=False).graph
        graph = onnx.load(tiny_int4.folder / file, load_external_data=False).graph
        found = Counter(node.op_type for node in graph.node)
        expected = Counter(node.op_type for node in plain.node)
        assert linears_of(found) == linears_of(expected) > 0
        assert found["DequantizeLinear"] == 0
        assert len(graph.node) <= len(plain.node)


def test_answers_are_those_of_the_original(tiny_int4: Exported, tiny_int8: Exported) -> None:
    for exported in (tiny_int4, tiny_int8):
        model = LVLM.load(exported.folder, threads=1)
        for task in TASKS:
            for sample in samples(task, "held-out", 4, start=50):
                text = model.generate(sample.prompt, [sample.image], max_new_tokens=64).text
                assert score(sample, text) > 0.9


def test_policies_run_on_quantized_packages(tiny_int4: Exported) -> None:
    model = LVLM.load(tiny_int4.folder, threads=1)
    (sample,) = samples("caption", "held-out", 1)
    for policy in ("fastv", "avl", "avl+fastv"):
        text = model.generate(sample.prompt, [sample.image], policy=policy, max_new_tokens=64).text
        assert score(sample, text) > 0.7


def test_quantized_embedding(tiny_int8: Exported, tiny_checkpoint: Path) -> None:
    stored = load_file(tiny_checkpoint / "model.safetensors")
    (key,) = [key for key in stored if key.endswith("embed_tokens.weight")]
    ids = np.array([0, 5, 385, 5])
    rows = stored[key].float().numpy()[ids]
    found = Embedding(load_package(tiny_int8.folder)).lookup(ids)
    largest = np.abs(rows).max(-1, keepdims=True)
    assert (np.abs(found - rows) <= 0.5001 * largest / 127).all()
    assert load_package(tiny_int8.folder).manifest.embedding.dtype == "I8"


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_what_tensorrt_asks_for(dtype: str, kind: str, small: Path, exports: Exports) -> None:
    exported = exports(small, quantize="int4", block_size=32, dtype=dtype, check=dtype == "fp16")
    model = onnx.load(exported.folder / "decoder.1.onnx")  # with its external data
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(nodes) == 7
    for node in nodes:
        codes, scales = (initializers[name] for name in node.input)
        attributes = {a.name: a.i for a in node.attribute}
        assert attributes == {"axis": 0, "block_size": 32}
        assert codes.data_type == onnx.TensorProto.INT4
        assert scales.data_type == getattr(onnx.TensorProto, kind)
        assert scales.dims == [codes.dims[0] // 32, codes.dims[1]]
        assert (onnx.numpy_helper.to_array(scales).astype(np.float32) > 0).all()
    assert all(i.data_type in (kind_of(kind), onnx.TensorProto.INT4) for i in external(model))


def kind_of(kind: str) -> int:
    return int(getattr(onnx.TensorProto, kind))


def external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers of some size: the weights."""
    return [t for t in model.graph.initializer if np.prod(t.dims) > 64]


def test_fp16_packages_run(small: Path, exports: Exports) -> None:
    exported = exports(small, quantize="int4", block_size=32, dtype="fp16", check=True)
    assert exported.result.report.logits <= 5e-2 * exported.result.report.logit_scale
    result = LVLM.load(exported.folder, threads=1).generate("a b", max_new_tokens=3)
    assert len(result.token_ids) >= 1


def test_a_bf16_checkpoint_with_tied_embeddings(tmp_path: Path, exports: Exports) -> None:
    text = {**TEXT, "tie_word_embeddings": True}
    folder = write_random(tmp_path / "bf16", make_config("qwen2", text), torch.bfloat16)
    exported = exports(folder, quantize="int4", block_size=32, quantize_also=("lm_head",))
    assert exported.plan.dtype == "fp32"
    report = exported.result.report
    assert report.logits <= 2e-5 * report.logit_scale
    manifest = load_package(exported.folder).manifest
    assert manifest.embedding.dtype == "BF16"
    stored = tensors_dtypes(exported.folder / "weights.safetensors")
    assert {dtype for name, dtype in stored.items() if "embed_tokens" not in name} == {"F32"}
    LVLM.load(exported.folder, threads=1).generate("a b", max_new_tokens=2)
    with_rows = exports(
        folder, quantize="int4", block_size=32, quantize_also=("lm_head", "embedding")
    )
    assert with_rows.result.report.logits <= 2e-5 * report.logit_scale
    assert load_package(with_rows.folder).manifest.embedding.dtype == "I4"


def tensors_dtypes(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return {n: entry["dtype"] for n, entry in header.items() if n != "__metadata__"}

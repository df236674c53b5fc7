"""Exported packages compute what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from avl_export.check.compare import check_package
from avl_export.check.reference import read_reference
from avl_export.check.table import CheckError
from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.export import export
from avl_export.families import load_family
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_runtime.package.package import Package, load_package
from export.checkpoints import make_config, write_random, write_sparse

VARIANTS: dict[str, Any] = {
    "head_dim": ({"text": {"head_dim": 20, "num_attention_heads": 6}}, {}),
    "qwen2_bias_tied": (
        {"text_type": "qwen2", "text": {"tie_word_embeddings": True}},
        {"split": (1, 2)},
    ),
    "mistral_fp16": (
        {"text_type": "mistral", "text": {"num_key_value_heads": 4, "sliding_window": 64}},
        {"checkpoint_dtype": torch.float16, "copy": True},
    ),
    "layer_list_full": (
        {"vision_feature_layer": [1, -1], "vision_feature_select_strategy": "full"},
        {"checkpoint_dtype": torch.bfloat16},
    ),
    "llama3_rope_no_projector_bias": (
        {
            "multimodal_projector_bias": False,
            "vision_feature_layer": 2,
            "text": {
                "num_key_value_heads": 1,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            },
        },
        {"dtype": "fp16"},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_package_equals_transformers(name: str, tmp_path: Path) -> None:
    config, how = VARIANTS[name]
    how = dict(how)
    stored = how.pop("checkpoint_dtype", torch.float32)
    folder = write_random(tmp_path / "model", make_config(**config), stored)
    result = export(make_plan(Options(str(folder), tmp_path / "out", **how)))
    assert result.report is not None
    bound = 5e-2 if how.get("dtype") == "fp16" else 2e-5
    assert result.report.logits <= bound * result.report.logit_scale
    assert result.report.logit_scale > 0.5, "logits too small to compare anything"
    package = load_package(tmp_path / "out")
    package.check_shards()
    for entry in package.manifest.files:
        package.read(entry.path)
    assert (package.manifest.weights.folder is None) == how.get("copy", False)
    if name == "mistral_fp16":
        assert package.manifest.dims.max_positions == 64


def test_graphs_have_the_contract_names(master_package: Path) -> None:
    model = onnx.load(master_package / "decoder.1.onnx", load_external_data=False)
    graph = model.graph
    assert [value.name for value in graph.input] == [
        "hidden",
        "position_ids",
        "row_weights",
        "k_active.2",
        "v_active.2",
        "active_len.2",
        "k_parked.2",
        "v_parked.2",
        "parked_len.2",
        "logits_from",
    ]
    assert [value.name for value in graph.output] == [
        "logits",
        "k_new.2",
        "v_new.2",
        "mass_active.2",
        "mass_parked.2",
        "mass_new.2",
    ]
    (node,) = [node for node in graph.node if node.op_type == "SplitCacheAttention"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["plugin_namespace"] == b"avl"
    assert attributes["aot"] == 1
    assert attributes["scale"] == pytest.approx(12**-0.5)
    names = [function.name for function in model.functions]
    linears = ["Linear", "Linear3", "LogitsLinear", "Linear2SiluGate"]
    others = ["RotaryHeads", "JoinedHeads", "AddRMSNorm"]
    assert names == ["SplitCacheAttention", "SplitCacheStep", "SplitCachePrompt", *linears, *others]
    weights = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(weights) == 11
    assert not any("/" in e.value for t in weights for e in t.external_data)


def test_sparse_checkpoint_of_real_width_is_not_read(tmp_path: Path) -> None:
    text = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    }
    folder = write_sparse(tmp_path / "wide", make_config(text=text, image_token_index=32000))
    result = export(make_plan(Options(str(folder), tmp_path / "out")))
    assert result.report is None
    assert result.nbytes < 1 << 20
    manifest = load_package(tmp_path / "out").manifest
    assert manifest.dtype == "fp16"
    assert len(manifest.weights.shards) > 1
    blocks = sum(p.stat().st_blocks for p in folder.glob("*.safetensors"))
    assert blocks * 512 < 1 << 20, "the sparse files were filled"


def test_check_names_the_first_layer_that_differs(master: Path, package_folder: Path) -> None:
    package = load_package(package_folder)
    path = package.file("decoder.0.onnx")
    model = onnx.load(path, load_external_data=False)
    norm = "model.language_model.layers.1.post_attention_layernorm.weight"
    (index,) = [i for i, t in enumerate(model.graph.initializer) if t.name == norm]
    wrong = onnx.numpy_helper.from_array(np.full(48, 3, np.float32), norm)
    model.graph.initializer[index].CopyFrom(wrong)
    onnx.save(model, path)
    with pytest.raises(CheckError, match=r"first in decoder layer 1;"):
        check(package, master)


def test_check_sees_a_wrong_vision_tower(master: Path, package_folder: Path) -> None:
    package = load_package(package_folder)
    path = package.file("vision.onnx")
    model = onnx.load(path, load_external_data=False)
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 0.5
    onnx.save(model, path)
    with pytest.raises(CheckError, match="vision tower"):
        check(package, master)


def check(package: Package, model: Path) -> None:
    checkpoint = open_checkpoint(str(model))
    family = load_family(checkpoint, torch.float32)
    check_package(package, read_reference(package, family, checkpoint))

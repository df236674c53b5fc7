"""Qwen3-VL with a mixture of experts: which are chosen, what they compute, how they are stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.cli import main as avl_export
from avl_export.export import export
from avl_export.families import load_family
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_export.plan.plan_text import quantization_text
from avl_export.quantize.blocks import BEST, dequantize, quantize
from avl_export.quantize.packaged import read_packaged
from avl_export.quantize.reading import read_weight
from avl_export.quantize.report import quantization_report
from avl_plugins.errors import AvlError
from avl_plugins.schema import QUANTIZED_EXPERTS, SPARSE_EXPERTS
from avl_runtime import LVLM
from avl_runtime.engines.options import Options as BuildOptions
from avl_runtime.engines.plan import make_plan as build_plan
from avl_runtime.machine.probe import probe
from avl_runtime.package.dims import Experts
from avl_runtime.package.info import describe, info_text
from avl_runtime.package.package import Package, load_package
from avl_runtime.package.quantization import Quantization
from avl_runtime.requests.loaded import weights_read
from families.engines import EngineTests
from families.qwen import PatchTests, merged
from families.shared import PROMPT
from families.support import Case, Made, picture, refused
from families.test_qwen3_5 import begun, steps
from families.test_qwen3_vl import case
from families.test_qwen3_vl import config as dense_config
from support.traced import traced_once

# One layer of four is dense; blocks of 32 fit, those of 64 do not.
EXPERTS = {
    "num_experts": 11,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 160,
    "mlp_only_layers": [1],
}


class Published(Qwen3VLMoeForConditionalGeneration):
    """Saves stacks of experts as Qwen/Qwen3-VL-30B-A3B-Instruct has them: [E, inputs, outputs]."""

    def save_pretrained(self, folder: Path) -> None:
        super().save_pretrained(folder)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        swapped = {
            name: stack.mT.contiguous() for name, stack in tensors.items() if ".experts." in name
        }
        assert len(swapped) == 2 * 3
        save_file(tensors | swapped, path, {"format": "pt"})


def config(**changes: Any) -> Qwen3VLMoeConfig:
    dense = dense_config().to_dict()
    parts: Mapping[str, dict[str, Any]] = {
        part: {name: value for name, value in dense[part].items() if name != "model_type"}
        for part in ("text_config", "vision_config")
    }
    tokens = {name: value for name, value in dense.items() if name.endswith("_token_id")}
    return Qwen3VLMoeConfig(
        text_config=parts["text_config"] | EXPERTS | changes,
        vision_config=parts["vision_config"],
        **tokens,
    )


SEGMENTS = ("decoder.0.onnx", "decoder.1.onnx")
CASES = (case("qwen3_vl_moe", Published, config()),)


class TestQwen3VLMoe(PatchTests, EngineTests):
    cases = CASES

    def test_experts_are_one_node_a_layer_and_read_in_place(self, made: Made) -> None:
        experts = made.model.package.manifest.dims.experts
        assert experts == Experts((0, 2, 3), 11, 3, 160)
        nodes = []
        for file in SEGMENTS:
            graph = onnx.load(made.package / file, load_external_data=False).graph
            nodes += [node for node in graph.node if node.op_type == SPARSE_EXPERTS.name]
            assert not [
                node for node in graph.node if node.op_type == "Cast" and "experts" in str(node)
            ]
        assert len(nodes) == 3
        assert {a.i for node in nodes for a in node.attribute if a.name.endswith("trans")} == {0}

    @pytest.mark.parametrize("chunk", [1, 7])
    def test_prompts_in_chunks(
        self, made: Made, chunk: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = [picture((97, 61), 0)]
        asked = {"max_new_tokens": 2, "return_logits": True}
        whole = made.model.generate(PROMPT, images, **asked)
        monkeypatch.setattr(made.model.loaded.executor, "chunk", chunk)
        found = made.model.generate(PROMPT, images, **asked)
        np.testing.assert_allclose(found.logits, whole.logits, atol=1e-4, rtol=0)

    def test_sequences_of_unlike_lengths_decode_together(self, made: Made) -> None:
        """Each row goes to its own experts."""
        asked = [("What?", []), (PROMPT, [picture((97, 61), 0)])]
        alone = [steps(made, [begun(made, *one)], 4)[:, 0] for one in asked]
        found = steps(made, [begun(made, *one) for one in asked], 4)
        np.testing.assert_allclose(found, np.stack(alone, 1), atol=1e-4, rtol=0)

    def test_a_runtime_without_our_kernels(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The op's body, in a stock ONNX Runtime."""
        images, asked = [picture((97, 61), 0)], {"max_new_tokens": 3, "return_logits": True}
        want = made.model.generate(PROMPT, images, **asked)
        monkeypatch.setenv("AVL_CPU_LEVEL", "base")
        found = LVLM.load(made.package, backend="ort-cpu", threads=1).generate(
            PROMPT, images, **asked
        )
        assert found.token_ids == want.token_ids
        np.testing.assert_allclose(found.logits, want.logits, atol=1e-4, rtol=0)

    def test_everything_in_int4(self, made: Made, tmp_path: Path) -> None:
        super().test_everything_in_int4(made, tmp_path)
        self._check_codes(made, load_package(tmp_path / "out"), 4, 32)

    def test_int8(self, made: Made, tmp_path: Path) -> None:
        plan = make_plan(Options(str(made.folder), tmp_path / "out", quantize="int8", check=True))
        with traced_once(made.graphs):
            report = export(plan).report
        assert report is not None
        assert report.logits <= 1e-4 * report.logit_scale
        self._check_codes(made, load_package(tmp_path / "out"), 8, None)

    @staticmethod
    def _check_codes(made: Made, package: Package, bits: Literal[4, 8], block: int | None) -> None:
        """Codes are those of each expert's matrices, which are stored the other way round."""
        out = package.folder
        assert package.manifest.quantization is not None
        assert {"decoder", "experts"} <= set(package.manifest.quantization.parts)
        graphs = [onnx.load(out / f, load_external_data=False).graph for f in SEGMENTS]
        nodes = [n for graph in graphs for n in graph.node if "Experts" in n.op_type]
        assert [node.op_type for node in nodes] == [QUANTIZED_EXPERTS[bits].name] * 3
        places = read_packaged(package).linears
        tensors = load_file(made.folder / "model.safetensors")
        for name in [name for name in tensors if ".experts." in name]:
            stack, place = tensors[name].mT.numpy(), places[name]
            assert place.shape == stack.shape
            codes, scales = quantize(
                stack.reshape(-1, stack.shape[-1]), bits, block or stack.shape[-1], BEST[bits]
            )
            np.testing.assert_array_equal(
                read_weight(out, place), dequantize(codes, scales).reshape(stack.shape)
            )
            assert place.nbytes == codes.size * bits // 8 + 4 * scales.size

    def test_experts_that_blocks_do_not_fit_stay(self, made: Made, tmp_path: Path) -> None:
        plan = make_plan(Options(str(made.folder), tmp_path, quantize="int4", dry_run=True))
        told = "\n".join(quantization_text(quantization_report(plan.store)))
        assert "weights of decoder to int4" in told
        assert "in F32: 6 weights whose experts' 160 inputs are no multiple of 64" in told
        assert "--block-size 32 would quantize these too" in told

    def test_what_a_step_reads(self, made: Made) -> None:
        package = made.model.package
        manifest, dims = package.manifest, package.manifest.dims
        assert manifest.embedding.dtype == "F32"
        experts = 3 * 3 * 3 * 160 * dims.hidden_size  # matrices, layers, experts of a token
        others = 3 * dims.intermediate_size + 2 * dims.num_layers * dims.head_dim * (
            dims.num_heads + dims.num_kv_heads
        )
        others = (others + dims.vocab_size) * dims.hidden_size
        assert weights_read(manifest) == 4 * (experts + others)
        codes = Quantization("rtn", 4, 32, ("decoder",), False, None)
        quantized = replace(manifest, quantization=codes)
        assert weights_read(quantized) == 2 * experts + others // 2
        told = info_text(describe(replace(package, manifest=quantized)))
        assert "4 layers, in 3 of which a token goes through 3 of 11 experts, cut" in told
        assert "int4 (rtn, blocks of 32): decoder, but no experts" in told
        mixed = replace(manifest, quantization=replace(codes, parts=("decoder", "experts")))
        assert weights_read(mixed) == (experts + others) // 2
        told = info_text(describe(replace(package, manifest=mixed)))
        assert "int4 (rtn, blocks of 32): decoder, experts\n" in told

    def test_engines_are_refused(self, made: Made) -> None:
        with pytest.raises(AvlError, match="mixture of experts; run the package on ort-cpu"):
            build_plan(BuildOptions(made.package, "tensorrt-rtx", dry_run=True), probe())
        with pytest.raises(AvlError, match="a mixture of experts; use ort-cpu"):
            LVLM.load(made.package, backend="tensorrt-rtx")


def test_stacks_as_transformers_saves_them(make: Callable[[Case], Made], tmp_path: Path) -> None:
    """[E, outputs, inputs], in fp16; compared with transformers by the export."""
    made = make(CASES[0])
    folder = tmp_path / "model"
    shutil.copytree(made.folder, folder)
    path = folder / "model.safetensors"
    straight = {
        name: (tensor.mT.contiguous() if ".experts." in name else tensor).half()
        for name, tensor in load_file(path).items()
    }
    save_file(straight, path, {"format": "pt"})
    command = ["--model", str(folder), "--out", str(tmp_path / "out"), "--check"]
    with traced_once(made.graphs):
        assert avl_export(command) == 0
    graph = onnx.load(tmp_path / "out" / "decoder.0.onnx", load_external_data=False).graph
    (node,) = [node for node in graph.node if node.op_type == SPARSE_EXPERTS.name]
    assert {a.i for a in node.attribute if a.name.endswith("trans")} == {1}
    kinds = {one.name: one.data_type for one in graph.initializer}
    assert {kinds[name] for name in node.input[3:]} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"mlp_only_layers": []}, (0, 1, 2, 3)),
        ({"mlp_only_layers": [3], "decoder_sparse_step": 2}, (1,)),
        ({"mlp_only_layers": [], "decoder_sparse_step": 3}, (2,)),
        ({"mlp_only_layers": [0, 1, 2, 3]}, None),
    ],
)
def test_which_layers_have_experts(
    make: Callable[[Case], Made],
    tmp_path: Path,
    changes: dict[str, Any],
    layers: tuple[int, ...] | None,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make(CASES[0]).folder, folder)
    path = folder / "config.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"text_config": found["text_config"] | changes}))
    experts = load_family(open_checkpoint(str(folder)), torch.float32).decoder.dims.experts
    assert experts == (layers and Experts(layers, 11, 3, 160))


@pytest.mark.parametrize("method", [None, "gptq"])
def test_experts_one_by_one_are_refused(
    make: Callable[[Case], Made], tmp_path: Path, method: str | None
) -> None:
    """As tools that quantize each linear by itself write them."""
    made = make(CASES[0])
    folder = tmp_path / "model"
    shutil.copytree(made.folder, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    stack = tensors.pop("model.language_model.layers.2.mlp.experts.down_proj")
    part = "qweight" if method else "weight"
    name = f"model.language_model.layers.2.mlp.experts.7.down_proj.{part}"
    save_file(tensors | {name: stack[7].clone()}, path, {"format": "pt"})
    if method:
        packing = {"quant_method": method, "bits": 4, "group_size": 32, "desc_act": False}
        config = json.loads((folder / "config.json").read_text()) | {"quantization_config": packing}
        (folder / "config.json").write_text(json.dumps(config))
    found = "found one expert's by itself" + (f" quantized with {method}" if method else "")
    with pytest.raises(AvlError, match=f"experts.7.down_proj.*: expected .* {found}; export"):
        make_plan(Options(str(folder), tmp_path / "out", dry_run=True))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_act": "gelu"}, "experts with hidden_act of gelu in layer 0"),
        ({"num_experts_per_tok": 12}, "k not in range"),
    ],
)
def test_variants_that_are_refused(
    make: Callable[[Case], Made], tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    made = make(CASES[0])
    found = refused(made, tmp_path, {"config.json": merged(made, {"text_config": changes})})
    assert expected in found

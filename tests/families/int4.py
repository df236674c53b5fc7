"""What must hold of a family's package with everything in INT4."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort

from avl_export.export import export
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_runtime import LVLM
from avl_runtime.execute.host.ort_options import session_config
from avl_runtime.package.package import Package, load_package
from families.support import Made, picture
from quantize.conftest import quantized_linears_of
from support.traced import traced_once


class Int4Tests:
    """Graphs exact, every linear fused, replies given. LLaVA's in INT8 is in tests/quantize."""

    def test_everything_in_int4(self, made: Made, tmp_path: Path) -> None:
        plan = make_plan(
            Options(
                str(made.folder),
                tmp_path / "out",
                quantize="int4",
                block_size=32,
                quantize_also=("embedding", "lm_head", "vision"),
                check=True,
            )
        )
        with traced_once(made.graphs):
            report = export(plan).report
        assert report is not None
        assert report.logits <= 1e-4 * report.logit_scale
        package = load_package(tmp_path / "out")
        linears = 0
        for file in package.manifest.graphs:
            plain = nodes(package.file(file))
            quantized = plain["DequantizeLinear"] + quantized_linears_of(plain)
            found = optimized(package, file, tmp_path / "optimized.onnx")
            assert found["MatMulNBits"] == quantized > 0, file
            assert found["DequantizeLinear"] == 0, file
            linears += quantized
        assert plan.store is not None
        assert linears >= sum(len(place.shape) == 2 for place in plan.store.linears.values())
        model = LVLM.load(tmp_path / "out", threads=1)
        assert model.generate("What is it?", [picture((60, 80))], max_new_tokens=2).token_ids


def nodes(path: Path) -> Counter[str]:
    """Node types of a graph."""
    return Counter(n.op_type for n in onnx.load(path, load_external_data=False).graph.node)


def optimized(package: Package, file: str, scratch: Path) -> Counter[str]:
    """Node types of a graph after ONNX Runtime's optimizations."""
    encoder = file not in {segment.file for segment in package.manifest.segments}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(scratch)
    for name, value in session_config(package.manifest.quantization, encoder, packs=True).items():
        options.add_session_config_entry(name, value)
    ort.InferenceSession(package.file(file), options, providers=["CPUExecutionProvider"])
    return nodes(scratch)

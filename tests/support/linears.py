"""Graphs whose linears are joined, and what a model replies with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir

from avl_export.graph.linears import join_linears
from avl_runtime import LVLM
from avl_runtime.tasks import TASKS, samples


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    found = ir.from_proto(model)
    join_linears(found)
    proto = ir.to_proto(found)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def types_of(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def replies(package: Path) -> list[list[int]]:
    """Tokens of some held-out samples of each task."""
    model = LVLM.load(package, threads=1)
    return [
        model.generate(sample.prompt, [sample.image], max_new_tokens=64).token_ids
        for task in TASKS
        for sample in samples(task, "held-out", 2, start=70)
    ]

"""Layers that were copied give the graph that tracing every one of them gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

import export_size
from avl_export.checkpoint.checkpoint import weights_root
from avl_export.families import replicate
from avl_export.graph import trace
from avl_export.graph.graph import finish
from avl_export.graph.weights import bind
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan

LAYERS = 3
# Of each kind of encoder and decoder one; towers cut down to a few layers of each sort.
MODELS: dict[str, dict[str, Any]] = {
    "llava-7b": {"num_hidden_layers": 3},
    "internvl3-8b": {"num_hidden_layers": 2},
    "qwen2.5-vl-7b": {"depth": 3, "fullatt_block_indexes": [1]},
    "qwen3-vl-8b": {"depth": 2, "deepstack_visual_indexes": [0]},
}


@pytest.fixture(scope="module", params=MODELS)
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan for a sparse checkpoint of real width."""
    place = tmp_path_factory.mktemp("replicate")
    config = place / "model" / "config.json"
    vision = MODELS[request.param]
    export_size.write_sparse(place / "model", request.param, LAYERS, vision)
    assert json.loads(config.read_text())["vision_config"].items() >= vision.items()
    return make_plan(Options(str(place / "model"), place / "out", split=(1,)))


def identities(plan: Plan, traced: trace.Traced) -> dict[str, str]:
    """Of each output of the finished graph, a hash of everything it is computed from.

    Two outputs have the same if they come from the same operations with the same attributes, on
    the same inputs, constants and bytes of the checkpoint.
    """
    bind(traced, plan.weights, plan.family.constants(), weights_root(plan.checkpoint))
    graph = finish(traced).graph
    known: dict[ir.Value, str] = {}

    def digest(*parts: object) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    for value in graph.inputs:
        known[value] = digest("input", value.name, str(value.shape), value.dtype)
    for value in graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if isinstance(tensor, ir.ExternalTensor):
            known[value] = digest(tensor.location, tensor.offset, tensor.length, tensor.dtype)
        else:
            known[value] = digest(tensor.dtype, tensor.shape, tensor.tobytes())
    for node in graph:
        attributes = sorted((name, str(value.value)) for name, value in node.attributes.items())
        given = [None if value is None else known[value] for value in node.inputs]
        for index, output in enumerate(node.outputs):
            known[output] = digest(node.domain, node.op_type, attributes, given, index)
    return {str(value.name): known[value] for value in graph.outputs}


def graphs(plan: Plan) -> list[trace.Traced]:
    traced = [trace.trace_encoder(plan.family, encoder) for encoder in plan.family.encoders()]
    return [*traced, trace.trace_segment(plan.family, 1, LAYERS)]


def test_copies_equal_a_full_trace(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[replicate.Calls] = []
    tracing = replicate.tracing

    @contextmanager
    def watched() -> Iterator[replicate.Calls]:
        with tracing() as calls:
            seen.append(calls)
            yield calls

    def holes() -> int:
        return sum(len(calls.layers) - len(calls.templates) for calls in seen)

    monkeypatch.setattr(replicate, "tracing", watched)
    copied = [identities(plan, traced) for traced in graphs(plan)]
    assert holes() >= 2
    seen.clear()
    monkeypatch.setattr(replicate, "alike", lambda one, other: False)
    whole = [identities(plan, traced) for traced in graphs(plan)]
    assert holes() == 0
    assert len(whole[-1]) > 5 * (LAYERS - 1)
    assert copied == whole


class Layer(nn.Module):
    def __init__(self, width: int = 4, scale: float = 1.0, number: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.scale = scale
        self.layer_idx = number

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden) * self.scale


def test_alike() -> None:
    assert replicate.alike(Layer(), Layer(number=7))
    assert not replicate.alike(Layer(), Layer(width=5))
    assert not replicate.alike(Layer(), Layer(scale=2.0))
    assert not replicate.alike(Layer(), Layer().to(torch.float16))
    assert not replicate.alike(Layer(), nn.Linear(4, 4))
    other = Layer()
    other.linear = nn.Linear(4, 4, bias=False)
    assert not replicate.alike(Layer(), other)
    other = Layer()
    other.register_buffer("more", torch.zeros(1))
    assert not replicate.alike(Layer(), other)
    assert replicate.firsts([Layer(), Layer(scale=2.0), Layer(), Layer(scale=2.0)]) == [0, 1, 0, 1]


def test_what_is_shared_must_be_the_same() -> None:
    """A layer that is given something else is traced by itself."""
    layers = [Layer() for _ in range(4)]
    one, two = torch.ones(1), torch.ones(1)

    def run(layer: nn.Module, hidden: torch.Tensor, factor: torch.Tensor, power: int) -> Any:
        return layer(hidden) * factor**power

    with replicate.tracing() as calls, torch.device("meta"):
        hidden = torch.ones(2, 4)
        given = [(one, 1), (one, 1), (two, 1), (one, 2)]
        for layer, (factor, power) in zip(layers, given, strict=True):
            hidden = replicate.repeat(run, layer.to("meta"), hidden, factor.to("meta"), power)
    assert len(calls.templates) == 4  # .to("meta") makes a new tensor each time
    with replicate.tracing() as calls, torch.device("meta"):
        hidden = torch.ones(2, 4)
        shared = {id(one): one.to("meta"), id(two): two.to("meta")}
        for layer, (factor, power) in zip(layers, given, strict=True):
            hidden = replicate.repeat(run, layer, hidden, shared[id(factor)], power)
    assert [call.number for call in calls.templates] == [0, 2, 3]


def test_repeat_is_a_call_outside_of_tracing() -> None:
    layer, hidden = Layer(), torch.rand(2, 4)
    found = replicate.repeat(lambda one, value: one(value), layer, hidden)
    assert torch.equal(found, layer(hidden))

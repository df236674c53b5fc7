"""Ops that ONNX has none for are replaced without a second trace, or left to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avl_export.graph.lower import REWRITES, lower_in_place

aten = torch.ops.aten
PICTURE = torch.linspace(-1, 1, 2 * 3 * 8 * 6).reshape(2, 3, 8, 6)


class _Module(nn.Module):
    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run
        self.kernel = nn.Parameter(torch.linspace(-1, 1, 4 * 3 * 2 * 2).reshape(4, 3, 2, 2))

    def forward(self, x: Tensor) -> Any:
        return self.run(x, self.kernel)


def lowered(module: nn.Module, *table: Any) -> tuple[Any, bool]:
    """A program of `module`, first and third size open, and whether torch decomposed it."""
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("rows", min=4)}
    program = torch.export.export(module, (PICTURE,), dynamic_shapes=(sizes,))
    decompose, asked = program.run_decompositions, []

    def watched(held: Any) -> Any:
        asked.append(held)
        return decompose(held)

    program.run_decompositions = watched  # type: ignore[method-assign]
    lower_in_place(program)
    every = torch.export.default_decompositions()
    return program.run_decompositions({op: every[op] for op in table}), bool(asked)


def scaled_twice(x: Tensor, _: Tensor) -> Tensor:
    y = x + 1
    y *= 2
    return y * 3


@pytest.mark.parametrize(
    "run",
    [
        lambda x, _: x.transpose(1, 3).reshape(x.shape[0], -1, 3),
        lambda x, _: x.transpose(1, 3).flatten(2),
        lambda x, _: x.transpose(1, 3).flatten(1, 2),
        lambda x, _: x.flatten(),
        lambda x, _: x.transpose(1, 3).contiguous(),
        lambda x, _: (x.to(torch.float32), x.to(torch.float64)),
        lambda x, _: x.chunk(4, dim=-1),
        lambda x, _: x.chunk(2, 1)[1],
        lambda x, kernel: torch.conv2d(x, kernel, padding="valid"),
        lambda x, kernel: torch.conv2d(x, kernel, stride=2, padding="valid"),
        scaled_twice,
    ],
    ids=[
        "reshape",
        "open_flatten",
        "flatten",
        "whole",
        "contiguous",
        "to",
        "chunk",
        "uneven",
        "conv",
        "stride",
        "written",
    ],
)
def test_what_stands_for_an_op_computes_the_same(run: Callable[..., Any]) -> None:
    module, table = _Module(run), (aten.conv2d.padding,)
    program, decomposed = lowered(module, *table)
    assert not decomposed
    targets = [node.target for node in program.graph.nodes]
    assert not set(targets) & {*REWRITES, *table, aten.mul_.Tensor}
    # Other sizes than those of the trace.
    x = torch.cat([PICTURE, PICTURE, PICTURE * 2])[:, :, :7]
    for found, wanted in zip(_parts(program.module()(x)), _parts(module(x)), strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


def _parts(given: Any) -> tuple[Tensor, ...]:
    return (given,) if isinstance(given, Tensor) else tuple(given)


def seen_and_written(x: Tensor, _: Tensor) -> Tensor:
    y = x + 1
    view = y[:, 0]
    y *= 2
    return view + y[:, 1]


@pytest.mark.parametrize(
    ("run", "table"),
    [
        (seen_and_written, ()),
        (lambda x, _: x.clone().select(1, 0).mul_(2), ()),
        (lambda x, kernel: torch.conv2d(x, kernel, padding="same"), (aten.conv2d.padding,)),
        (lambda x, _: x.softmax(-1), (aten.softmax.int,)),
        (lambda x, _: x.view_as(x), ()),
    ],
    ids=["view", "part", "same", "table", "alias"],
)
def test_everything_else_is_left_to_torch(run: Callable[..., Any], table: tuple[Any, ...]) -> None:
    module = _Module(run)
    program, decomposed = lowered(module, *table)
    assert decomposed
    x = PICTURE * 2
    assert torch.equal(program.module()(x), module(x))

"""Trace one of many equal layers and copy its nodes for the others.

torch.export and its translation to ONNX take most of an export's time, and spend it on layers that
differ in nothing but their weights. While `tracing` runs, `repeat` lets only the first of equal
layers through, between marks; each further one becomes a hole that `holes.fill` later replaces by a
copy of the nodes between the marks. What that leaves is the graph that a full trace gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from onnx import defs
from onnxscript.values import Opset
from torch import nn

DOMAIN = "avl.trace"
NUMBERS = {"Enter": ("call",), "Own": ("call",), "Leave": ("call",), "Hole": ("call", "like_call")}
KINDS = tuple(f"tensor({name})" for name in ("float", "float16", "bfloat16"))
PLAIN = (bool, int, float, str, type(None))

torch.library.define("avl::enter", "(Tensor x, int call) -> Tensor")
torch.library.define("avl::own", "(Tensor x, int call) -> Tensor")
torch.library.define("avl::leave", "(Tensor x, int call) -> Tensor")
torch.library.define("avl::hole", "(Tensor x, Tensor? own, int call, int like_call) -> Tensor")
for _name in ("enter", "own", "leave", "hole"):
    torch.library.register_fake(f"avl::{_name}", lambda x, *_: torch.empty_like(x))


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A call that was let through: of what, on which layer, and with what beside its input."""

    number: int
    run: Callable[..., torch.Tensor]
    layer: nn.Module
    shared: Sequence[Any]
    form: tuple[Any, ...]


@dataclass(slots=True)
class Calls:
    """The calls of `repeat` in one trace: of all of them the layers, and those let through."""

    layers: list[nn.Module] = field(default_factory=list)
    templates: list[_Call] = field(default_factory=list)


_current: ContextVar[Calls | None] = ContextVar("calls", default=None)


@contextmanager
def tracing() -> Iterator[Calls]:
    """Trace equal layers once while the block runs; the graph then needs `holes.fill`."""
    calls = Calls()
    token = _current.set(calls)
    try:
        yield calls
    finally:
        _current.reset(token)


def repeat(
    run: Callable[..., torch.Tensor],
    layer: nn.Module,
    hidden: torch.Tensor,
    *shared: Any,
    own: torch.Tensor | None = None,
) -> torch.Tensor:
    """`run(layer, hidden, *shared)`, one step of a loop over layers; with `own` behind, if given.

    Outside of `tracing` that is all. Inside, a layer that is alike an earlier one, and is run by
    the same function with the very same `shared`, becomes a hole.

    Args:
        run: gives a tensor of the shape and dtype of `hidden`; it depends on nothing else that
            changes from layer to layer, and reads `hidden` only here.
        shared: tensors, numbers, None, or tuples of them.
        own: a tensor that changes from layer to layer.
    """
    calls = _current.get()
    if calls is None:
        return run(layer, hidden, *shared, *([] if own is None else [own]))
    number, form = len(calls.layers), (_form(hidden), own is not None and _form(own))
    calls.layers.append(layer)
    for call in calls.templates:
        if (
            call.run == run
            and call.form == form
            and _same(call.shared, shared)
            and alike(call.layer, layer)
        ):
            return cast(torch.Tensor, torch.ops.avl.hole(hidden, own, number, call.number))
    calls.templates.append(_Call(number, run, layer, shared, form))
    entered = torch.ops.avl.enter(hidden, number)
    owned = [] if own is None else [torch.ops.avl.own(own, number)]
    out = run(layer, entered, *shared, *owned)
    return cast(torch.Tensor, torch.ops.avl.leave(out, number))


def firsts(layers: Sequence[nn.Module]) -> list[int]:
    """Of each layer, the index of the first one that it is alike."""
    found: list[int] = []
    for index, layer in enumerate(layers):
        earlier = (n for n in dict.fromkeys(found) if alike(layers[n], layer))
        found.append(next(earlier, index))
    return found


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers compute the same, up to the values of their parameters.

    They have the same modules with the same settings; only a layer's own number may differ.
    """
    if type(one) is not type(other) or _settings(one) != _settings(other):
        return False
    mine, theirs = dict(one.named_children()), dict(other.named_children())
    return list(mine) == list(theirs) and all(alike(mine[name], theirs[name]) for name in mine)


def _settings(module: nn.Module) -> dict[str, Any]:
    """What tells modules of one class apart, but for the values of parameters."""
    found: dict[str, Any] = {
        name: _setting(value)
        for name, value in vars(module).items()
        if name != "layer_idx" and name not in vars(_PLAIN_MODULE)
    }
    for kind in ("_parameters", "_buffers"):
        tensors: dict[str, torch.Tensor | None] = getattr(module, kind)
        found[kind] = {
            name: None if tensor is None else (tuple(tensor.shape), tensor.dtype)
            for name, tensor in tensors.items()
        }
    return found


def _setting(value: Any) -> Any:
    """Values compare by themselves, methods patched in by their function, objects by identity."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple | list):
        return tuple(map(_setting, value))
    if isinstance(value, partial):
        return id(value.func), _setting(value.args), _setting(sorted(value.keywords.items()))
    return id(getattr(value, "__func__", value))


_PLAIN_MODULE = nn.Module()


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Sizes and dtype of an example; two names of one dynamic size have the same value there."""
    sizes = (size if isinstance(size, int) else size.node.hint for size in tensor.shape)
    return (*sizes, tensor.dtype)


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are interchangeable: tensors only if they are one."""
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, PLAIN) and isinstance(other, PLAIN):
        return type(one) is type(other) and one == other
    return one is other


def translation() -> dict[Any, Any]:
    """Entries for the custom translation table; registers the ONNX schemas of the marks."""
    for name, numbers in NUMBERS.items():
        if not defs.has(name, DOMAIN):
            defs.register_schema(_schema(name, numbers))
    ops = Opset(DOMAIN, 1)

    def enter(x: Any, call: int) -> Any:
        return ops.Enter(x, call=call)

    def own(x: Any, call: int) -> Any:
        return ops.Own(x, call=call)

    def leave(x: Any, call: int) -> Any:
        return ops.Leave(x, call=call)

    def hole(x: Any, own: Any, call: int, like_call: int) -> Any:
        given = (x,) if own is None else (x, own)
        return ops.Hole(*given, call=call, like_call=like_call)

    return {
        torch.ops.avl.enter.default: enter,
        torch.ops.avl.own.default: own,
        torch.ops.avl.leave.default: leave,
        torch.ops.avl.hole.default: hole,
    }


def _schema(name: str, numbers: Sequence[str]) -> defs.OpSchema:
    schema = defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    own = [schema.FormalParameter("own", "T", param_option=optional)]
    return schema(
        name,
        DOMAIN,
        1,
        inputs=[schema.FormalParameter("x", "T"), *(own if name == "Hole" else [])],
        outputs=[schema.FormalParameter("y", "T")],
        type_constraints=[("T", list(KINDS), "")],
        attributes=[schema.Attribute(n, schema.AttrType.INT, "", required=True) for n in numbers],
    )

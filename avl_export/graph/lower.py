"""Make a traced program's ops those that translations to ONNX know, without tracing it again.

`torch.onnx.export` has each program decomposed, for which torch traces all of it twice more: half
of an export's time. Programs traced here hold few ops that this changes, and each is replaced by
itself, by what torch makes of it. A program with any other such op is decomposed by torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

aten = torch.ops.aten

Table = Mapping[Any, Callable[..., Any]]
Rewrite = Callable[[Graph, Node], Node | None]  # what stands for a node, or None: torch knows


def lower_in_place(program: ExportedProgram) -> None:
    """Have `program.run_decompositions` change its own graph where that gives the same ops.

    `torch.onnx.export` calls it with decompositions of the ops that ONNX has nothing for.
    """
    whole, own = program.run_decompositions, program

    def run_decompositions(table: Table) -> ExportedProgram:
        return program if _lower(program, table) else whole(dict(table))

    setattr(own, "run_decompositions", run_decompositions)  # noqa: B010 - a method to mypy


def _lower(program: ExportedProgram, table: Table) -> bool:
    """Replace ops in `program`; if one is not known, say so and leave the rest as they are.

    What is replaced before one that is not known computes the same, so torch can go on from there.
    """
    module = program.graph_module
    with module._set_replace_hook(program.graph_signature.get_replace_hook()):
        for node in module.graph.nodes:
            if _stays(node, table):
                continue
            rewrite = REWRITES.get(node.target, _out_of_place)
            with module.graph.inserting_before(node):
                found = rewrite(module.graph, node) if node.op == "call_function" else None
            if found is None:
                return False
            node.replace_all_uses_with(found)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return True


def _stays(node: Node, table: Table) -> bool:
    """Whether decomposing leaves a node as it is."""
    target = node.target
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if not isinstance(target, torch._ops.OpOverload):
        return not isinstance(target, torch._ops.OperatorBase)  # arithmetic with sizes
    results = target._schema.returns
    composed = target._can_decompose() and any(result.alias_info for result in results)
    return not (composed or target in table or target._schema.is_mutable)


def _new(graph: Graph, like: Node, target: Any, *given: Any, **named: Any) -> Node:
    node = graph.call_function(target, given, named)
    node.meta = dict(like.meta)
    return node


def _argument(node: Node, name: str) -> Any:
    """An argument of `node` by its name in the op's schema, or its default there."""
    schema: Any = node.target
    for index, argument in enumerate(schema._schema.arguments):
        if argument.name == name:
            given = node.args[index] if index < len(node.args) else node.kwargs.get(name)
            return argument.default_value if given is None else given
    raise LookupError(f"{node.target} has no argument {name}")


def _contiguous(graph: Graph, node: Node) -> Node:
    return _new(
        graph, node, aten.clone.default, node.args[0], memory_format=torch.contiguous_format
    )


def _reshape(graph: Graph, node: Node) -> Node:
    return _view(graph, node, node.args[1])


def _view(graph: Graph, node: Node, sizes: Any) -> Node:
    """A view of a copy: ONNX knows no strides, and drops the copy."""
    source = graph.call_function(
        aten.clone.default, (node.args[0],), {"memory_format": torch.contiguous_format}
    )
    source.meta = dict(node.all_input_nodes[0].meta)
    return _new(graph, node, aten.view.default, source, sizes)


def _to(graph: Graph, node: Node) -> Node:
    source, dtype = node.all_input_nodes[0], node.meta["val"].dtype
    if source.meta["val"].dtype == dtype:
        return source
    return _new(graph, node, aten._to_copy.default, source, dtype=dtype)


def _flatten(graph: Graph, node: Node) -> Node | None:
    source = node.all_input_nodes[0]
    shape = source.meta["val"].shape
    if not shape:
        return None
    start, end = (_argument(node, name) % len(shape) for name in ("start_dim", "end_dim"))
    sizes = [_size(graph, source, axis) for axis in (*range(start), *range(end + 1, len(shape)))]
    merged = shape[start : end + 1]
    # numel() of open sizes is that of the example.
    is_fixed = all(isinstance(size, int) for size in merged)
    sizes.insert(start, math.prod(merged) if is_fixed else -1)
    return _view(graph, node, sizes)


def _size(graph: Graph, tensor: Node, axis: int) -> Node | int:
    """One size of a tensor; one that is open comes from where it was read before, if it was."""
    size: int | torch.SymInt = tensor.meta["val"].shape[axis]
    if isinstance(size, int):
        return size
    node: Node
    for node in graph.nodes:
        if node is tensor:
            break
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr == size.node.expr:
            return node
    read: Node = graph.call_function(aten.sym_size.int, (tensor, axis))
    read.meta = {**tensor.meta, "val": size}
    return read


def _chunk(graph: Graph, node: Node) -> Node | None:
    source, axis = node.all_input_nodes[0], _argument(node, "dim")
    size = source.meta["val"].shape[axis]
    if not isinstance(size, int):
        return None
    largest = -(-size // _argument(node, "chunks"))
    return _new(graph, node, aten.split.Tensor, source, largest, axis)


def _convolution(graph: Graph, node: Node) -> Node | None:
    """A convolution without padding, which the field calls valid."""
    if _argument(node, "padding") != "valid":
        return None
    names = ("input", "weight", "bias", "stride", "dilation", "groups")
    source, weight, bias, stride, dilation, groups = (_argument(node, name) for name in names)
    zeros = [0] * (weight.meta["val"].dim() - 2)
    stride, dilation = (s * len(zeros) if len(s) == 1 else s for s in (stride, dilation))
    given = (source, weight, bias, stride, zeros, dilation, False, zeros, groups)
    return _new(graph, node, aten.convolution.default, *given)


def _out_of_place(graph: Graph, node: Node) -> Node | None:
    """An op that writes to a tensor which nobody else reads: its result instead."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    written = node.args[0]
    if not isinstance(written, Node) or list(written.users) != [node]:
        return None
    source: Any = written.target
    name = target._schema.name.removeprefix("aten::")
    fresh = (
        isinstance(source, torch._ops.OpOverload)
        and not any(result.alias_info for result in source._schema.returns)
        and written.op == "call_function"
    )
    other = getattr(aten, name.removesuffix("_"), None)
    if not fresh or not name.endswith("_") or other is None:
        return None
    same = getattr(other, target._overloadname, None)
    return None if same is None else _new(graph, node, same, *node.args, **node.kwargs)


REWRITES: Mapping[Any, Rewrite] = {
    aten.reshape.default: _reshape,
    aten.contiguous.default: _contiguous,
    aten.to.dtype: _to,
    aten.flatten.using_ints: _flatten,
    aten.chunk.default: _chunk,
    aten.conv2d.padding: _convolution,
}

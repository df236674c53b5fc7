"""Let the caller of a decoder's last graph say of how many rows it gives logits."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from avl_plugins.graph_io import LOGITS, LOGITS_FROM

LAST = [-1]


def open_answers(graph: ir.Graph) -> None:
    """Make where logits begin an input, whose default is the last row.

    An input with a default costs a step nothing and need not be given. Compilers of engines take
    the default for a constant.

    Raises:
        RuntimeError: the graph does not slice its last row.
    """
    logits = next((value for value in graph.outputs if value.name == LOGITS), None)
    if logits is None:
        return
    slices = [node for node in _before(logits) if node.op_type == "Slice" and _is_last(node)]
    if len(slices) != 1:
        raise RuntimeError(f"expected one node that takes the last row, found {len(slices)}")
    tensor = ir.tensor(LAST, dtype=ir.DataType.INT64, name=LOGITS_FROM)
    start = ir.Value(
        name=LOGITS_FROM,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape([1]),
        const_value=tensor,
    )
    graph.inputs.append(start)
    graph.initializers[LOGITS_FROM] = start
    (before,) = slices[0].inputs[1:2]
    slices[0].replace_input_with(1, start)
    if before is not None and before.name is not None and not before.uses():
        graph.initializers.pop(before.name, None)


def _before(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that a value depends on, up to the first that has a choice of rows."""
    waiting, seen = [value], set[ir.Node]()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node.op_type != "Slice":
            waiting.extend(given for given in node.inputs if given is not None)


def _is_last(node: ir.Node) -> bool:
    """Whether a Slice takes what is last along an axis."""
    start = node.inputs[1]
    tensor = None if start is None else start.const_value
    return tensor is not None and tensor.size == 1 and tensor.numpy().tolist() == LAST

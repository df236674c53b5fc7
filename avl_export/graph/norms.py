"""One node for a residual and the norm of it, for runtimes that have a kernel for it."""

from __future__ import annotations

import onnx_ir as ir

from avl_plugins.bodies.linear_ops import LINEARS
from avl_plugins.bodies.norms_body import add_rms_norm_function
from avl_plugins.schema import ADD_RMS_NORM, DOMAIN, QUANTIZED_EXPERTS, SPARSE_EXPERTS, VERSION

_PARTS = frozenset(op.name for op in (*LINEARS, SPARSE_EXPERTS, *QUANTIZED_EXPERTS.values()))


def join_norms(model: ir.Model) -> None:
    """Put AddRMSNorm where a decoder's graph adds what a part gives to its rows, and norms the sum.

    Only of rows that linears or experts of ours give, in float32, scaled or normed or as they are.
    Other sums and norms stay.
    """
    graph = model.graph
    joined = [_join(graph, node) for node in list(graph) if node.op_type == "RMSNormalization"]
    if any(joined):
        graph.sort()  # a weight in 16 bits may be cast behind the sum
        body = ir.serde.deserialize_function(add_rms_norm_function(model.opset_imports[""]))
        model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = VERSION


def _join(graph: ir.Graph, norm: ir.Node) -> bool:
    """Whether a norm and the sum before it are one node now."""
    total, weight = norm.inputs[:2]
    add = None if total is None else total.producer()
    if add is None or add.op_type != "Add" or not _is_of_last_axis(norm):
        return False
    a, b = add.inputs
    if a is None or b is None or not _are_rows(a, b):
        return False
    epsilon = norm.attributes.get("epsilon")
    attributes = {"epsilon": 1e-5 if epsilon is None else epsilon.as_float()}
    node = ir.node(ADD_RMS_NORM.name, [a, b, weight], attributes, domain=DOMAIN, num_outputs=2)
    graph.insert_before(add, node)
    for before, made in zip((add, norm), node.outputs, strict=True):
        (old,) = before.outputs
        made.name, made.type, made.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove([norm, add], safe=True)
    return True


def _is_of_last_axis(norm: ir.Node) -> bool:
    weight = _stored(norm.inputs[1])
    axis = norm.attributes.get("axis")
    return (
        weight is not None
        and weight.shape is not None
        and len(weight.shape) == 1
        and (axis is None or axis.as_int() == -1)
    )


def _stored(weight: ir.Value | None) -> ir.Value | None:
    """The initializer that a norm's weight is, or is cast from."""
    maker = None if weight is None else weight.producer()
    if maker is not None and maker.op_type == "Cast":
        weight = maker.inputs[0]
    return weight if weight is not None and weight.is_initializer() else None


def _are_rows(a: ir.Value, b: ir.Value) -> bool:
    """Whether two are rows of a decoder: a part gives one, and the other is no constant."""
    if a.is_initializer() or b.is_initializer():
        return False
    return _is_of_part(a) or _is_of_part(b)


def _is_of_part(rows: ir.Value | None) -> bool:
    """Whether a linear or experts of ours give rows, which may be scaled or normed behind them."""
    maker = None if rows is None else rows.producer()
    if maker is None:
        return False
    if maker.domain == DOMAIN:
        return maker.op_type in _PARTS
    behind = maker.op_type in ("RMSNormalization", "Mul")
    return behind and any(map(_is_of_part, maker.inputs))

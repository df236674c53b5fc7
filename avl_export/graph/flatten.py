"""Keep a decoder's hidden states as rows [batch * seq, C] between attentions.

Gemm wants matrices while transformers' layers pass [batch, seq, C], so a traced layer reshapes
around every linear. At one token a step such small nodes cost as much as the arithmetic of a small
model: this halves the nodes of a layer.
"""

from __future__ import annotations

import onnx_ir as ir

from avl_export.graph.experts import is_experts

ROWWISE = frozenset({"Add", "Mul", "Sub", "Sigmoid", "Tanh", "Gelu", "Relu", "Erf"})
NORMS = frozenset({"RMSNormalization", "LayerNormalization"})


class _Flattener:
    """`rows` maps a [batch, seq, N] value to the same numbers as [batch * seq, N], and N.

    `given` are those of them that the graph is given, and so has as [batch, seq, N] too.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.hidden = graph.inputs[0]
        self.rows: dict[ir.Value, tuple[ir.Value, int]] = {}
        self.given = {self.hidden}
        self.linear: set[ir.Value] = set()
        self.lead: ir.Value | None = None

    def run(self) -> None:
        width = self.hidden.shape[-1] if self.hidden.shape is not None else None
        if not isinstance(width, int):
            raise RuntimeError("a decoder graph whose hidden size is not static")
        nodes = list(self.graph)
        lead = ir.node("Shape", [self.hidden], {"start": 0, "end": -1})
        self.graph.insert_before(nodes[0], lead)
        self.lead = lead.outputs[0]
        self._flatten(self.hidden, width, nodes[0])
        for node in nodes:
            self._visit(node)
        self._outputs()

    def _flatten(self, value: ir.Value, width: int, before: ir.Node) -> None:
        """Have the rows of a graph's input, from a node on."""
        target = self._constant("rows.hidden.shape", [-1, width])
        start = ir.node("Reshape", [value, target])
        self.graph.insert_before(before, start)
        self._type_like(start.outputs[0], value)
        self.rows[value] = (start.outputs[0], width)

    def _flatten_added(self, node: ir.Node) -> None:
        """Have the rows of what is added to known ones and given as hidden states are: features."""
        if node.op_type != "Add" or not any(value in self.rows for value in node.inputs):
            return
        for value in node.inputs:
            if value is None or value in self.rows or value not in self.graph.inputs:
                continue
            if value.shape == self.hidden.shape:
                self._flatten(value, self.rows[self.hidden][1], node)
                self.given.add(value)

    def _visit(self, node: ir.Node) -> None:
        source = node.inputs[0] if node.inputs else None
        if node.domain != "" or source is None:
            return
        self._flatten_added(node)
        if node.op_type == "Reshape":
            self._reshape(node)
        elif node.op_type == "Shape" and source in self.rows and source not in self.given:
            end = node.attributes.get("end")
            if end is not None and end.as_int() == -1:
                node.replace_input_with(0, self.hidden)
        elif self._is_rowwise(node):
            self._copy(node)
        else:
            for index, value in enumerate(node.inputs):
                if value in self.rows and value not in self.linear and value not in self.given:
                    node.replace_input_with(index, self._restore(value, node))

    def _reshape(self, node: ir.Node) -> None:
        source, target = node.inputs[0], node.inputs[1]
        if source is None or target is None:
            return
        sizes = _integers(target)
        allow_zero = node.attributes.get("allowzero")
        absolute = (allow_zero is not None and allow_zero.as_int() == 1) or (
            sizes is not None and 0 not in sizes
        )
        if absolute and source in self.rows:
            flat, width = self.rows[source]
            if sizes == [-1, width]:
                node.outputs[0].replace_all_uses_with(flat)
            else:
                node.replace_input_with(0, flat)
        elif absolute and (before := source.producer()) is not None and before.op_type == "Reshape":
            node.replace_input_with(0, before.inputs[0])
        elif is_experts(source.producer()) and (whole := _width(node.outputs[0])) is not None:
            self.rows[node.outputs[0]] = (source, whole)
            self.linear.add(node.outputs[0])
        elif (linear_width := self._linear_width(source, target)) is not None:
            self.rows[node.outputs[0]] = (source, linear_width)
            self.linear.add(node.outputs[0])

    def _linear_width(self, source: ir.Value, target: ir.Value) -> int | None:
        """N if `target` is (batch, seq, N) and `source` a Gemm's output."""
        gemm, concat = source.producer(), target.producer()
        if gemm is None or concat is None or (gemm.op_type, concat.op_type) != ("Gemm", "Concat"):
            return None
        lead, last = concat.inputs[0], concat.inputs[-1]
        shape = lead.producer() if lead is not None else None
        if shape is None or shape.op_type != "Shape" or shape.inputs[0] not in self.rows:
            return None
        sizes = _integers(last) if last is not None and len(concat.inputs) == 2 else None
        return sizes[0] if sizes is not None and len(sizes) == 1 else None

    def _is_rowwise(self, node: ir.Node) -> bool:
        if node.op_type in NORMS:
            axis = node.attributes.get("axis")
            return node.inputs[0] in self.rows and (axis is None or axis.as_int() == -1)
        return (
            node.op_type in ROWWISE
            and any(value in self.rows for value in node.inputs)
            and all(value in self.rows or _is_scalar(value) for value in node.inputs)
        )

    def _copy(self, node: ir.Node) -> None:
        inputs = [self.rows[v][0] if v in self.rows else v for v in node.inputs]
        width = next(self.rows[v][1] for v in node.inputs if v in self.rows)
        copy = ir.Node("", node.op_type, inputs, node.attributes.values(), num_outputs=1)
        self.graph.insert_after(node, copy)
        self._type_like(copy.outputs[0], node.outputs[0])
        self.rows[node.outputs[0]] = (copy.outputs[0], width)

    def _restore(self, value: ir.Value | None, before: ir.Node | None) -> ir.Value:
        """[batch, seq, N] again, for a node that needs it (None: at the graph's end)."""
        if value is None or self.lead is None:
            raise RuntimeError("nothing to restore")
        flat, width = self.rows[value]
        last = self._constant(f"rows.width.{width}", [width])
        shape = ir.node("Concat", [self.lead, last], {"axis": 0})
        restored = ir.node("Reshape", [flat, shape.outputs[0]])
        if before is None:
            self.graph.extend([shape, restored])
        else:
            self.graph.insert_before(before, [shape, restored])
        self._type_like(restored.outputs[0], value)
        return restored.outputs[0]

    def _outputs(self) -> None:
        """The segment's output keeps its shape; tapped states are given out as rows."""
        for index, value in enumerate(self.graph.outputs):
            if value not in self.rows or value in self.given:
                continue
            if index == 0:
                found = self._restore(value, None)
                found.shape = value.shape
            else:
                found = self.rows[value][0]
            found.name, value.name = value.name, None
            self.graph.outputs[index] = found

    def _constant(self, name: str, values: list[int]) -> ir.Value:
        found = self.graph.initializers.get(name)
        if found is None:
            tensor = ir.tensor(values, dtype=ir.DataType.INT64, name=name)
            found = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype))
            found.shape = ir.Shape([len(values)])
            self.graph.initializers[name] = found
        return found

    def _type_like(self, value: ir.Value, like: ir.Value) -> None:
        value.type = like.type


def flatten_rows(graph: ir.Graph) -> None:
    """Rewrite a decoder segment in place; `graph.inputs[0]` is its hidden state [B, S, C]."""
    _Flattener(graph).run()


def _integers(value: ir.Value) -> list[int] | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > 8:
        return None
    return [int(n) for n in tensor.numpy().reshape(-1)]


def _width(value: ir.Value) -> int | None:
    """N of [batch, seq, N]."""
    shape = value.shape
    width = shape[-1] if shape is not None and len(shape) == 3 else None
    return width if isinstance(width, int) else None


def _is_scalar(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and not isinstance(tensor, ir.ExternalTensor) and tensor.size == 1

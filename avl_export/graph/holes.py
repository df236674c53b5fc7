"""Fill the holes that `replicate` left in a traced graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from torch import nn

from avl_export.families.replicate import DOMAIN, Calls


def fill(model: ir.Model, calls: Calls, root: nn.Module, own: Mapping[int, str]) -> None:
    """Replace every hole by a copy of the nodes of the call it is like, and drop all marks.

    Args:
        root: the traced module, whose parameters' names the graph's initializers have.
        own: id of a layer -> ending of the names of graph inputs and outputs that belong to it
            alone. Those of a layer that was traced are copied for the ones that are alike.
    """
    graph = model.graph
    _sizes_from_first_inputs(graph)
    prefixes = {id(module): f"{name}." for name, module in root.named_modules()}
    marks = {
        (node.op_type, node.attributes["call"].as_int()): node
        for node in graph
        if node.domain == DOMAIN
    }
    bodies: dict[int, _Body] = {}
    for (kind, number), hole in marks.items():
        if kind != "Hole":
            continue
        template = hole.attributes["like_call"].as_int()
        if template not in bodies:
            enter, leave = marks["Enter", template], marks["Leave", template]
            layer, owned = id(calls.layers[template]), marks.get(("Own", template))
            names = prefixes[layer], own.get(layer, "")
            bodies[template] = _Body(graph, enter, owned, leave, names)
        layer = id(calls.layers[number])
        bodies[template].copy_to(hole, prefixes[layer], own.get(layer, ""))
    for (kind, _), node in marks.items():
        if kind != "Hole":
            _replace(graph, node.outputs[0], _given(node))
    graph.remove(list(marks.values()), safe=True)
    model.opset_imports.pop(DOMAIN, None)


def _sizes_from_first_inputs(graph: ir.Graph) -> None:
    """Read each size that inputs share from the first of them.

    A trace takes it from any, also from one that belongs to a single layer.
    """
    first: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                first.setdefault(str(size), (value, axis))
    for node in graph:
        source = node.inputs[0] if node.op_type == "Shape" else None
        start, end = node.attributes.get("start"), node.attributes.get("end")
        if source is None or source.shape is None or not source.is_graph_input():
            continue
        if start is None or end is None or end.as_int() != start.as_int() + 1:
            continue
        found = first.get(str(source.shape[start.as_int()]))
        if found is not None:
            value, axis = found
            node.replace_input_with(0, value)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)


class _Body:
    """The nodes between the marks of a call that depend on its input or on what is its own.

    Everything else between them is the same for each layer and stays where it is.
    """

    def __init__(
        self,
        graph: ir.Graph,
        enter: ir.Node,
        owned: ir.Node | None,
        leave: ir.Node,
        names: tuple[str, str],
    ) -> None:
        self.graph = graph
        self.prefix, self.ending = names
        entries = [enter] if owned is None else [enter, owned]
        self.inputs, self.result = [node.outputs[0] for node in entries], _given(leave)
        own = {value for value in (*graph.inputs, *graph.initializers.values()) if self._own(value)}
        variant = {*self.inputs, *own}
        self.nodes: list[ir.Node] = []
        inside = False
        for node in graph:
            inside = inside or node is enter
            if node is leave:
                break
            if node not in entries and not variant.isdisjoint(node.inputs):
                if not inside:
                    raise RuntimeError(f"{node.name}: belongs to one layer, but lies before it")
                self.nodes.append(node)
                variant.update(node.outputs)
        self.outputs = [value for value in graph.outputs if value in variant and self._ends(value)]

    def _own(self, value: ir.Value) -> bool:
        if value.is_initializer():
            return str(value.name).startswith(self.prefix)
        return self._ends(value)

    def _ends(self, value: ir.Value) -> bool:
        return self.ending != "" and str(value.name).endswith(self.ending)

    def copy_to(self, hole: ir.Node, prefix: str, ending: str) -> None:
        """Put a copy in the place of `hole`, with the layer's own parameters, inputs, outputs."""
        values: dict[ir.Value, ir.Value] = {
            value: _given(hole, number) for number, value in enumerate(self.inputs)
        }
        for node in self.nodes:
            for value in node.inputs:
                if value is not None and value not in values and self._is_own(value):
                    values[value] = self._twin(value, prefix, ending)
            twin = ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else values.get(value, value) for value in node.inputs],
                node.attributes.values(),
                overload=node.overload,
                num_outputs=len(node.outputs),
                version=node.version,
            )
            for old, new in zip(node.outputs, twin.outputs, strict=True):
                new.type, new.shape = old.type, old.shape
                values[old] = new
            self.graph.insert_before(hole, twin)
        for output in self.outputs:
            values[output].name = str(output.name).removesuffix(self.ending) + ending
            self.graph.outputs.append(values[output])
        _replace(self.graph, hole.outputs[0], values[self.result])

    def _is_own(self, value: ir.Value) -> bool:
        return (value.is_initializer() or value.is_graph_input()) and self._own(value)

    def _twin(self, value: ir.Value, prefix: str, ending: str) -> ir.Value:
        """The initializer or graph input of another layer, made if it is not there yet."""
        if value.is_initializer():
            name = prefix + str(value.name).removeprefix(self.prefix)
            known = self.graph.initializers.get(name)
        else:
            name = str(value.name).removesuffix(self.ending) + ending
            known = next((v for v in self.graph.inputs if v.name == name), None)
        if known is not None:
            return known
        twin = ir.Value(name=name, shape=value.shape, type=value.type)
        if value.is_initializer():
            twin.const_value = value.const_value
            self.graph.initializers[name] = twin
        else:
            self.graph.inputs.append(twin)
        return twin


def _given(mark: ir.Node, number: int = 0) -> ir.Value:
    value = mark.inputs[number]
    if value is None:
        raise RuntimeError("a mark without an input")
    return value


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand wherever `old` does, also among the graph's outputs, under its name."""
    for index, value in enumerate(graph.outputs):
        if value is old:
            name, old.name = old.name, None
            new.name = name
            graph.outputs[index] = new
    old.replace_all_uses_with(new)

"""The ONNX schemas of ops that are traced, so that checker and shape inference know them."""

from __future__ import annotations

from onnx import defs

from avl_plugins.schema import (
    BLOCK_CACHE_ATTENTION,
    FLOATS,
    PLUGIN_ATTRIBUTES,
    SPARSE_EXPERTS,
    SPLIT_CACHE_ATTENTION,
    STATE_OPS,
    WINDOW_CACHE_ATTENTION,
    Attribute,
    Op,
    Value,
)

_ATTRIBUTE_TYPES = {
    "float": defs.OpSchema.AttrType.FLOAT,
    "int": defs.OpSchema.AttrType.INT,
    "string": defs.OpSchema.AttrType.STRING,
}
_KINDS = {"T": "model type", "stored": "a checkpoint's"}  # of floating-point numbers
_ONNX_FLOATS = {"float32": "tensor(float)", "float16": "tensor(float16)"}


def onnx_schema(op: Op) -> defs.OpSchema:
    """The schema of `op`; every input and output is one required tensor."""
    kinds = [_ONNX_FLOATS.get(name, f"tensor({name})") for name in FLOATS]
    used = {value.dtype for value in (*op.inputs, *op.outputs)}
    return defs.OpSchema(
        op.name,
        op.domain,
        op.version,
        doc=op.doc,
        inputs=[_parameter(value) for value in op.inputs],
        outputs=[_parameter(value) for value in op.outputs],
        type_constraints=[(name, kinds, doc) for name, doc in _KINDS.items() if name in used],
        attributes=[_attribute(attribute) for attribute in op.attributes]
        + [_plugin_attribute(name, value) for name, value in PLUGIN_ATTRIBUTES.items()],
    )


def register() -> None:
    """Register the schemas with onnx; calling it again changes nothing."""
    attention = SPLIT_CACHE_ATTENTION, BLOCK_CACHE_ATTENTION, WINDOW_CACHE_ATTENTION
    for op in (*attention, *STATE_OPS, SPARSE_EXPERTS):
        if not defs.has(op.name, op.domain):
            defs.register_schema(onnx_schema(op))


def _parameter(value: Value) -> defs.OpSchema.FormalParameter:
    kinds = {"T": "T", "stored": "stored", "int64": "tensor(int64)", "float32": "tensor(float)"}
    return defs.OpSchema.FormalParameter(
        value.name, kinds[value.dtype], f"[{', '.join(value.shape)}] {value.doc}"
    )


def _attribute(attribute: Attribute) -> defs.OpSchema.Attribute:
    return defs.OpSchema.Attribute(
        attribute.name, _ATTRIBUTE_TYPES[attribute.kind], attribute.doc, required=True
    )


def _plugin_attribute(name: str, value: str | int) -> defs.OpSchema.Attribute:
    kind = _ATTRIBUTE_TYPES["string" if isinstance(value, str) else "int"]
    return defs.OpSchema.Attribute(name, kind, f"TensorRT plugin: {value!r}", required=False)

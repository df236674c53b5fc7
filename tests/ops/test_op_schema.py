"""One source for every form: schemas, functions and reference have the same signature."""

from __future__ import annotations

import inspect
import subprocess
import sys

import onnx
import pytest
from onnx import defs

from avl_plugins import onnx_schema, reference
from avl_plugins.bodies.function import (
    attention_node_attributes,
    split_cache_attention_functions,
)
from avl_plugins.schema import SPLIT_CACHE_ATTENTION, SPLIT_CACHE_PROMPT, SPLIT_CACHE_STEP, Op

ATTENTION, STEP, PROMPT = split_cache_attention_functions()
FORMS = [
    (SPLIT_CACHE_ATTENTION, ATTENTION, reference.split_cache_attention),
    (SPLIT_CACHE_STEP, STEP, reference.split_cache_attention),
    (SPLIT_CACHE_PROMPT, PROMPT, reference.split_cache_attention),
]


@pytest.mark.parametrize(("op", "body", "naive"), FORMS)
def test_forms_have_the_schema_signature(op: Op, body: onnx.FunctionProto, naive: object) -> None:
    inputs = [value.name for value in op.inputs]
    attributes = [attribute.name for attribute in op.attributes]
    assert (body.domain, body.name) == (op.domain, op.name)
    assert list(body.input) == inputs
    assert list(body.output) == [value.name for value in op.outputs]
    assert list(body.attribute) == attributes
    assert list(inspect.signature(naive).parameters) == inputs + attributes


def test_registering_twice_is_harmless() -> None:
    onnx_schema.register()
    onnx_schema.register()
    op = SPLIT_CACHE_ATTENTION
    schema = defs.get_schema(op.name, domain=op.domain)
    assert schema.since_version == op.version
    assert [value.name for value in schema.inputs] == [value.name for value in op.inputs]
    required = [name for name, value in schema.attributes.items() if value.required]
    assert required == [attribute.name for attribute in op.attributes]


def test_a_node_names_its_plugin() -> None:
    assert attention_node_attributes(0.125) == {
        "scale": 0.125,
        "plugin_namespace": "avl",
        "plugin_version": "1",
        "aot": 1,
    }


def test_schema_reference_and_policies_need_numpy_only() -> None:
    blocked = ("onnx", "onnxruntime", "torch", "transformers", "triton", "tensorrt")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
        "import avl_plugins.policies, avl_plugins.reference, avl_plugins.schema"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

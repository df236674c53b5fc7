"""Attention over a cache that is given more than what it is made from."""

from __future__ import annotations

import dataclasses

from avl_plugins.schema.ops import Attribute, Op, Value


def extended(
    op: Op, kind: str, doc: str, inputs: tuple[Value, ...], attributes: tuple[Attribute, ...] = ()
) -> Op:
    """`op` with further inputs, named by its `kind` and what it is made from."""
    return dataclasses.replace(
        op,
        name=f"{kind}{op.name.removeprefix('Split')}",
        doc=doc,
        inputs=(*op.inputs, *inputs),
        attributes=(*op.attributes, *attributes),
    )

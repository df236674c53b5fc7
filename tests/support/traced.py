"""Graphs of a checkpoint, traced once for all exports of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from avl_export import export as exporting
from avl_export.families.base import EncoderGraph, Family
from avl_export.graph.trace import Traced


@contextlib.contextmanager
def traced_once(graphs: dict[Any, Traced]) -> Iterator[None]:
    """An export takes graphs that were traced of its checkpoint before, and leaves its own.

    Tracing takes most of an export's time here, and knows nothing of weights: its arguments are a
    model on the meta device and the layers or outputs, which with its dtype are the key.
    """

    def once(trace: Callable[..., Traced]) -> Callable[..., Traced]:
        def traced(family: Family, *what: Any) -> Traced:
            part = [
                (one.file, *one.outputs) if isinstance(one, EncoderGraph) else one for one in what
            ]
            key = (trace.__name__, next(family.model.parameters()).dtype, *part)
            if key not in graphs:
                graphs[key] = trace(family, *what)
            return replace(graphs[key], model=graphs[key].model.clone())

        return traced

    with pytest.MonkeyPatch.context() as patch:
        for name in ("trace_encoder", "trace_segment"):
            patch.setattr(exporting, name, once(getattr(exporting, name)))
        yield

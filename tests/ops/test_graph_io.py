"""What graphs read and write is what `avl_plugins.graph_io` says, and it alone spells it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avl_plugins import graph_io
from avl_plugins.graph_io import ACTIVE, FULL, MADE, PARKED, LayerKind, Segment, Value
from avl_plugins.schema import INT8_INT4
from avl_runtime.package.dims import Dims
from ops.declared import check_graphs

ROOT = Path(__file__).parents[2]
DIMS = Dims(
    hidden_size=24,
    intermediate_size=48,
    num_layers=4,
    num_heads=6,
    num_kv_heads=3,
    head_dim=4,
    vocab_size=50,
    max_positions=9,
    position_axes=1,
)


def shown(values: Iterable[Value]) -> list[str]:
    return [f"{v.name} {v.dtype} {' '.join(map(str, v.shape))}" for v in values]


def test_a_segment_in_full() -> None:
    segment = Segment(DIMS, 1, 3, deepstack=(2,), ends=False)
    assert shown(segment.inputs()) == [
        "hidden T batch seq 24",
        "position_ids int64 batch seq",
        "row_weights float32 batch weightings seq",
        "k_active.1 T batch 3 active_1 4",
        "v_active.1 T batch 3 active_1 4",
        "active_len.1 int64 batch",
        "k_parked.1 T batch 3 parked_1 4",
        "v_parked.1 T batch 3 parked_1 4",
        "parked_len.1 int64 batch",
        "k_active.2 T batch 3 active_2 4",
        "v_active.2 T batch 3 active_2 4",
        "active_len.2 int64 batch",
        "k_parked.2 T batch 3 parked_2 4",
        "v_parked.2 T batch 3 parked_2 4",
        "parked_len.2 int64 batch",
        "deepstack.2 T batch seq 24",
    ]
    assert shown(segment.outputs([2])) == [
        "hidden_out T batch seq 24",
        "k_new.2 T batch 3 seq 4",
        "v_new.2 T batch 3 seq 4",
        "mass_active.2 float32 batch 3 weightings active_2",
        "mass_parked.2 float32 batch 3 weightings parked_2",
        "mass_new.2 float32 batch 3 weightings seq",
    ]
    assert shown(segment.taps()) == ["layer_out.1 T batch seq 24"]


def test_a_layer_has_the_tensors_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another kind is an entry in the table: names, order and shapes of all graphs follow it."""
    keys_alone = LayerKind("keys", (ACTIVE.keys, ACTIVE.length), (MADE.keys,))
    monkeypatch.setitem(graph_io.LAYER_KINDS, "keys", keys_alone)
    segment = Segment(DIMS, 1, 3, (), ends=True, kinds=("full", "keys"))
    assert [segment.kind(layer) for layer in segment.layers] == [FULL, keys_alone]
    assert shown(segment.inputs([2]))[3:] == [
        "k_active.2 T batch 3 active_2 4",
        "active_len.2 int64 batch",
    ]
    assert shown(segment.outputs([2]))[1:] == ["k_new.2 T batch 3 seq 4"]
    usual = Segment(DIMS, 1, 3, (), ends=True)
    assert segment.inputs([1]) == usual.inputs([1])
    assert segment.outputs([1]) == usual.outputs([1])
    assert Segment(DIMS, 1, 3, (), True, ("full", "full")).inputs() == usual.inputs()


def test_the_last_segment_gives_logits_of_the_last_row() -> None:
    segment = Segment(DIMS, 3, 4, deepstack=(), ends=True)
    assert shown(segment.outputs([])) == ["logits T batch logit_rows 50"]
    assert shown(segment.defaulted()) == ["logits_from int64 1"]
    assert Segment(DIMS, 2, 3, deepstack=(), ends=False).defaulted() == ()
    assert segment.result == "logits"
    assert shown(segment.taps()) == ["layer_out.3 T batch seq 24"]


def test_positions_have_axes_for_m_rope() -> None:
    dims = Dims(24, 48, 4, 6, 3, 4, 50, 9, position_axes=3)
    assert shown(Segment(dims, 0, 4, (), True).inputs([]))[1] == "position_ids int64 3 batch seq"
    assert graph_io.positions(np.zeros((3, 5))).shape == (3, 1, 5)
    assert graph_io.positions(np.zeros((1, 5))).shape == (1, 5)


def test_heads_of_layers_have_sizes_of_their_own() -> None:
    dims = replace(DIMS, head_dim=8, head_dims=(4, 8, 4, 8))
    segment = Segment(dims, 1, 3, (), False, kept=INT8_INT4)
    found = {value.name: value.shape for value in (*segment.inputs(), *segment.outputs())}
    assert [found[f"k_active.{layer}"][-1] for layer in (1, 2)] == [8, 4]
    assert [found[f"v_parked.{layer}"][-1] for layer in (1, 2)] == [4, 2]
    assert [found[f"k_new.{layer}"][-1] for layer in (1, 2)] == [8, 4]


def test_sizes_come_from_the_inputs_and_shape_the_outputs() -> None:
    segment = Segment(DIMS, 0, 2, deepstack=(), ends=False)
    given = {"batch": 2, "seq": 5, "weightings": 1, "active_0": 7, "active_1": 8, "parked": 6}
    shapes = {value.name: value.sized(given) for value in segment.inputs()}
    assert shapes["v_active.1"] == (2, 3, 8, 4)
    assert shapes["k_parked.0"] == (2, 3, 6, 4)
    sizes = segment.sizes(shapes)
    assert sizes == {
        **{"batch": 2, "seq": 5, "weightings": 1},
        **{"active_0": 7, "active_1": 8, "parked_0": 6, "parked_1": 6},
    }
    found = {value.name: value.sized(sizes) for value in segment.outputs()}
    assert found["mass_active.1"] == (2, 3, 1, 8)
    assert found["hidden_out"] == (2, 5, 24)
    with pytest.raises(KeyError):
        segment.outputs()[0].sized({"batch": 1})


def test_names_are_taken_apart() -> None:
    assert graph_io.named("k_active", 12) == "k_active.12"
    assert (graph_io.kind_of("k_active.12"), graph_io.layer_of("k_active.12")) == ("k_active", 12)
    with pytest.raises(ValueError, match="invalid literal"):
        graph_io.layer_of("hidden")
    assert all(map(graph_io.is_cached_rows, ("v_parked.3", "active_standing.3")))
    assert not any(map(graph_io.is_cached_rows, ("k_new.3", "active_len.3", "row_standing")))
    assert [graph_io.shared(n) for n in (ACTIVE.rows(3), PARKED.rows(11), "batch")] == [
        "active",
        "parked",
        "batch",
    ]
    assert graph_io.blocks("active") == "active_blocks"


def test_the_graphs_of_avl_tiny(tiny_package: Path) -> None:
    check_graphs(tiny_package)


# Names that mean nothing else: a module that spells one does not ask.
SPELT = {
    *(
        f"{kind}."
        for kind in (*graph_io.CACHE, *graph_io.RESULTS, graph_io.DEEPSTACK, graph_io.TAP)
    ),
    *(graph_io.STATE, graph_io.WEIGHTS, graph_io.FEATURES, graph_io.DEEPSTACK_FEATURES),
    *(f"{place.name}_" for place in graph_io.CACHED),
}
SAY = ("plugins/avl_plugins/graph_io/", "plugins/avl_plugins/schema/")


def spelt(source: str) -> set[str]:
    """Which of those names stand in a module's strings, its docstrings aside."""
    tree = ast.parse(source)
    own = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    strings = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in own
    )
    return SPELT & set(strings)


def test_names_are_spelt_once() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for folder in ("avl_export", "runtime", "plugins")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (names := spelt(path.read_text()))
    }
    assert all(path.startswith(SAY) for path in found), found


def test_a_name_that_is_spelt_is_found() -> None:
    assert spelt('feeds[f"k_active.{layer}"] = out["hidden_out"]') == {"k_active.", "hidden_out"}
    assert spelt('"""`hidden_out`"""\n') == set()

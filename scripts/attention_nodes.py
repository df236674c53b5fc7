"""Attention nodes of shape S1 of make_random.py, and caches as policies leave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from avl_plugins import cpu
from avl_plugins.bodies.function import attention_node_attributes, split_cache_attention_functions
from avl_plugins.policies import Divide, Refresh, parse
from avl_plugins.schema import COMPUTED, SPLIT_CACHE_ATTENTION
from avl_runtime.execute.host.compute import ATTENTION
from avl_runtime.kv.cache import SegmentCache

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 8, 16, 16, 64
VISUAL, TEXT = 2880, 128  # at a reply's begin
_OP = SPLIT_CACHE_ATTENTION


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy's cache: image rows that are active and parked, and steps from refresh to refresh.

    Attributes:
        bytes_say: its rows read a token over dense attention's.
    """

    core: int
    parked: int = 0
    every: int = 1

    @property
    def bytes_say(self) -> float:
        read = self.core + TEXT + self.parked / self.every
        return read / (VISUAL + TEXT)


def candidate(policy: str) -> Candidate:
    """The cache that `policy` leaves."""
    actions = parse(policy).actions()
    divide = next((one for one in actions if isinstance(one, Divide)), None)
    refresh = next((one for one in actions if isinstance(one, Refresh)), None)
    if divide is None or refresh is None:
        return Candidate(VISUAL)
    core, kept = round(divide.core * VISUAL), round(divide.keep * VISUAL)
    return Candidate(core, kept - core, refresh.every)


CANDIDATES = {name: candidate(name) for name in ("dense", "avl", "avl:core=0.1,refresh=8")}


def attention_session(
    threads: int, batch: int, kernels: bool, *, one_row: bool = True, compute: str = "fp32"
) -> ort.InferenceSession:
    """The attention nodes of all layers, each with a cache of its own.

    Args:
        compute: what kernels multiply a prompt's rows in: fp32, or bf16 where there is AMX.
    """
    sizes = {"B": batch, "H": HEADS, "Hkv": KV_HEADS, "D": HEAD_DIM}
    sizes |= {"S": 1} if one_row else {}
    elements = {"T": TensorProto.FLOAT, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    shared = {"q", "k_new", "v_new", "row_weights", "parked_len", "active_len"}
    given: dict[str, Any] = {}
    made, nodes = [], []
    for layer in range(LAYERS):
        names = [v.name if v.name in shared else f"{v.name}.{layer}" for v in _OP.inputs]
        outputs = [f"{v.name}.{layer}" for v in _OP.outputs]
        for values, named, into in ((_OP.inputs, names, given), (_OP.outputs, outputs, None)):
            for value, name in zip(values, named, strict=True):
                shape = [sizes.get(dim, f"{dim}") for dim in value.shape]
                info = helper.make_tensor_value_info(name, elements[value.dtype], shape)
                if into is None:
                    made.append(info)
                else:
                    into[name] = info
        attributes: dict[str, Any] = attention_node_attributes(HEAD_DIM**-0.5)
        nodes.append(helper.make_node(_OP.name, names, outputs, domain=_OP.domain, **attributes))
    model = helper.make_model(
        helper.make_graph(nodes, "attention", list(given.values()), made),
        functions=split_cache_attention_functions(23, (HEADS, KV_HEADS)),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(_OP.domain, _OP.version)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(ATTENTION, compute)
    if kernels:
        options.register_custom_ops_library(str(cpu.library()))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def cache_of(candidate: Candidate, batch: int) -> SegmentCache:
    """Random rows as a policy leaves them in the middle of a reply."""
    numbers = np.random.default_rng(0)
    cache = SegmentCache(
        batch, KV_HEADS, [COMPUTED.planes(HEAD_DIM, np.dtype(np.float32))] * LAYERS
    )

    def rows(count: int) -> list[NDArray[np.float32]]:
        shape = (batch, KV_HEADS, count, HEAD_DIM)
        return [numbers.standard_normal(shape, np.float32) for _ in range(LAYERS)]

    active = candidate.core + TEXT
    cache.active = rows(active), rows(active)
    cache.positions = np.zeros((LAYERS, batch, KV_HEADS, active), np.int64) + np.arange(active)
    cache.active_len[:], cache.image_rows[:] = active, candidate.core
    if candidate.parked:
        cache.parked = rows(candidate.parked), rows(candidate.parked)
        cache.parked_positions = active + np.broadcast_to(
            np.arange(candidate.parked), (LAYERS, batch, candidate.parked)
        )
        cache.parked_len[:] = candidate.parked
    return cache


def bound(
    session: ort.InferenceSession, cache: SegmentCache, row: NDArray[np.float32], refresh: bool
) -> ort.IOBinding:
    """A step's inputs and outputs, bound to memory once, as the backend does it; `row` is q.

    Masses are made where they are read, at a refresh.
    """
    batch, weightings = cache.batch, 2 if refresh else 0
    nothing = [np.zeros((batch, KV_HEADS, 1, HEAD_DIM), np.float32)] * LAYERS
    arrays = {
        "q": row,
        "k_new": row[:, :KV_HEADS].copy(),
        "v_new": row[:, :KV_HEADS].copy(),
        "row_weights": np.ones((batch, weightings, 1), np.float32),
        "active_len": cache.active_len[0],
        "parked_len": cache.parked_len[0] if refresh else np.zeros(batch, np.int64),
    }
    per_layer = {
        "k_active": cache.k_active,
        "v_active": cache.v_active,
        "k_parked": cache.k_parked if refresh else nothing,
        "v_parked": cache.v_parked if refresh else nothing,
    }
    for name, layers in per_layer.items():
        arrays |= {f"{name}.{layer}": rows for layer, rows in enumerate(layers)}
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for layer in range(LAYERS):
        keys = {"active": cache.k_active[layer], "parked": per_layer["k_parked"][layer]}
        shapes = {
            f"mass_{kind}": (batch, KV_HEADS, weightings, k.shape[2]) for kind, k in keys.items()
        }
        shapes |= {"out": row.shape, "mass_new": (batch, KV_HEADS, weightings, 1)}
        for name, shape in shapes.items():
            array = np.empty(shape, np.float32)
            binding.bind_ortvalue_output(f"{name}.{layer}", ort.OrtValue.ortvalue_from_numpy(array))
    return binding

"""Run a package's graphs in ONNX Runtime with the simplest possible caches, for checks only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from avl_runtime.package.manifest import Segment
from avl_runtime.package.package import Package
from avl_runtime.vision import Media

Array = npt.NDArray[Any]
Caches = list[tuple[Array, Array]]  # per layer keys and values [1, Hkv, N, D]


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass through all segments gives.

    `logits` [V] belong to the last row; `layers` holds the tapped outputs [S, C] of the layers,
    empty without taps.
    """

    logits: Array
    keys: list[Array]
    values: list[Array]
    layers: dict[int, Array]

    def append_to(self, caches: Caches) -> Caches:
        """`caches` and the rows of this pass."""
        new = list(zip(self.keys, self.values, strict=True))
        if not caches:
            return new
        return [
            (np.concatenate([k, k_new], 2), np.concatenate([v, v_new], 2))
            for (k, v), (k_new, v_new) in zip(caches, new, strict=True)
        ]


class Sessions:
    """ONNX Runtime CPU sessions of a package; `taps` adds each layer's output to the graphs."""

    def __init__(self, package: Package, taps: bool = False) -> None:
        manifest = package.manifest
        self.dims = manifest.dims
        self.dtype = np.float16 if manifest.dtype == "fp16" else np.float32
        files = set(manifest.encoders.values())
        opened = {file: _session(package, file, ()) for file in files}
        self._encoders = {kind: opened[file] for kind, file in manifest.encoders.items()}
        self._segments: list[tuple[Segment, ort.InferenceSession]] = []
        for segment in manifest.segments:
            layers = range(segment.first_layer, segment.last_layer)
            tapped = tuple(f"layer_out.{i}" for i in layers) if taps else ()
            self._segments.append((segment, _session(package, segment.file, tapped)))

    def encode(self, media: Media) -> tuple[Array, Array]:
        """Features [tokens, C] of a picture or video and deepstack features [K, tokens, C]."""
        runs = []
        for inputs in media.runs():
            given = {
                name: array.astype(self.dtype) if array.dtype == np.float32 else array
                for name, array in inputs.items()
            }
            found = self._encoders[media.kind].run(None, given)
            runs.append([np.asarray(array, np.float32) for array in found])
        features = media.features(runs)
        return features.rows, features.deepstack

    def run(
        self, hidden: Array, positions: Array, deepstack: Array, caches: Caches, parked: int
    ) -> Pass:
        """One pass over rows; the first `parked` cached rows are given as parked ones.

        Args:
            hidden: [S, C].
            positions: [axes, S].
            deepstack: [K, S, C], added to what the K deepstack layers put out.
        """
        rows = len(hidden)
        feeds: dict[str, Array] = {
            "position_ids": positions[:, None] if len(positions) > 1 else positions,
            "row_weights": np.ones((1, 2, rows), np.float32),
        }
        layers_with = [layer for part, _ in self._segments for layer in part.deepstack]
        for layer, added in zip(layers_with, deepstack, strict=True):
            feeds[f"deepstack.{layer}"] = added[None].astype(self.dtype)
        state = hidden[None].astype(self.dtype)
        keys, values, layers = [], [], {}
        logits = state
        for segment, session in self._segments:
            feeds["hidden"] = state
            for i in range(segment.first_layer, segment.last_layer):
                feeds |= self._cache_feeds(i, caches, parked)
            names = [output.name for output in session.get_outputs()]
            taken = {value.name for value in session.get_inputs()}
            given = {name: array for name, array in feeds.items() if name in taken}
            out = dict(zip(names, map(np.asarray, session.run(names, given)), strict=True))
            for i in range(segment.first_layer, segment.last_layer):
                keys.append(out[f"k_new.{i}"])
                values.append(out[f"v_new.{i}"])
                if f"layer_out.{i}" in out:
                    layers[i] = out[f"layer_out.{i}"].astype(np.float32)
            if "logits" in out:
                logits = out["logits"]
            else:
                state = out["hidden_out"]
                layers[segment.last_layer - 1] = state[0].astype(np.float32)
        return Pass(logits[0, 0].astype(np.float32), keys, values, layers)

    def _cache_feeds(self, layer: int, caches: Caches, parked: int) -> dict[str, Array]:
        empty = np.zeros((1, self.dims.num_kv_heads, 1, self.dims.head_dim), self.dtype)
        keys, values = caches[layer] if caches else (empty[:, :, :0], empty[:, :, :0])
        feeds: dict[str, Array] = {}
        for place, rows in (("parked", slice(0, parked)), ("active", slice(parked, None))):
            k, v = keys[:, :, rows], values[:, :, rows]
            feeds[f"{place}_len.{layer}"] = np.array([k.shape[2]])
            feeds[f"k_{place}.{layer}"] = np.ascontiguousarray(k) if k.shape[2] else empty
            feeds[f"v_{place}.{layer}"] = np.ascontiguousarray(v) if v.shape[2] else empty
        return feeds


def session_options(package: Package) -> ort.SessionOptions:
    """Options under which graphs of `package` find their weights."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Quantized linears with float activations: what is checked is the graph, not a fast kernel.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(package.weights_folder)
    )
    return options


def _session(package: Package, file: str, taps: tuple[str, ...]) -> ort.InferenceSession:
    model = onnx.load(package.file(file), load_external_data=False)
    present = {name for node in model.graph.node for name in node.output}
    kind = model.graph.output[0].type.tensor_type.elem_type
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, kind, None) for name in taps if name in present
    )
    return ort.InferenceSession(
        model.SerializeToString(), session_options(package), providers=["CPUExecutionProvider"]
    )

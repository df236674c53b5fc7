"""ONNX Runtime on the CPU: works anywhere, and is the reference for the other backends.

Attention of a decode step and linears are kernels of ours where those were compiled
(`avl_plugins.cpu`) and rows are float32, and else their bodies of standard ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from avl_plugins import cpu
from avl_plugins.cpu.host import host
from avl_plugins.graph_io import (
    DEEPSTACK,
    HIDDEN,
    LOGITS_FROM,
    POSITIONS,
    WEIGHTS,
    named,
)
from avl_plugins.schema import COMPUTED, RowType
from avl_runtime.execute.host.compute import compute_entries, told
from avl_runtime.execute.host.ort_bound import OrtBoundSegment
from avl_runtime.execute.host.ort_options import has_room, session_config, tight_memory
from avl_runtime.execute.host.segments import NOTHING
from avl_runtime.execute.protocol import BackendError
from avl_runtime.kv.cache import Ints
from avl_runtime.machine.huge_pages import huge_pages
from avl_runtime.machine.resources import cores
from avl_runtime.package.graph_fit import check_media, check_segment
from avl_runtime.package.package import Package
from avl_runtime.vision import Kind

DTYPES: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
}


class OrtBackend:
    """A package's graphs as ONNX Runtime sessions on the CPU."""

    name = "ort-cpu"

    def __init__(
        self,
        package: Package,
        threads: int | None,
        kept: RowType = COMPUTED,
        compute: str = "auto",
    ) -> None:
        manifest = package.manifest
        if manifest.dtype not in DTYPES:
            raise BackendError(
                f"expected an fp32 or fp16 package on ort-cpu, found {manifest.dtype}, which "
                "ONNX Runtime's CPU does not run; export with --dtype fp32 or --quantize int4"
            )
        self.dtype = DTYPES[manifest.dtype]
        self.kept = kept
        self._graphs = [manifest.graph_of(segment, kept) for segment in manifest.segments]
        decoders = [segment.graph(kept) for segment in manifest.segments]
        self._threads = threads or cores()
        self._compute = compute_entries(compute, manifest)
        self._encoding = compute_entries(compute, manifest, "vision")
        with huge_pages(), tight_memory():
            files = set(manifest.encoders.values())
            opened = {file: self._session(package, file, encoder=True) for file in files}
            self._encoders = {kind: opened[file] for kind, file in manifest.encoders.items()}
            self._sessions = [self._session(package, file, encoder=False) for file in decoders]
        for session, graph, file in zip(self._sessions, self._graphs, decoders, strict=True):
            check_segment(session, graph, file, manifest.dtype)
        given = {one.name for one in self._sessions[-1].get_overridable_initializers()}
        self.answers_rows = LOGITS_FROM in given
        self._files = manifest.encoders
        self._host = host() if self.dtype == np.float32 else None
        self.kernels = told(self._compute, self._encoding, kept, manifest)

    def _session(self, package: Package, file: str, *, encoder: bool) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        packs = has_room(package.float32_bytes())
        entries = session_config(package.manifest.quantization, encoder, packs) | {
            # Each session has threads of its own. Spinning on after a run, which is the default,
            # they take the cores from the next segment's threads and from Python between steps.
            "session.force_spinning_stop": "1",
            "session.model_external_initializers_file_folder_path": str(package.weights_folder),
            **(self._encoding if encoder else self._compute),
        }
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        if self.dtype == np.float32:
            _register_kernels(options)
        graph = package.read(file)
        try:
            return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        # ONNX Runtime's own exception classes share no base but Exception.
        except Exception as error:
            reason = str(error).splitlines()[0][:200]
            raise BackendError(
                f"{package.file(file)}: expected a graph ONNX Runtime {ort.__version__} can load, "
                f"found: {reason}; export again with this version of avl"
            ) from error

    def encode(self, kind: Kind, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        feeds = {
            name: array.astype(self.dtype, copy=False) if array.dtype == np.float32 else array
            for name, array in inputs.items()
        }
        check_media(self._encoders[kind], self._files[kind], feeds)
        return [np.asarray(array) for array in self._encoders[kind].run(None, feeds)]

    def bind(
        self,
        segment: int,
        hidden: NDArray[Any],
        position_ids: NDArray[np.int64],
        row_weights: NDArray[np.float32],
        deepstack: Sequence[NDArray[Any]],
        answers: int = 1,
        reach: Mapping[str, Ints] = NOTHING,
    ) -> OrtBoundSegment:
        graph = self._graphs[segment]
        layers = zip(graph.deepstack, deepstack, strict=True)
        added = {named(DEEPSTACK, layer): array for layer, array in layers}
        inputs = {HIDDEN: hidden, POSITIONS: position_ids, WEIGHTS: row_weights, **added}
        inputs |= {name: reach[name] for name in graph.reach}
        if graph.ends and answers > 1:
            inputs[LOGITS_FROM] = np.array([-answers])
        return OrtBoundSegment(self._sessions[segment], graph, self._host, inputs, answers)


def _register_kernels(options: ort.SessionOptions) -> None:
    """Offer a session the compiled kernels, if there are any.

    Raises:
        BackendError: they are not for this machine, or damaged.
    """
    library = cpu.library()
    if library is None:
        return
    try:
        options.register_custom_ops_library(str(library))
    # ONNX Runtime's own exception classes share no base but Exception.
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise BackendError(
            f"{library}: expected CPU kernels compiled on this machine, found: {reason}; compile "
            f"them with python -m avl_plugins.cpu.build, or set {cpu.SWITCH}=off"
        ) from error

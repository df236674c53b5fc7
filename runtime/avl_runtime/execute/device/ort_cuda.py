"""ONNX Runtime on an NVIDIA GPU: its CUDA provider runs the graphs, on caches that are ours."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from avl_runtime.execute.device.backend import DeviceBackend, EncoderRunner, place_of
from avl_runtime.execute.device.cuda import CudaDevice
from avl_runtime.execute.device.elements import ELEMENTS
from avl_runtime.execute.device.memory import Memory
from avl_runtime.execute.device.ort import OrtEncoder, OrtSegment
from avl_runtime.execute.device.protocol import Device
from avl_runtime.execute.protocol import BackendError
from avl_runtime.machine.installation import install, uninstall
from avl_runtime.machine.probe import Machine
from avl_runtime.package.engine_sets import Limits, cuda_words
from avl_runtime.package.graph_fit import check_segment
from avl_runtime.package.package import Package

PROVIDER = "CUDAExecutionProvider"
WITH_CUDA = "onnxruntime-gpu[cuda,cudnn]"
PROMPT_ROWS = 256  # of one pass; a pass holds scores of all heads, its rows and all rows before
STEP_ROWS = 8
ANY_BATCH = 1 << 16


def load_ort_cuda(
    package: Package, threads: int | None, machine: Machine, *, park_on_host: bool = False
) -> DeviceBackend:
    """Load a package's graphs on the first GPU.

    Args:
        park_on_host: keep parked rows in the host's memory between refreshes.

    Raises:
        BackendError: onnxruntime-gpu, a GPU or a driver for it is missing, or the package cannot
            run there.
        AvlError: cuda-python is missing.
    """
    check_ort_cuda(machine)
    if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN from the package index
        ort.preload_dlls()
    return open_sessions(package, threads, CudaDevice(), park_on_host=park_on_host)


def open_sessions(
    package: Package,
    threads: int | None,
    device: Device,
    module: Any = ort,
    device_type: str = "cuda",
    *,
    park_on_host: bool = False,
) -> DeviceBackend:
    """Load a package's graphs on a device.

    Args:
        module: onnxruntime.
        device_type: what it calls the device.

    Raises:
        BackendError: a graph does not load, or the provider does not start.
        PackageError: a graph is not the one that the manifest describes.
    """
    manifest, memory = package.manifest, Memory(device)
    if manifest.dtype not in ("fp32", "fp16"):
        raise BackendError(
            f"expected an fp32 or fp16 package on ort-cuda, found {manifest.dtype}, which NumPy "
            "lacks; export with --dtype fp16, or use --backend tensorrt-rtx"
        )
    element = ELEMENTS[manifest.dtype]
    place = place_of(manifest, memory, element, 1, park_on_host=park_on_host)
    free, _ = device.memory()

    def session(file: str) -> Any:
        return _session(package, file, threads, device, module)

    files = manifest.encoders
    encoders: dict[str, EncoderRunner] = {
        file: OrtEncoder(session(file), file, element) for file in set(files.values())
    }
    segments = []
    for part in manifest.segments:
        opened = session(part.file)
        check_segment(opened, manifest.graph_of(part), part.file, manifest.dtype)
        segments.append(OrtSegment(opened, device_type))
    memory.count("weights", max(0, free - device.memory()[0]))
    return DeviceBackend(
        name="ort-cuda",
        manifest=manifest,
        memory=memory,
        element=element,
        segments=segments,
        encoders={kind: encoders[file] for kind, file in files.items()},
        limits=Limits(STEP_ROWS, PROMPT_ROWS, manifest.dims.max_positions, ANY_BATCH),
        place=place,
    )


def _session(package: Package, file: str, threads: int | None, device: Device, module: Any) -> Any:
    options = module.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(package.weights_folder)
    )
    cuda = {"user_compute_stream": str(device.stream), "arena_extend_strategy": "kSameAsRequested"}
    # The CPU's provider computes shapes.
    providers = [(PROVIDER, cuda), "CPUExecutionProvider"]
    graph = package.read(file)
    try:
        made = module.InferenceSession(graph, options, providers=providers)
    # ONNX Runtime's own exception classes share no base but Exception.
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise BackendError(
            f"{package.file(file)}: expected a graph that ONNX Runtime {module.__version__} loads "
            f"on {device.name}, found: {reason}; free memory of the GPU, export again with this "
            "version of avl, or use --backend ort-cpu"
        ) from error
    # Where its libraries are missing, ONNX Runtime warns and goes on with the CPU alone.
    if PROVIDER not in made.get_providers():
        raise BackendError(
            f"expected ONNX Runtime {module.__version__} to start its CUDA provider, found that it "
            f"cannot load CUDA or cuDNN; run: {install(WITH_CUDA)}, or use --backend ort-cpu"
        )
    return made


def check_ort_cuda(machine: Machine, module: Any = ort) -> None:
    """Refuse a machine on which ONNX Runtime cannot use a GPU.

    Args:
        module: onnxruntime.

    Raises:
        BackendError: what is missing, with the command that installs it.
    """
    if not machine.gpus:
        raise BackendError(
            f"expected an NVIDIA GPU for ort-cuda, found none ({machine.trouble}); "
            "use --backend ort-cpu"
        )
    providers = module.get_available_providers()
    if PROVIDER not in providers:
        raise BackendError(
            f"expected onnxruntime-gpu for ort-cuda, found onnxruntime {module.__version__} with "
            f"{', '.join(providers)}; run: {uninstall('onnxruntime')} && {install(WITH_CUDA)}, or "
            "use --backend ort-cpu"
        )
    wanted = str(getattr(module, "cuda_version", "") or "").partition(".")[0]
    if wanted.isdigit() and machine.cuda is not None and machine.cuda[0] < int(wanted):
        (major, minor), driver = machine.cuda, machine.driver or "of unknown version"
        raise BackendError(
            f"expected a driver for {cuda_words(int(wanted))}, which onnxruntime-gpu "
            f"{module.__version__} is made for, found driver {driver} for CUDA {major}.{minor}; "
            "install a newer driver, or use --backend ort-cpu"
        )

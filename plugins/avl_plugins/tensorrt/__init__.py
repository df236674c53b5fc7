"""Attention as a TensorRT plugin, compiled ahead of time: engines need neither Python nor avl.

`register()` before parsing an ONNX file makes TensorRT take the packaged kernels for nodes of the
op; without it TensorRT runs the function bodies that the nodes carry.
"""

from __future__ import annotations

from avl_plugins.errors import TensorRTError
from avl_plugins.installation import install_extra
from avl_plugins.kernels.catalog import CAPABILITIES

OLDEST = (10, 9)  # the first TensorRT with plugins compiled ahead of time


def register(capability: int | None = None) -> None:
    """Register the op with TensorRT's plugin registry; calling it again is harmless.

    Args:
        capability: compute capability, such as 90, of the GPU that engines are built for. None asks
            the CUDA driver, or takes PTX for any GPU from 8.0 on where cuda-python is missing.

    Raises:
        TensorRTError: TensorRT is missing or older than 10.9, or the GPU older than 8.0.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise TensorRTError(
            f"expected TensorRT for its plugins, found none; run: {install_extra('tensorrt')}, or "
            "build for tensorrt-rtx, which needs no plugins"
        ) from error
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < OLDEST or not hasattr(tensorrt, "QuickPluginCreationRequest"):
        raise TensorRTError(
            f"expected TensorRT 10.9 or later, found {tensorrt.__version__}; update it (JetPack 6 "
            "has 10.3), or build without plugins"
        )
    capability = _present() if capability is None else capability
    if capability < CAPABILITIES[0]:
        raise TensorRTError(
            f"expected a GPU of compute capability {CAPABILITIES[0] / 10} or later, found "
            f"{capability / 10}; build without plugins"
        )
    from avl_plugins.tensorrt import plugins

    plugins.built_for(capability)


def _present() -> int:
    """The compute capability of the first GPU, or the least that is served, for any GPU."""
    from avl_plugins.cuda.driver import CudaError, compute_capability

    try:
        return compute_capability()
    except CudaError:
        return CAPABILITIES[0]

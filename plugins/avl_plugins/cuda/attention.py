"""`avl::SplitCacheAttention` on a GPU: which packaged kernels a call takes, and their workspace.

Arrays are addresses of device memory; whoever owns the memory (ONNX Runtime, torch, cuMemAlloc)
keeps it. Everything is asynchronous on the stream given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from avl_plugins.cuda.driver import Device
from avl_plugins.cuda.packaged import KernelError
from avl_plugins.kernels import catalog

_BYTES = 4  # of a float32 and of an int32
_COUNTERS = 4096  # most KV heads of a batch; a region that calls of all sizes have in common


@dataclass(frozen=True, slots=True)
class Sizes:
    """Dimensions of one call of SplitCacheAttention, as in `schema`; H is Hkv * G."""

    B: int
    Hkv: int
    G: int
    S: int
    A: int
    P: int
    R: int

    def values(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("B", "Hkv", "G", "S", "A", "P", "R")}


class Attention:
    """`avl::SplitCacheAttention` on a GPU, for one type and head_dim.

    Few query rows are split over the keys (`kernels.decode`), many take flash attention
    (`kernels.prefill`).
    """

    def __init__(self, device: Device, dtype: str, head_dim: int, scale: float) -> None:
        """
        Args:
            dtype: "float16" or "bfloat16".

        Raises:
            KernelError: nothing is packaged for the type and head_dim.
        """
        if dtype not in catalog.DTYPES or head_dim not in catalog.HEAD_DIMS:
            raise KernelError(
                f"expected a type of {catalog.DTYPES} and a head_dim of {catalog.HEAD_DIMS}, "
                f"found {dtype} and {head_dim}; use an ONNX Runtime backend"
            )
        self._device = device
        self._bits = catalog.scale_bits(scale)
        self._decode, self._prefill, self._prefill_mass = (
            catalog.variant_of(name, dtype, head_dim)
            for name in ("decode", "prefill", "prefill_mass")
        )

    def workspace_bytes(self, sizes: Sizes) -> int:
        """Device memory that a call needs.

        Its first 16 KB must be zero before the first call; calls of any size leave them so. Calls
        share one only if they follow each other, as on one stream.
        """
        return sum(size for _, size in self._layout(sizes))

    def __call__(
        self,
        sizes: Sizes,
        pointers: Mapping[str, int],
        workspace: int,
        stream: int = 0,
        *,
        rows: int | None = None,
        mass: bool = True,
    ) -> None:
        """Write `out` and the masses.

        Args:
            pointers: addresses of all inputs and outputs of the schema, 16-byte aligned.
            workspace: address of `workspace_bytes` of device memory, 16-byte aligned.
            rows: active and parked rows of the longest sequence, where they are less than A + P:
                work is split for as many.
            mass: False leaves the masses unwritten and saves a launch.

        Raises:
            KernelError: as `Device.launch`.
            CudaError: as `Device.launch`.
        """
        values = {**sizes.values(), **pointers, "scale_bits": self._bits}
        at = workspace
        for name, size in self._layout(sizes):
            values[name] = at
            at += size
        if self._few(sizes):
            values["splits"] = self._splits(sizes, rows)
            self._device.launch(self._decode.name, values, stream)
            if mass:
                self._device.launch("decode_mass", values, stream)
        else:
            self._device.launch(self._prefill.name, values, stream)
            if mass:
                self._device.launch(self._prefill_mass.name, values, stream)

    def _few(self, sizes: Sizes) -> bool:
        return sizes.S * sizes.G <= catalog.DECODE_ROWS

    def _splits(self, sizes: Sizes, rows: int | None = None) -> int:
        rows = sizes.A + sizes.P if rows is None else rows
        return catalog.splits(sizes.B * sizes.Hkv, rows, self._device.multiprocessors)

    def _layout(self, sizes: Sizes) -> list[tuple[str, int]]:
        """Names and bytes of the workspace's parts, each aligned to 16 bytes."""
        pairs = sizes.B * sizes.Hkv
        if pairs > _COUNTERS:
            raise KernelError(
                f"expected a batch of at most {_COUNTERS} KV heads, found {pairs}; split the batch"
            )
        counters = [("counter", _COUNTERS)]
        if self._few(sizes):
            rows, splits = catalog.DECODE_ROWS, self._splits(sizes)
            parts = [
                ("lse", pairs * rows),
                ("softmax", pairs * splits * 2 * rows),
                ("partial", pairs * splits * rows * self._decode.constants["DP"]),
                ("scores", pairs * rows * (sizes.A + sizes.P + sizes.S)),
            ]
        else:
            parts = [("lse", pairs * sizes.S * sizes.G)]
        return [(name, -(-count * _BYTES // 16) * 16) for name, count in counters + parts]

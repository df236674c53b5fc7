"""How ONNX Runtime's CPU shall load a graph: what its weights ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime as ort

from avl_runtime.machine.memory import (
    M_MMAP_MAX,
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    MAPPED,
    MOST_MAPPED,
    TRIMMED_NEVER,
    keeps_freed,
    libc,
)
from avl_runtime.machine.resources import usable_memory
from avl_runtime.package.quantization import Quantization

_WHILE_LOADING = 1 << 20  # bytes from which on glibc maps a block by itself, or trims its heap
# Bytes of a cache, from which on it is worth a tenth of a millisecond to have a session give back
# what a chunk needed, which the next prompt then takes anew; and half a millisecond to have the
# system get it.
WORTH_SHRINKING, LARGE = 1 << 20, 16 << 20


def session_config(quantization: Quantization | None, encoder: bool, packs: bool) -> dict[str, str]:
    """Entries of the session configuration for an encoder's or a decoder segment's graph.

    Prepacking copies floating-point weights that no kernel of ours reads into memory of the
    process, where they would else stay mapped from their file. A decoder reads packed weights
    faster, and most so with several sequences. An encoder multiplies many rows at a time, and gains
    nothing.

    Codes that no kernel of ours takes are fused into MatMulNBits, which is fast only with
    prepacking, and for 8 bits only with activations rounded to 8 bits as well (accuracy level 4):
    otherwise it dequantizes the whole matrix on every run.

    Args:
        packs: whether the machine has the memory; see `has_room`.
    """
    if quantization is None or (encoder and "vision" not in quantization.parts):
        return {} if packs and not encoder else {"session.disable_prepacking": "1"}
    return {
        "session.qdq_matmulnbits_accuracy_level": "4",
        # For one scale an output, which MatMulNBits does not know: blocks that repeat it.
        "session.qdq_matmulnbits_block_size": "128",
    }


def has_room(nbytes: int) -> bool:
    """Whether `nbytes` of weights may lie in memory of the process: at most half of it.

    Pages mapped from a file can be dropped when memory runs short; a process's own cannot.
    Weights of 16 bits count as the float32 that they are packed as where no kernel of ours reads
    them: see `Package.float32_bytes`.
    """
    memory = usable_memory()
    return memory is not None and 2 * nbytes <= memory


def shrinking() -> ort.RunOptions:
    """Options of a run after which a session gives back what it holds for the next run.

    A session keeps the most that any run took: else a prompt's chunks count twice, in one segment
    that waits and in the next that works.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@contextmanager
def tight_memory() -> Iterator[None]:
    """Give freed memory back at once while graphs are loaded in the block.

    Fusing and prepacking free as many bytes as they keep. glibc would hold on to them for good,
    which makes a quantized package take twice its memory; afterwards it has its usual limit.
    """
    tune = getattr(libc(), "mallopt", None)
    if tune is None:  # another allocator than glibc's
        yield
        return
    tune(M_MMAP_MAX, MOST_MAPPED)
    for limit in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        tune(limit, _WHILE_LOADING)
    try:
        yield
    finally:  # what limits grow to by themselves in a process that has used large blocks
        tune(M_MMAP_THRESHOLD, MAPPED)
        tune(M_TRIM_THRESHOLD, TRIMMED_NEVER if keeps_freed() else 2 * MAPPED)
        tune(M_MMAP_MAX, 0 if keeps_freed() else MOST_MAPPED)

"""How kernels are timed on a GPU: rotated inputs, CUDA graphs, CUDA events, and figures as rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kernel_cases import Attention, Launch, attend

DEVICE = "cuda"
COPIED = 1 << 30  # bytes of the copy that gives the bandwidth
Row = dict[str, Any]
Work = Callable[[], Any]


def milliseconds(works: Sequence[Work], repeats: int = 20) -> float:
    """Median time of one of `works`, which do the same on inputs of their own."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for work in works:  # compiles, loads modules, allocates
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for work in works:
            work()
    times = []
    for _ in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / len(works))
    return float(statistics.median(times[3:]))


def rotations(bytes_each: int) -> int:
    """How many inputs are more than four times the L2 cache together."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, -(-4 * cache // bytes_each))


def copy_bandwidth() -> float:
    """Bytes a second that a device-to-device copy reads and writes."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds([lambda: target.copy_(source)]) * 1e-3)


def prepared(case: Attention, launch: Launch, inputs: dict[str, torch.Tensor]) -> Work:
    """The launches of a case with outputs and workspaces made once, before any timing."""
    noted: list[tuple[Any, Any]] = []
    attend(case, lambda variant, values: noted.append((variant, dict(values))), inputs)

    def work() -> None:
        for variant, values in noted:
            launch(variant, values)

    return work


def row(name: str, value: float, unit: str, wanted: float | None = None, least: bool = True) -> Row:
    """One figure; `wanted` is the least that is asked of it, or the most."""
    sign = ">=" if least else "<="
    met = None if wanted is None else (value >= wanted if least else value <= wanted)
    text = "" if wanted is None else f"{sign} {wanted:g}"
    return {"name": name, "value": value, "unit": unit, "wanted": text, "met": met}

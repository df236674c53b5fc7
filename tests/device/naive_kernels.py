"""The kernels a decode step launches, by the naive references: fast enough for whole replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avl_plugins.kernels import naive

Memory = Any  # a HostDevice


def update(device: Memory, values: Mapping[str, int]) -> None:
    batch, heads, moves = values["B"], values["Hkv"], values["M"]
    width, new = values["D"], values["S"]
    lists = (values["L"], batch, heads, moves)
    source, destination = (
        view(device, values[n], lists, np.int64) for n in ("source", "destination")
    )
    for layer, row in enumerate(view(device, values["table"], (values["L"], 8), np.int64)):
        *addresses, active, parked = row.tolist()
        sizes = (active, active, parked, parked, new, new)
        arrays = [
            view(device, address, (batch, heads, rows, width), np.int16)
            for address, rows in zip(addresses, sizes, strict=True)
        ]
        naive.move_rows(*arrays, source[layer], destination[layer])


def select_core(device: Memory, values: Mapping[str, int]) -> None:
    batch, heads, moves = values["B"], values["Hkv"], values["M"]
    lists = (values["L"], batch, heads, moves)
    source, destination = (
        view(device, values[n], lists, np.int64) for n in ("source", "destination")
    )
    source[...], destination[...] = 0, -1
    for layer, row in enumerate(view(device, values["table"], (values["L"], 8), np.int64)):
        *at, active, parked = row.tolist()
        mass_active = view(device, at[0], (batch, heads, 2, active), np.float32)
        mass_parked = view(device, at[1], (batch, heads, 2, parked), np.float32)
        positions = view(device, at[2], (batch, heads, active), np.int64)
        apart = view(device, at[3], (batch, parked), np.int64)
        core, kept = (view(device, address, (batch,), np.int64) for address in at[4:])
        for b in range(batch):
            n, m = int(core[b]), int(kept[b])
            found = naive.exchange(
                mass_active[b, :, 0, :n],
                mass_parked[b, :, 0, :m],
                positions[b, 0, :n],
                apart[b, :m],
                active,
            )
            for index, (origin, to) in enumerate(found):
                source[layer, b, :, index], destination[layer, b, :, index] = origin, to
            for origin, to in found[::2]:
                before = int(positions[b, 0, to])
                positions[b, :, to] = apart[b, origin - active]
                apart[b, origin - active] = before


def select_text(device: Memory, values: Mapping[str, int]) -> None:
    batch, heads, moves, tokens = (values[n] for n in ("B", "Hkv", "M", "T"))
    lists = (values["L"], batch, heads, moves)
    source, destination = (
        view(device, values[n], lists, np.int64) for n in ("source", "destination")
    )
    source[...], destination[...] = 0, -1
    image = view(device, values["image_mask"], (batch, tokens), np.int8)
    first = view(device, values["first_image"], (batch,), np.int32)
    budget = view(device, values["budget"], (batch, 2), np.int32)
    remaining = view(device, values["remaining"], (values["L"], batch), np.int64)
    for layer, row in enumerate(view(device, values["table"], (values["L"], 8), np.int64)):
        *at, active, step_rows, _ = row.tolist()
        mass_active = view(device, at[0], (batch, heads, 2, step_rows), np.float32)
        mass_new = view(device, at[1], (batch, heads, 2, 1), np.float32)
        positions = view(device, at[2], (batch, heads, active), np.int64)
        gathered = view(device, at[3], (batch, heads, active), np.float32)
        lengths = view(device, at[4], (batch,), np.int64)
        for b in range(batch):
            length = int(lengths[b])
            for h in range(heads):
                gathered[b, h, : length - 1] += mass_active[b, h, 1, : length - 1]
                gathered[b, h, length - 1] += mass_new[b, h, 1, 0]
                tokens_of = positions[b, h, :length]
                text = (image[b, tokens_of] == 0) & (tokens_of > first[b])
                allowed = min(int(budget[b, 0]), int(text.sum()))
                recent = min(int(budget[b, 1]), allowed)
                found = naive.eviction(gathered[b, h, :length], tokens_of, text, allowed, recent)
                remaining[layer, b] = length - (int(text.sum()) - allowed)
                for index, (origin, to) in enumerate(found):
                    source[layer, b, h, index], destination[layer, b, h, index] = origin, to
                for origin, to in found:
                    positions[b, h, to] = positions[b, h, origin]
                    gathered[b, h, to] = gathered[b, h, origin]


def view(device: Memory, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """An array in the device's memory."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    found: np.ndarray[Any, Any] = device.bytes_at(address, nbytes).view(dtype).reshape(shape)
    return found


KERNELS = {"update": update, "select_core": select_core, "select_text": select_text}

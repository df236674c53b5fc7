"""Checks of `update` and the selections on random data, against the naive references.

Every check takes a launcher and a device, as the attention cases of `kernel_cases` do, and says
whether the device ended with exactly what the reference gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from avl_plugins.kernels import naive
from avl_plugins.kernels.catalog import MOVES, VARIANTS
from kernel_cases import Launch

PLACES = ("k_active", "v_active", "k_parked", "v_parked", "k_new", "v_new")
UNSET = 12345  # what lists hold before a kernel writes them


def random_rows(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.integers(-(2**15), 2**15, shape).astype(np.int16)


def random_moves(
    rng: np.random.Generator, pairs: tuple[int, int], rows: int, cached: int, moves: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Any sources, unique destinations, a fifth of the moves to nowhere."""
    source = rng.integers(0, rows, (*pairs, moves))
    destination = np.stack(
        [[rng.permutation(cached)[:moves] for _ in range(pairs[1])] for _ in range(pairs[0])]
    )
    destination[rng.random(destination.shape) < 0.2] = -1
    return source, destination


def run_update(
    launch: Launch,
    layers: list[dict[str, torch.Tensor]],
    source: torch.Tensor,
    destination: torch.Tensor,
) -> None:
    """`update` on [L, B, Hkv, M] lists, with the smallest variant that takes them."""
    batch, kv_heads, new, width = layers[0]["k_new"].shape
    moves = source.shape[3]
    limit = next(n for n in MOVES if n >= moves)
    table = [
        [layer[name] for name in PLACES] + [layer["k_active"].shape[2], layer["k_parked"].shape[2]]
        for layer in layers
    ]
    values = {
        "table": pointers(table),
        "source": source,
        "destination": destination,
        "B": batch,
        "Hkv": kv_heads,
        "L": len(layers),
        "S": new,
        "M": moves,
        "D": width,
    }
    launch(VARIANTS[f"update-{limit}"], values)


def update_in_place(
    launch: Launch, device: str, seed: int, batch: int, kv_heads: int, width: int, moves: int
) -> bool:
    """Whether random overlapping moves on layers of different sizes end as the naive ones do."""
    rng = np.random.default_rng(seed)
    pairs, new = (batch, kv_heads), int(rng.integers(1, 4))
    layers, expected, lists = [], [], []
    for _ in range(2):
        # Room for all destinations.
        active, parked = (int(n) + moves // 2 for n in rng.integers(1, 30, 2))
        sizes = (active, active, parked, parked, new, new)
        arrays = {
            name: random_rows(rng, *pairs, rows, width)
            for name, rows in zip(PLACES, sizes, strict=True)
        }
        count = min(moves, active + parked)
        source, destination = random_moves(
            rng, pairs, active + parked + new, active + parked, count
        )
        padding = ((0, 0), (0, 0), (0, moves - count))
        lists.append((np.pad(source, padding), np.pad(destination, padding, constant_values=-1)))
        layers.append({n: torch.from_numpy(a.copy()).to(device) for n, a in arrays.items()})
        given: list[Any] = [*arrays.values(), source, destination]
        naive.move_rows(*given)
        expected.append(arrays)
    sources, destinations = (
        torch.from_numpy(np.stack(part)).to(device) for part in zip(*lists, strict=True)
    )
    run_update(launch, layers, sources, destinations)
    return all(
        np.array_equal(layer[name].cpu().numpy(), arrays[name])
        for layer, arrays in zip(layers, expected, strict=True)
        for name in PLACES
    )


def pointers(layers: list[list[torch.Tensor | int]]) -> torch.Tensor:
    """A table [L, 8] of addresses and integers, zero where there are fewer."""
    device = next(x.device for x in layers[0] if isinstance(x, torch.Tensor))
    rows = [[x if isinstance(x, int) else x.data_ptr() for x in layer] for layer in layers]
    return torch.tensor([row + [0] * (8 - len(row)) for row in rows], device=device)


def selection_with_ties(
    launch: Launch, device: str, seed: int, core: int, parked: int, rows: int
) -> bool:
    """Whether a refresh's lists equal the naive ones where many scores are equal."""
    rng = np.random.default_rng(seed)
    kv_heads, active, apart = 3, core + 5, parked + 3
    mass_active = rng.integers(0, 3, (1, kv_heads, 2, active)).astype(np.float32) / 4
    mass_parked = rng.integers(0, 3, (1, kv_heads, 2, apart)).astype(np.float32) / 4
    order = rng.permutation(core + parked + 7)
    positions = np.zeros((1, kv_heads, active), np.int64)
    positions[0, :, :core] = order[:core]
    parked_positions = np.zeros((1, apart), np.int64)
    parked_positions[0, :parked] = order[core : core + parked]
    expected = naive.exchange(
        mass_active[0, :, 0, :core],
        mass_parked[0, :, 0, :parked],
        positions[0, 0, :core],
        parked_positions[0, :parked],
        active,
    )
    arrays = (mass_active, mass_parked, positions, parked_positions)
    tensors = [torch.from_numpy(array.copy()).to(device) for array in arrays]
    counts = [torch.tensor([count], device=device) for count in (core, parked)]
    moves = 2 * apart + 2
    source = torch.full((1, 1, kv_heads, moves), UNSET, device=device)
    destination = torch.full_like(source, UNSET)
    values: dict[str, Any] = {"table": pointers([[*tensors, *counts, active, apart]])}
    values |= {
        "source": source,
        "destination": destination,
        "B": 1,
        "L": 1,
        "Hkv": kv_heads,
        "R": 2,
        "M": moves,
    }
    launch(VARIANTS[f"select_core-{rows}"], values)
    padded = expected + [(0, -1)] * (moves - len(expected))
    for head in range(kv_heads):
        pairs = zip(source[0, 0, head].tolist(), destination[0, 0, head].tolist(), strict=True)
        if list(pairs) != padded:
            return False
    for row, slot in expected[::2]:
        before = positions[0, 0, slot]
        if int(tensors[3][0, row - active]) != before:
            return False
        if tensors[2][0, :, slot].tolist() != [parked_positions[0, row - active]] * kv_heads:
            return False
    return True


def text_evictions(launch: Launch, device: str, seed: int, rows: int) -> bool:
    """Whether `select_text` gives the naive lists, and the book-keeping after them.

    Two layers and sequences, each with lengths, images and budgets of its own, three new rows and
    many equal masses.
    """
    rng = np.random.default_rng(seed)
    shape, new, moves, tokens = (2, 2), 3, rows + 5, 2 * rows + 20
    image_mask = (rng.random((2, tokens)) < 0.3).astype(np.int8)
    first_image = rng.integers(0, tokens // 4, 2).astype(np.int32)
    budgets = rng.integers(0, rows, (2, 2)).astype(np.int32)

    def drawn(*size: int) -> Any:
        return (rng.integers(0, 3, (*shape, *size)) / 4).astype(np.float32)

    layers = []
    for spare in (1, 6):
        capacity = rows + spare
        lengths = rng.integers(rows // 2 + new, capacity + 1, 2)
        chosen = [rng.permutation(tokens)[:capacity] for _ in range(2)]
        # The heads of a sequence have the same tokens, in orders of their own.
        positions = [
            [np.r_[rng.permutation(one[:n]), one[n:]] for _ in range(2)]
            for one, n in zip(chosen, lengths, strict=True)
        ]
        step = capacity + 2
        arrays = (drawn(2, step), drawn(2, new), np.array(positions), drawn(capacity), lengths)
        layers.append((arrays, capacity, step))
    tensors = [[torch.from_numpy(a.copy()).to(device) for a in arrays] for arrays, *_ in layers]
    source = torch.full((2, *shape, moves), UNSET, device=device)
    values: dict[str, Any] = {
        "table": pointers(
            [[*own, *sizes] for own, (_, *sizes) in zip(tensors, layers, strict=True)]
        ),
        "image_mask": torch.from_numpy(image_mask).to(device),
        "first_image": torch.from_numpy(first_image).to(device),
        "budget": torch.from_numpy(budgets).to(device),
        "source": source,
        "destination": torch.full_like(source, UNSET),
        "remaining": torch.full((2, 2), UNSET, device=device),
    }
    values |= {"B": 2, "L": 2, "Hkv": 2, "R": 2, "S": new, "M": moves, "T": tokens}
    launch(VARIANTS["select_text-1024"], values)
    for layer, b, h in np.ndindex(2, 2, 2):
        mass_active, mass_new, places, before, lengths = layers[layer][0]
        n = lengths[b]
        gathered, held = before[b, h].copy(), places[b, h].copy()
        gathered[: n - new] += mass_active[b, h, 1, : n - new]
        gathered[n - new : n] += mass_new[b, h, 1]
        text = (image_mask[b, held[:n]] == 0) & (held[:n] > first_image[b])
        budget, recent = np.minimum.accumulate([min(budgets[b, 0], text.sum()), budgets[b, 1]])
        expected = naive.eviction(gathered[:n], held[:n], text, int(budget), int(recent))
        for from_slot, to_slot in expected:
            held[to_slot], gathered[to_slot] = held[from_slot], gathered[from_slot]
        padded = [*expected, *[(0, -1)] * (moves - len(expected))]
        lists = (values[name][layer, b, h].tolist() for name in ("source", "destination"))
        same = list(zip(*lists, strict=True)) == padded
        same &= int(values["remaining"][layer, b]) == n - text.sum() + budget
        same &= np.array_equal(tensors[layer][2][b, h].cpu().numpy(), held)
        same &= np.array_equal(tensors[layer][3][b, h].cpu().numpy(), gathered)
        if not same:
            return False
    return True

"""Several decode steps in sequence on device caches, held against sets of tokens.

Every cache row is made from its token, so that a row out of place shows: after any number of moves
the row at a slot must be that of the token which the book-keeping names, and the tokens must be
those that the policy chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avl_plugins.kernels.catalog import VARIANTS, scale_bits, variant_of
from avl_plugins.policies import ACTIVE, Divide, Refresh, TextBudget, View
from kernel_cases import Launch
from kernel_moves import UNSET, pointers, run_update

BATCH, KV_HEADS, GROUP, WIDTH = 2, 2, 2, 64
Layer = dict[str, torch.Tensor]


@dataclass
class Rows:
    """K and V of every token of a layer, [tokens, Hkv, D] for each sequence."""

    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def random(cls, rng: np.random.Generator, tokens: int, device: str) -> Rows:
        shape = (BATCH, tokens, KV_HEADS, WIDTH)
        k, v = (torch.from_numpy(rng.standard_normal(shape)).half().to(device) for _ in "kv")
        return cls(k, v)


def empty_layer(active: int, parked: int, device: str) -> Layer:
    """Caches of NaN with no row in use."""
    nowhere = {
        "positions": torch.zeros(BATCH, KV_HEADS, active, dtype=torch.int64),
        "gathered": torch.zeros(BATCH, KV_HEADS, active),
        "parked_positions": torch.zeros(BATCH, parked, dtype=torch.int64),
    }
    for name in ("active_len", "parked_len", "core_len"):
        nowhere[name] = torch.zeros(BATCH, dtype=torch.int64)
    for place, rows in (("active", active), ("parked", parked)):
        for kind in "kv":
            shape = (BATCH, KV_HEADS, rows, WIDTH)
            nowhere[f"{kind}_{place}"] = torch.full(shape, torch.nan, dtype=torch.float16)
    return {name: tensor.to(device) for name, tensor in nowhere.items()}


def place(layer: Layer, rows: Rows, b: int, active: list[list[int]], parked: list[int]) -> None:
    """Put tokens into slots 0, 1, ...: active ones per KV head, parked ones for all heads."""
    for h, tokens in enumerate(active):
        layer["positions"][b, h, : len(tokens)] = torch.tensor(tokens)
        layer["k_active"][b, h, : len(tokens)] = rows.k[b, tokens, h]
        layer["v_active"][b, h, : len(tokens)] = rows.v[b, tokens, h]
        layer["k_parked"][b, h, : len(parked)] = rows.k[b, parked, h]
        layer["v_parked"][b, h, : len(parked)] = rows.v[b, parked, h]
    layer["parked_positions"][b, : len(parked)] = torch.tensor(parked)
    layer["active_len"][b], layer["parked_len"][b] = len(active[0]), len(parked)


def append(launch: Launch, layers: list[Layer], rows: list[Rows], token: list[int]) -> None:
    """Add the row of one new token to every sequence of every layer, by `update`."""
    sources, ends = [], []
    for layer, made in zip(layers, rows, strict=True):
        for b in range(BATCH):
            layer["positions"][b, :, layer["active_len"][b]] = token[b]
            layer["gathered"][b, :, layer["active_len"][b]] = 0
        layer["k_new"], layer["v_new"] = new_rows(made, token)
        cached = layer["k_active"].shape[2] + layer["k_parked"].shape[2]
        sources.append(torch.full((BATCH, KV_HEADS, 1), cached, device=layer["k_new"].device))
        ends.append(layer["active_len"][:, None, None].repeat(1, KV_HEADS, 1))
    run_update(launch, layers, torch.stack(sources), torch.stack(ends))
    for layer in layers:
        layer["active_len"] += 1


def new_rows(rows: Rows, token: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """k_new and v_new [B, Hkv, 1, D] of one token a sequence."""
    k, v = (torch.stack([made[b, token[b]] for b in range(BATCH)]) for made in (rows.k, rows.v))
    return k[:, :, None].contiguous(), v[:, :, None].contiguous()


def misplaced(layer: Layer, rows: Rows) -> bool:
    """Whether any live row is not that of the token its slot names."""
    for b in range(BATCH):
        active, parked = int(layer["active_len"][b]), int(layer["parked_len"][b])
        apart = layer["parked_positions"][b, :parked]
        for h in range(KV_HEADS):
            tokens = layer["positions"][b, h, :active]
            for kind, made in (("k", rows.k), ("v", rows.v)):
                if not torch.equal(layer[f"{kind}_active"][b, h, :active], made[b, tokens, h]):
                    return True
                if not torch.equal(layer[f"{kind}_parked"][b, h, :parked], made[b, apart, h]):
                    return True
    return False


def refreshes(launch: Launch, device: str, seed: int, steps: int) -> list[str]:
    """Steps that each attend, refresh and append; returns what is wrong, which should be nothing.

    Two layers with numbers of core rows of their own, two sequences of different lengths.
    """
    rng = np.random.default_rng(seed)
    images, text = [60, 45], 8
    splits = (Divide(0.7, 0.3), Divide(0.5, 0.2))
    layers = [empty_layer(60, 40, device), empty_layer(50, 30, device)]
    rows = [Rows.random(rng, max(images) + text + steps, device) for _ in layers]
    for layer, made, split in zip(layers, rows, splits, strict=True):
        for b, tokens in enumerate(images):
            secondary, core = split.counts(tokens, tokens)
            order = rng.permutation(tokens).tolist()
            active = order[:core] + [tokens + i for i in range(text)]
            place(layer, made, b, [active] * KV_HEADS, order[core:secondary])
            layer["core_len"][b] = core
    failed: list[str] = []
    for step in range(steps):
        token = [tokens + text + step for tokens in images]
        chosen = []
        for layer, made, split in zip(layers, rows, splits, strict=True):
            layer["k_new"], layer["v_new"] = new_rows(made, token)
            q = torch.from_numpy(rng.standard_normal((BATCH, KV_HEADS * GROUP, 1, WIDTH)))
            decode(launch, layer, q.half().to(device))
            chosen.append([_core(layer, split, b, images[b]) for b in range(BATCH)])
        run_update(launch, layers, *select_core(launch, layers))
        append(launch, layers, rows, token)
        for i, (layer, made) in enumerate(zip(layers, rows, strict=True)):
            if misplaced(layer, made):
                failed.append(f"step {step}: a row of layer {i} is out of place")
            for b in range(BATCH):
                core = int(layer["core_len"][b])
                heads = layer["positions"][b, :, :core].tolist()
                if any(set(head) != chosen[i][b] for head in heads):
                    failed.append(f"step {step}: layer {i} has another core")
    return failed


def _core(layer: Layer, split: Divide, b: int, total: int) -> set[int]:
    """The tokens that the policy chooses from the masses of a step."""
    core, apart = int(layer["core_len"][b]), int(layer["parked_len"][b])
    mass = torch.cat(
        [layer["mass_active"][b, :, 0, :core], layer["mass_parked"][b, :, 0, :apart]], 1
    )
    tokens = torch.cat([layer["positions"][b, 0, :core], layer["parked_positions"][b, :apart]])
    scores = mass.cpu().numpy().sum(0)[None]
    view = View(tokens.cpu().numpy()[None], scores, 0, 1, total)
    core_mask = Refresh(split.core, 1).choose(view)[0] == ACTIVE
    return set(tokens.cpu()[torch.from_numpy(core_mask)].tolist())


def decode(launch: Launch, layer: Layer, q: torch.Tensor) -> None:
    """One step of attention: leaves its masses in the layer."""
    active, parked = layer["k_active"].shape[2], layer["k_parked"].shape[2]
    pairs = (BATCH, KV_HEADS)

    def empty(*shape: int) -> torch.Tensor:
        return torch.full(shape, torch.nan, device=q.device)

    for name, count in (("active", active), ("parked", parked), ("new", 1)):
        layer[f"mass_{name}"] = empty(*pairs, 2, count)
    values: dict[str, Any] = {
        **layer,
        "q": q,
        "out": torch.empty_like(q),
        "row_weights": torch.ones(BATCH, 2, 1, device=q.device),
        "scale_bits": scale_bits(WIDTH**-0.5),
    }
    values |= {"B": BATCH, "Hkv": KV_HEADS, "S": 1, "A": active, "P": parked}
    values |= {"R": 2, "G": GROUP, "owners": 2}
    launch(variant_of("fused_decode", "float16", WIDTH), values)


def select_core(launch: Launch, layers: list[Layer]) -> tuple[torch.Tensor, torch.Tensor]:
    """Exchange lists [L, B, Hkv, M] of all layers, in arrays of garbage."""
    moves = 2 * max(layer["k_parked"].shape[2] for layer in layers)
    device = layers[0]["k_active"].device
    source = torch.full((len(layers), BATCH, KV_HEADS, moves), UNSET, device=device)
    destination = torch.full_like(source, UNSET)
    names = ("mass_active", "mass_parked", "positions", "parked_positions", "core_len")
    table = pointers(
        [
            [layer[name] for name in (*names, "parked_len")]
            + [layer["k_active"].shape[2], layer["k_parked"].shape[2]]
            for layer in layers
        ]
    )
    values: dict[str, Any] = {"table": table, "source": source, "destination": destination}
    values |= {"B": BATCH, "L": len(layers), "Hkv": KV_HEADS, "R": 2, "M": moves}
    launch(VARIANTS["select_core-1024"], values)
    return source, destination


def text_steps(launch: Launch, device: str, seed: int, steps: int, ratio: float) -> list[str]:
    """Steps under a text budget; returns what is wrong, which should be nothing.

    Attention is drawn from few values, so that ties are common.
    """
    rng = np.random.default_rng(seed)
    before, images, start = 5, 6, [30, 24]  # text, images, and tokens in all
    first_text = before + images
    budget = TextBudget(ratio, 4, 0.7)
    layer, rows = empty_layer(60, 1, device), Rows.random(rng, max(start) + steps, device)
    gathered: dict[tuple[int, int], dict[int, float]] = {}
    for b, tokens in enumerate(start):
        image_rows = list(range(before, first_text))
        text = [*range(before), *range(first_text, tokens)]
        place(layer, rows, b, [image_rows + rng.permutation(text).tolist() for _ in range(2)], [])
        for h in range(KV_HEADS):
            gathered[b, h] = dict.fromkeys(layer["positions"][b, h, :tokens].tolist(), 0.0)
    image_mask = torch.zeros(BATCH, 200, dtype=torch.int8, device=device)
    image_mask[:, before:first_text] = 1
    failed: list[str] = []
    for step in range(steps):
        token = [tokens + step for tokens in start]
        append(launch, [layer], [rows], token)
        for name, count in (("mass_active", 60), ("mass_new", 1)):
            drawn = rng.integers(0, 3, (BATCH, KV_HEADS, 2, count)) / 4
            layer[name] = torch.from_numpy(drawn.astype(np.float32)).to(device)
        limits = []
        for b in range(BATCH):
            n_text = token[b] + 1 - first_text
            allowed = budget.budget(n_text)
            limits.append([allowed, allowed - int(allowed * budget.heavy)])
            for h in range(KV_HEADS):
                _keep(layer, budget, b, h, n_text, first_text, gathered)
        select_text(launch, layer, image_mask, before, limits)
        if misplaced(layer, rows):
            failed.append(f"step {step}: a row is out of place")
        for (b, h), expected in gathered.items():
            count = int(layer["active_len"][b])
            names = layer["positions"][b, h, :count].tolist()
            found = dict(zip(names, layer["gathered"][b, h, :count].tolist(), strict=True))
            if len(found) != count or found != expected:
                failed.append(f"step {step}: other tokens or masses in sequence {b}, head {h}")
    return failed


def _keep(
    layer: Layer,
    budget: TextBudget,
    b: int,
    h: int,
    n_text: int,
    first_text: int,
    gathered: dict[tuple[int, int], dict[int, float]],
) -> None:
    """One head's tokens after a step, by the policy; adds the step's attention first."""
    count = int(layer["active_len"][b])
    tokens = layer["positions"][b, h, :count].tolist()
    step = [*layer["mass_active"][b, h, 1, : count - 1].tolist(), layer["mass_new"][b, h, 1, 0]]
    before = gathered[b, h]
    after = {t: before.get(t, 0.0) + float(m) for t, m in zip(tokens, step, strict=True)}
    text = [token for token in tokens if token >= first_text]
    scores = np.array([[after[token] for token in text]])
    kept = budget.choose(View(np.array([text]), scores, 0, 1, n_text))[0] == ACTIVE
    dropped = {token for token, stays in zip(text, kept, strict=True) if not stays}
    gathered[b, h] = {t: m for t, m in after.items() if t not in dropped}


def select_text(
    launch: Launch,
    layer: Layer,
    image_mask: torch.Tensor,
    first_image: int,
    limits: list[list[int]],
) -> None:
    """Add a step's attention, and evict, by `select_text` and `update`."""
    capacity, moves = layer["k_active"].shape[2], 40
    device = image_mask.device
    source = torch.full((1, BATCH, KV_HEADS, moves), UNSET, device=device)
    remaining = torch.zeros(1, BATCH, dtype=torch.int64, device=device)
    names = ("mass_active", "mass_new", "positions", "gathered", "active_len")
    values: dict[str, Any] = {
        "table": pointers([[layer[name] for name in names] + [capacity, capacity]]),
        "image_mask": image_mask,
        "first_image": torch.full((BATCH,), first_image, dtype=torch.int32, device=device),
        "budget": torch.tensor(limits, dtype=torch.int32, device=device),
        "source": source,
        "destination": torch.full_like(source, UNSET),
        "remaining": remaining,
    }
    values |= {"B": BATCH, "L": 1, "Hkv": KV_HEADS, "R": 2, "S": 1, "M": moves}
    values |= {"T": image_mask.shape[1]}
    launch(VARIANTS["select_text-1024"], values)
    layer["active_len"] = remaining[0].clone()
    run_update(launch, [layer], source, values["destination"])

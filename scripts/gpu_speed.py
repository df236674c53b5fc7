"""Speed of the kernels on a GPU, each figure a ratio within one run.

Launches are recorded into CUDA graphs that rotate over inputs larger together than the L2 cache,
and timed with CUDA events. Everything runs the packaged PTX except `tune`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from avl_plugins.kernels.catalog import MOVES, ROWS, VARIANTS, variant_of
from gpu_timing import DEVICE, Row, Work, copy_bandwidth, milliseconds, prepared, rotations, row
from kernel_cases import Attention, Launch, triton_launch
from kernel_moves import UNSET, pointers


@dataclass(frozen=True, slots=True)
class Model:
    """What is timed: by default LLaVA-NeXT-7B with an image at full resolution.

    Attributes:
        image, text: tokens while decoding; `text` counts those around the image and the answer.
        prompt: tokens of a prefill: 35 of text, the image, and text again.
        heads: query heads; a KV head serves one (MHA) or eight (GQA) of them.
    """

    image: int = 2880
    text: int = 160
    prompt: int = 3072
    heads: int = 32
    layers: int = 32
    batch: int = 8


MODEL = Model()
FORMS = ("fused_decode", "fused_decode_sliced")
RESTORED = ("restored_decode", "restored_decode_sliced")
FLASH = SDPBackend.FLASH_ATTENTION


class Decode:
    """One decode step, its inputs rotated. `active` rows of `kv_heads` heads are read."""

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        group: int,
        active: int,
        parked: int = 0,
        form: str = FORMS[0],
    ) -> None:
        self.case = Attention(
            form, "float16", 128, kv_heads, group, 1, active, max(parked, 1),
            (active,) * batch, (parked,) * batch,
        )  # fmt: skip
        rows = active + parked + 1
        self.bytes = 2 * 2 * 128 * batch * kv_heads * (rows + group)
        # Random once: what is read does not change the time.
        first = self.case.inputs(DEVICE)
        self.sets = [
            {name: tensor.clone() for name, tensor in first.items()}
            for _ in range(rotations(self.bytes))
        ]

    def time(self, launch: Launch, mass: bool, forms: Sequence[str] = FORMS) -> float:
        """Milliseconds of the fastest form, which TensorRT would take, with or without weights."""
        for one in self.sets:
            one["row_weights"].fill_(float(mass))
        cases = [replace(self.case, form=form) for form in forms]
        return min(
            milliseconds([prepared(case, launch, one) for one in self.sets]) for case in cases
        )

    def sdpa(self) -> float:
        """Milliseconds of torch's flash attention over the same active rows."""

        def work(one: dict[str, torch.Tensor]) -> Work:
            q, k, v = one["q"], one["k_active"], one["v_active"]
            return lambda: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, enable_gqa=self.case.group > 1
            )

        with sdpa_kernel(FLASH):
            return milliseconds([work(one) for one in self.sets])


def grouped() -> list[tuple[str, int, int]]:
    """Label, KV heads and group with a KV head for each query head, and for eight."""
    return [("MHA", MODEL.heads, 1), ("GQA 8", MODEL.heads // 8, 8)]


def decode_speed(launch: Launch, bandwidth: float) -> list[Row]:
    """Bandwidth of dense and sparse steps in a batch, and dense steps against torch at batch 1."""
    found = []
    for label, kv_heads, group in grouped():
        dense = Decode(MODEL.batch, kv_heads, group, MODEL.image + MODEL.text)
        sparse = Decode(MODEL.batch, kv_heads, group, MODEL.image // 10 + MODEL.text)
        for mass in (False, True):
            how = f"decode, batch {MODEL.batch}, {label}{', with mass' if mass else ''}"
            slow, fast = dense.time(launch, mass), sparse.time(launch, mass)
            judged = not mass  # the bytes asked for are those of attention alone
            for kind, one, time, wanted in (
                ("dense", dense, slow, 0.8),
                ("10 % core", sparse, fast, 0.6),
            ):
                share = one.bytes / (time * 1e-3) / bandwidth
                found += [
                    row(f"{how}, {kind}: time", time * 1e3, "us"),
                    row(f"{how}, {kind}: share of copy", share, "", wanted if judged else None),
                ]
            limit = 0.25 if judged else None
            found.append(row(f"{how}: 10 % core over dense", fast / slow, "", limit, least=False))
        del dense, sparse
    for label, kv_heads, group in grouped():
        one = Decode(1, kv_heads, group, MODEL.image + MODEL.text)
        own, torch_time = one.time(launch, mass=False), one.sdpa()
        name = f"decode, batch 1, {label}, dense"
        goal = 1.5 if group == 8 else None
        found += [
            row(f"{name}: time", own * 1e3, "us"),
            row(f"{name}: with mass", one.time(launch, mass=True) * 1e3, "us"),
            row(f"{name}: torch flash over ours", torch_time / own, "", goal),
        ]
    # With grouped heads, the last of these, alone.
    biased = Decode(1, kv_heads, group, MODEL.image + MODEL.text, form=RESTORED[0])
    again = biased.time(launch, mass=False, forms=RESTORED) / own
    found.append(row(f"{name}: with RESTORE's bias over without", again, ""))
    return found


def prefill_speed(launch: Launch) -> list[Row]:
    """Prefill with mass of a prompt of one image against torch's flash attention without it."""
    found, new = [], MODEL.prompt
    text = (*range(35), *range(35 + MODEL.image, new))
    for label, kv_heads, group in grouped():
        case = Attention(
            "fused_prefill", "float16", 128, kv_heads, group, new, 1, 1, (0,), (0,), weighted=text
        )
        inputs = case.inputs(DEVICE)
        inputs["row_weights"].zero_()
        read = sum(inputs[name].nbytes for name in ("q", "k_new", "v_new"))
        sets = [{n: t.clone() for n, t in inputs.items()} for _ in range(rotations(read))]

        def sdpa(one: dict[str, torch.Tensor], gqa: bool = group > 1) -> Work:
            q, k, v = one["q"], one["k_new"], one["v_new"]
            return lambda: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=gqa
            )

        works = [prepared(case, launch, one) for one in sets]
        alone = milliseconds(works)
        for one in sets:
            one["row_weights"][:, 0, -1] = 1
            one["row_weights"][:, 1, list(text)] = 1
        whole = milliseconds(works)
        with sdpa_kernel(FLASH):
            flash = milliseconds([sdpa(one) for one in sets])
        name = f"prefill, {new} rows, {label}"
        operations = 4 * 128 * MODEL.heads * new * (new + 1) / 2
        found += [
            row(f"{name}: time with mass", whole * 1e3, "us"),
            row(f"{name}: with mass", operations / (whole * 1e9), "TFLOPs"),
            row(f"{name}: torch flash over ours", flash / whole, "", 0.9),
            row(f"{name}: mass over the rest", whole / alone - 1, "", 0.05, least=False),
        ]
    return found


def refresh_speed(launch: Launch) -> list[Row]:
    """Selection and exchange of a refresh of all layers, over its attention."""
    layers, kv_heads = MODEL.layers, MODEL.heads
    core, parked = int(0.3 * MODEL.image), int(0.2 * MODEL.image)
    active = core + MODEL.text
    attention = Decode(1, kv_heads, 1, active, parked).time(launch, mass=True) * layers
    shape = (1, kv_heads)
    order = torch.randperm(core + parked, device=DEVICE)

    def filled(*size: int) -> torch.Tensor:
        return torch.randn(*shape, *size, 128, device=DEVICE).half()

    caches: list[list[torch.Tensor | int]] = []
    ranked: list[list[torch.Tensor | int]] = []
    for _ in range(layers):
        rows = [filled(n) for n in (active, active, parked, parked, 1, 1)]
        mass = [torch.rand(*shape, 2, n, device=DEVICE) for n in (active, parked)]
        positions = torch.zeros(*shape, active, dtype=torch.int64, device=DEVICE)
        positions[:, :, :core] = order[:core]
        places = [positions, order[core:][None].clone()]
        lengths = [torch.tensor([n], device=DEVICE) for n in (core, parked)]
        caches.append([*rows, active, parked])
        ranked.append([*mass, *places, *lengths, active, parked])
    moves = 2 * parked
    source = torch.full((layers, *shape, moves), UNSET, device=DEVICE)
    destination = torch.full_like(source, UNSET)
    values = {"source": source, "destination": destination, "M": moves, "L": layers}
    values |= {"B": 1, "Hkv": kv_heads, "R": 2, "S": 1, "D": 128}
    choose = {**values, "table": pointers(ranked)}
    move = {**values, "table": pointers(caches)}
    ranks = next(n for n in ROWS if n >= core + parked)
    limit = next(n for n in MOVES if n >= moves)
    first, second = VARIANTS[f"select_core-{ranks}"], VARIANTS[f"update-{limit}"]
    selecting = milliseconds([lambda: launch(first, choose)])
    updating = milliseconds([lambda: launch(second, move)])
    share = (selecting + updating) / attention
    name = f"refresh, {layers} layers"
    return [
        row(f"{name}: attention", attention * 1e3, "us"),
        row(f"{name}: select", selecting * 1e3, "us"),
        row(f"{name}: update", updating * 1e3, "us"),
        row(f"{name}: select and update over attention", share, "", 0.1, least=False),
    ]


def measure_speed(launch: Launch) -> list[Row]:
    """Every figure."""
    bandwidth = copy_bandwidth()
    found = [row("copy, device to device", bandwidth / 1e9, "GB/s")]
    found += decode_speed(launch, bandwidth)
    found += prefill_speed(launch)
    found += refresh_speed(launch)
    return found


def tune() -> list[Row]:
    """Times of other tile sizes, warps and stages, through Triton."""
    found: list[Row] = []
    decode = Decode(MODEL.batch, MODEL.heads, 1, MODEL.image + MODEL.text)
    case = Attention(
        "fused_prefill", "float16", 128, MODEL.heads, 1, MODEL.prompt, 1, 1, (0,), (0,), weighted=()
    )
    inputs = case.inputs(DEVICE)
    options = [
        (form, one, warps, stages)
        for form in FORMS
        for one in ({"BN": 16}, {"BN": 32}, {"BN": 64}, {"BN": 128})
        for warps in (4, 8)
        for stages in (2, 3, 4)
    ] + [
        ("fused_prefill", {"BM": rows, "BN": columns}, warps, stages)
        for rows in (64, 128)
        for columns in (32, 64, 128)
        for warps in (4, 8)
        for stages in (2, 3)
    ]
    for form, tiles, warps, stages in options:
        base = variant_of(form, "float16", 128)
        constants = {**base.constants, **tiles}
        other = replace(base, constants=constants, warps=warps, stages=stages)

        def launch(_: Any, values: Any, other: Any = other) -> None:
            triton_launch(other, values)

        name = f"{form} {tiles}, {warps} warps, {stages} stages"
        try:
            if form in FORMS:
                time = decode.time(launch, mass=False, forms=(form,))
            else:
                time = milliseconds([prepared(case, launch, inputs)])
        except Exception as error:  # too much shared memory, most often
            found.append({"name": name, "error": str(error)[:100]})
            continue
        found.append({"name": name, "value": time * 1e3, "unit": "us"})
    return found

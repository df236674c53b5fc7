"""Cases for the kernels, run through any launcher and held against the naive references.

The launcher is Triton (interpreted on a CPU, or on a GPU) or the packaged PTX; `gpu_check.py`,
`kernel_sweep.py` and the tests share these. Needs torch and numpy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from avl_plugins.kernels import naive
from avl_plugins.kernels.catalog import Variant, scale_bits, variant_of

Values = Mapping[str, Any]  # tensors and integers by argument name, without "_ptr"
Launch = Callable[[Variant, Values], None]

ATTENTION_INPUTS = (
    "q",
    "k_new",
    "v_new",
    "k_active",
    "v_active",
    "active_len",
    "k_parked",
    "v_parked",
    "parked_len",
    "row_weights",
)
STANDING = ("nearness", "row_standing", "active_standing", "parked_standing")
FAR = 300  # positions and distances are below


def triton_launch(variant: Variant, values: Values) -> None:
    """Run a variant with Triton: the interpreter under TRITON_INTERPRET=1, else a GPU."""
    kernel = getattr(importlib.import_module(variant.module), variant.kernel)
    arguments = [
        values[name.removesuffix("_ptr")]
        for name in kernel.arg_names
        if name not in variant.constants
    ]
    options = {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        "maxnreg": variant.registers,
    }
    kernel[variant.grid(values)](*arguments, **variant.constants, **options)


@dataclass(frozen=True, slots=True)
class Attention:
    """One call of SplitCacheAttention in one of the forms it has as kernels.

    Or of RestoredCacheAttention, where `form` begins with "restored".

    Attributes:
        form: "fused_decode", "fused_decode_sliced" or "fused_prefill".
        axes: of positions, by which rows stand.
        unlike: whether the KV heads' active rows are others than one another's.
        active_len, parked_len: one length a sequence; capacities are `active` and `parked`.
        weighted: which new rows have weights; None for all.
        constants: replaces tile sizes of the variant.
    """

    form: str
    dtype: str
    head_dim: int
    kv_heads: int
    group: int
    new: int
    active: int
    parked: int
    active_len: Sequence[int]
    parked_len: Sequence[int]
    weightings: int = 2
    weighted: Sequence[int] | None = None
    owners: int = 1
    constants: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    axes: int = 1
    unlike: bool = False

    @property
    def restores(self) -> bool:
        return self.form.startswith("restored")

    @property
    def given(self) -> tuple[str, ...]:
        """Names of all inputs, in the schema's order."""
        return ATTENTION_INPUTS + STANDING * self.restores

    @property
    def batch(self) -> int:
        return len(self.active_len)

    def inputs(self, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Fresh inputs in the schema's order; cache rows past the lengths are NaN."""
        generator = torch.Generator().manual_seed(self.seed)
        kind = getattr(torch, self.dtype)
        batch, heads = self.batch, self.kv_heads

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(kind)

        values: dict[str, torch.Tensor] = {
            "q": normal(batch, heads * self.group, self.new, self.head_dim) * 2,
            "k_new": normal(batch, heads, self.new, self.head_dim),
            "v_new": normal(batch, heads, self.new, self.head_dim),
        }
        for place, rows, lengths in (
            ("active", self.active, self.active_len),
            ("parked", self.parked, self.parked_len),
        ):
            values[f"k_{place}"] = normal(batch, heads, rows, self.head_dim)
            values[f"v_{place}"] = normal(batch, heads, rows, self.head_dim)
            for b, length in enumerate(lengths):
                values[f"k_{place}"][b, :, length:] = torch.nan
                values[f"v_{place}"][b, :, length:] = torch.nan
            values[f"{place}_len"] = torch.tensor(lengths)
        weights = torch.rand(batch, self.weightings, self.new, generator=generator)
        if self.weighted is not None:
            used = torch.zeros(self.new)
            used[list(self.weighted)] = 1
            weights *= used
        values["row_weights"] = weights
        if self.restores:
            values |= self._standing(generator)
        return {name: values[name].to(device) for name in self.given}

    def _standing(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Rows anywhere, that stand for up to 3 tokens; of several sequences one has no bias."""
        heads = self.kv_heads if self.unlike else 1

        def anywhere(*shape: int) -> torch.Tensor:
            found = torch.randint(FAR, (self.batch, *shape, self.axes + 1), generator=generator)
            found[..., -1] %= 4
            return found

        rows = anywhere(self.new)
        rows[1:2, :, -1] = 0
        near = torch.rand(self.axes, FAR, generator=generator)
        return {
            "nearness": (2 * near - 1) / self.axes,
            "row_standing": rows,
            "active_standing": anywhere(heads, self.active),
            "parked_standing": anywhere(1, self.parked),
        }


@dataclass(frozen=True, slots=True)
class Errors:
    """How far a result is from float64.

    Attributes:
        out: largest error over the largest error of rounding the exact result.
        mass: largest error over the largest sum of weights, where that is above 1.
    """

    out: float
    mass: float


def attend(
    case: Attention, launch: Launch, inputs: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """out and the three masses of a case; they start as NaN."""
    device = inputs["q"].device
    rows = {"active": case.active, "parked": case.parked, "new": case.new}

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=device)

    values: dict[str, Any] = {
        **inputs,
        "out": empty(*inputs["q"].shape, dtype=inputs["q"].dtype),
        **{f"mass_{n}": empty(case.batch, case.kv_heads, case.weightings, rows[n]) for n in rows},
        "B": case.batch,
        "Hkv": case.kv_heads,
        "S": case.new,
        "A": case.active,
        "P": case.parked,
        "R": case.weightings,
        "G": case.group,
        "scale_bits": scale_bits(case.head_dim**-0.5),
        "owners": case.owners,
    }
    if case.restores:
        values |= {"X": case.axes, "M": FAR, "F": case.kv_heads if case.unlike else 1}
    variant = variant_of(case.form, case.dtype, case.head_dim)
    launch(replace(variant, constants={**variant.constants, **case.constants}), values)
    return [values[name] for name in ("out", "mass_active", "mass_parked", "mass_new")]


def attention_errors(
    case: Attention, inputs: Mapping[str, torch.Tensor], outputs: Sequence[torch.Tensor]
) -> Errors:
    """Errors against `naive.attention`; NaN anywhere is an infinite error."""
    arrays: list[Any] = [inputs[name].double().cpu().numpy() for name in ATTENTION_INPUTS]
    for name in ("active_len", "parked_len"):
        arrays[ATTENTION_INPUTS.index(name)] = inputs[name].cpu().numpy()
    arrays.append(case.head_dim**-0.5)
    if case.restores:
        arrays.append([inputs[name].cpu().numpy() for name in STANDING])
    exact = [torch.from_numpy(array) for array in naive.attention(*arrays)]
    found = [tensor.double().cpu() for tensor in outputs]
    rounding = (exact[0].to(outputs[0].dtype).double() - exact[0]).abs().max().item()
    error = (found[0] - exact[0]).abs().nan_to_num(torch.inf).max().item()
    weight = max(1.0, inputs["row_weights"].abs().sum(2).max().item())
    mass = max(
        (a - b).abs().nan_to_num(torch.inf).max().item()
        for a, b in zip(found[1:], exact[1:], strict=True)
    )
    # A row that sees one key is exact: then any error at all is too large.
    ratio = error / rounding if rounding else (0.0 if error == 0 else np.inf)
    return Errors(ratio, mass / weight)

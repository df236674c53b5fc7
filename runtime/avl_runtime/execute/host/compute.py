"""What a prompt's or a picture's rows are multiplied in on a CPU: float32, or bf16 on AMX.

Few rows, as those of a decode step or of drafts that are checked, are computed as ever.
"""

from __future__ import annotations

from typing import Literal

from avl_plugins import cpu
from avl_plugins.cpu.host import host
from avl_plugins.errors import quoted
from avl_plugins.schema import INT8, RowType
from avl_runtime.execute.protocol import COMPUTES, BackendError
from avl_runtime.package.manifest import CAUSAL, Manifest

ATTENTION, LINEARS = "avl.attention", "avl.linears"  # entries that the kernels' library reads
VNNI = "AVX-512, VNNI"  # as kernels call what products of bytes are taken with
SIDE = 16  # and what head sizes are multiples of there (prompt_codes.c)


def check_compute(compute: object) -> None:
    """Refuse what is none of COMPUTES.

    Raises:
        BackendError: it is not.
    """
    if not isinstance(compute, str) or compute not in COMPUTES:
        raise BackendError(
            f"expected compute to be {', '.join(COMPUTES[:-1])} or {COMPUTES[-1]}, found "
            f"{quoted(compute)}; choose one of them"
        )


def compute_entries(
    compute: str, manifest: Manifest, part: Literal["decoder", "vision"] = "decoder"
) -> dict[str, str]:
    """Entries of the session configuration; none for packages in fp16, which kernels do not take.

    With `auto`, attention of quantized layers is in bf16 where there is AMX: their activations are
    rounded to 8 bits by linears, which changes logits more (benchmarks/prompt-rounding.json). Where
    there is none but VNNI, attention over rows of 8 bits is in whole numbers of 16 by 8 bits, and
    that of encoders in whole numbers of 16 bits.
    Linears of quantized weights take AMX by themselves, as their op lets them.

    Args:
        compute: one of COMPUTES.
        part: what the session's graph computes.

    Raises:
        BackendError: bf16 is asked for, and there is no AMX here, or rows are not float32.
    """
    if manifest.dtype != "fp32":
        if compute == "bf16":
            raise BackendError(
                "--compute bf16: expected a package that computes in fp32, found "
                f"{manifest.dtype}; export with --dtype fp32, which reads the same weights"
            )
        return {}
    if compute == "bf16":
        kernels = host()
        if kernels is None or not kernels.runs_amx():
            found = "no compiled kernels" if kernels is None else kernels.instructions()
            raise BackendError(
                "--compute bf16: expected a processor with AMX, and kernels that may take it, "
                f"found {found}; leave it out, or see avl-doctor, {cpu.AMX_SWITCH} and "
                f"{cpu.SWITCH}"
            )
        return {ATTENTION: "bf16", LINEARS: "bf16"}
    quantized = manifest.quantization is not None and part in manifest.quantization.parts
    return {ATTENTION: "bf16" if compute == "auto" and quantized else "fp32", LINEARS: "fp32"}


def told(
    decoder: dict[str, str], vision: dict[str, str], kept: RowType, manifest: Manifest
) -> str | None:
    """Which kernels run with these entries and rows, for people; None where there are none."""
    kernels = host() if decoder else None
    if kernels is None:
        return None
    text = kernels.instructions()
    for part, entries in (("prompts", decoder), ("pictures", vision)):
        names = (("attention", ATTENTION), ("linears", LINEARS))
        rounded = [name for name, key in names if entries[key] == "bf16"]
        if rounded and kernels.runs_amx():
            text += f"; {part}: {' and '.join(rounded)} in bf16"
        elif part == "pictures" and rounded and VNNI in text:
            text += "; pictures: attention in whole numbers"
        elif part == "prompts" and rounded and kept == INT8 and VNNI in text:
            fits = not any(manifest.dims.head_size(n) % SIDE for n in manifest.row_layers)
            text += "; prompts: attention in whole numbers" if fits else ""
    if manifest.restores and "; prompts: attention" in text:
        text += "; prompts with positions=restore: attention in fp32"
    if kept.parked_bits is not None:  # the ops of such rows have a body alone
        text += f"; rows in {kept.name}: widened by standard ops in every step"
    if manifest.reach != CAUSAL:  # where a mask is needed
        text += f"; prompts with {manifest.reach}: attention by standard ops"
    return text

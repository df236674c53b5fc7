"""PTX ahead of time: compiling a variant, taking what is ours to launch from it, and gates.

Needs Triton and no GPU; Triton's own ptxas assembles for the gates. Compile in a process that does
not interpret kernels (TRITON_INTERPRET unset) and with a fresh TRITON_CACHE_DIR.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from avl_plugins.errors import AvlError
from avl_plugins.kernels.catalog import Variant

PTX_VERSION = 80  # what a CUDA 12.0 driver reads; enough for sm_80 and sm_90a alike
SHARED_LIMIT = 48 << 10  # bytes a launch may use without asking the driver


class GateError(AvlError):
    """A kernel was compiled into something slow, or into something that cannot be launched."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """PTX and what a launch of it needs.

    Attributes:
        target: "sm_80" (generic) or "sm_90a".
        arguments: names and Triton types, in the order of the PTX's parameters.
        shared: bytes of shared memory.
    """

    ptx: str
    entry: str
    target: str
    arguments: tuple[tuple[str, str], ...]
    threads: int
    shared: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """What ptxas says of PTX on one architecture."""

    registers: int
    spilled: int  # bytes


def compile_variant(variant: Variant, capability: int) -> Artifact:
    """Compile `variant` for a compute capability such as 80.

    Raises:
        GateError: the kernel needs something that only Triton's launcher supplies.
    """
    function = getattr(importlib.import_module(variant.module), variant.kernel)
    signature = {
        name: "constexpr" if name in variant.constants else variant.argument_type(name)
        for name in function.arg_names
    }
    # Without the hint there are no vector loads, no cp.async, and spills.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(function, signature, dict(variant.constants), aligned)
    options = {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        "ptx_version": PTX_VERSION,
        "enable_fp_fusion": True,
        "maxnreg": variant.registers,
    }
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # paths of this machine
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _artifact(variant, compiled, signature)


def _artifact(
    variant: Variant, compiled: triton.compiler.CompiledKernel, signature: dict[str, str]
) -> Artifact:
    data, text = compiled.metadata, compiled.asm["ptx"]
    arguments = tuple((n, kind) for n, kind in signature.items() if kind != "constexpr")
    needs = {
        "scratch memory": data.global_scratch_size or data.profile_scratch_size,
        "tensor memory": data.tmem_size,
        "clusters": data.num_ctas != 1,
        "a cooperative launch": data.launch_cooperative_grid,
        "a dependent launch": data.launch_pdl,
        "tensor descriptors": data.tensordesc_meta,
    }
    for need, found in needs.items():
        if found:
            raise GateError(f"{variant.name}: expected a plain launch, found {need}; rewrite it")
    return Artifact(
        ptx=without_hidden(text, len(arguments)),
        entry=data.name,
        target=_match(r"^\.target (\w+)", text),
        arguments=arguments,
        threads=32 * data.num_warps,
        shared=data.shared,
    )


def parameters(ptx: str) -> tuple[str, ...]:
    """The kernel's parameters as declared, such as ".param .u32 update_param_4"."""
    listed = _match(r"\.entry \w+\(\n(.*?)\n\)", ptx)
    return tuple(" ".join(one.split()) for one in listed.split(",\n"))


def without_hidden(ptx: str, count: int) -> str:
    """`ptx` without the two scratch pointers that Triton appends to `count` arguments.

    Raises:
        GateError: there are others than two, or the kernel reads them.
    """
    listed = _match(r"\.entry \w+\(\n(.*?)\n\)", ptx)
    declared = listed.split(",\n")
    begin = ptx.index(listed)
    body = ptx[begin + len(listed) :]
    hidden = [one.split()[-1] for one in declared[count:]]
    if len(hidden) != 2 or any(re.search(rf"\b{name}\b", body) for name in hidden):
        raise GateError(
            f"expected {count} parameters and two unread scratch pointers, found "
            f"{len(declared)} parameters; check what this version of Triton appends"
        )
    return ptx[:begin] + ",\n".join(declared[:count]) + body


def assemble(ptx: str, architecture: str) -> Assembled:
    """Assemble `ptx` for an architecture such as "sm_87" with Triton's ptxas.

    Raises:
        GateError: it does not assemble.
    """
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    number = int(re.sub(r"\D", "", architecture))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        tool = tools / ("ptxas-blackwell" if number >= 90 else "ptxas")
        command = [
            str(tool),
            "-v",
            f"--gpu-name={architecture}",
            str(source),
            "-o",
            f"{source}.out",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise GateError(
            f"expected PTX that assembles for {architecture}, found "
            f"{done.stderr.strip().splitlines()[0]}; compile it anew"
        )
    return Assembled(
        registers=int(_match(r"Used (\d+) registers", done.stderr)),
        spilled=int(_match(r"(\d+) bytes spill stores", done.stderr)),
    )


INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async",
    "mma": r"mma\.sync",
    "ldmatrix": r"ldmatrix",
    "cp_async_16": r"cp\.async\.c[ag]\.shared\.global.*, 0x10,",
    "cp_async_narrower": r"cp\.async\.ca\.shared\.global.*, 0x[48],",
    "load_16": r"ld\.global[.\w:]*\.(?:v4\.b32|v2\.b64)",
    "load": r"ld\.global",
    "store_16": r"st\.global[.\w:]*\.(?:v4\.b32|v2\.b64)",
    "store": r"st\.global",
    "atomic": r"atom\.",
    "barrier": r"bar\.sync",
}


def instructions(ptx: str) -> dict[str, int]:
    """How often each kind of instruction stands in `ptx`."""
    return {name: len(re.findall(pattern, ptx)) for name, pattern in INSTRUCTIONS.items()}


def check(variant: Variant, artifact: Artifact, architecture: str, assembled: Assembled) -> None:
    """Every gate of a compiled kernel, as assembled for an architecture.

    Raises:
        GateError: the first that fails.
    """
    found = instructions(artifact.ptx)
    kernel = variant.kernel
    streams = kernel in ("fused", "restored")
    wanted = {
        "no spills": assembled.spilled == 0,
        "at most 48 KB of shared memory": artifact.shared <= SHARED_LIMIT,
        "its own parameters only": len(parameters(artifact.ptx)) == len(artifact.arguments),
        "16-byte cp.async": not streams or found["cp_async_16"] > 0,
        "16-byte loads": kernel.startswith("select") or bool(found["load_16"]),
        "matrix instructions": not streams or found["mma"] + found["wgmma"] > 0,
        "16-byte stores": kernel != "update" or found["store_16"] == found["store"],
        "a barrier between reads and writes": kernel != "update" or _reads_first(artifact.ptx),
    }
    for gate, passed in wanted.items():
        if not passed:
            raise GateError(
                f"{variant.name} for {architecture}: expected {gate}, found {found}, "
                f"{artifact.shared} bytes shared, {assembled.spilled} spilled; check alignment "
                "hints and tile sizes"
            )


def _reads_first(ptx: str) -> bool:
    last_read = [match.end() for match in re.finditer(r"ld\.global", ptx)][-1]
    first_write = ptx.index("st.global")
    return "bar.sync" in ptx[last_read:first_write]


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise GateError(f"expected {pattern!r} in what Triton and ptxas give, found none; check it")
    return found[1]

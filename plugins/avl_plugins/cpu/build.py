"""Compile the CPU kernels: `python -m avl_plugins.cpu.build`, and what an installation runs.

Only the standard library, as it runs before anything is installed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
# Compiled once for every level of instructions:
KERNELS, FEW, PROMPT, CODES = "attention.c", "few.c", "prompt.c", "codes.c"
EPILOGUE, DELTA, CONVOLVE = "epilogue.c", "delta.c", "convolve.c"
HEADS, LIKENESS, NORM = "heads.c", "likeness.c", "norm.c"
# For the levels above the compiler's own:
LINEAR, SCREEN, QUANTIZED, STACKED = "linear.c", "screen.c", "quantized.c", "stacked.c"
CODED = "coded.c"
# Empty for compilers and processors that do not know it:
AMX = ("linear_amx.c", "quantized_amx.c", "prompt_amx.c")
# The same, of those with AVX-512 VNNI:
WORDS = ("prompt_codes.c", "prompt_words.c")
SOURCES = (
    *(KERNELS, FEW, "few_run.c", "append.c", "evict.c", "exchange.c", "mass.c", "refresh.c"),
    *("step.c", "unmap.c", "choosing.c", "greedy.c"),
    *(PROMPT, "prompt_plan.c", "prompt_run.c", CODES, EPILOGUE, HEADS, DELTA, CONVOLVE),
    *(LIKENESS, NORM),
    *("processor.c", "levels.c"),
    *("ort_op.c", "ort_step.c", "ort_codes.c", "ort_mutual.c", "ort_linear.c", "ort_logits.c"),
    *("ort_quantized.c", "ort_pack.c", "ort_state.c", "ort_heads.c", "ort_norm.c"),
    *("experts.c", "ort_experts.c", "ort_coded_experts.c"),
    "ort_ops.c",
)
LIBRARY = FOLDER / ("avl_cpu.dylib" if sys.platform == "darwin" else "avl_cpu.so")
COMPILERS = ("cc", "gcc", "clang")
# Sums may be taken in any order, as vectors need; not -ffast-math, which has a library change how
# the whole process treats small numbers when it is loaded.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fno-math-errno",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)
# But in these, which say themselves in which order they take sums: a row's result must not depend
# on how many rows there are, and equal tokens must be as like to each other.
IN_ORDER = dict.fromkeys((FEW, LIKENESS, QUANTIZED), ("-fno-associative-math",))
# What is missing is found here, and not when a program loads the library.
LINKING = ("-Wl,-z,defs", "-lm") if sys.platform == "linux" else ()
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, *(f"-mavx512{part}" for part in ("f", "vl", "bw", "dq")))
# Beside the compiler's own level; `levels.c` takes the best that the processor has, of which
# `processor.c` knows.
_NUMBERS = {"avx2": _AVX2, "avx512": _AVX512}
LEVELS = {f"avl_step_{level}": (*options, "-mf16c") for level, options in _NUMBERS.items()}
CODES_LEVELS = {f"avl_codes_{level}": options for level, options in _NUMBERS.items()}
EPILOGUE_LEVELS = {f"avl_epilogues_{level}": options for level, options in _NUMBERS.items()}
HEADS_LEVELS = {f"avl_heads_{level}": options for level, options in _NUMBERS.items()}
NORM_LEVELS = {f"avl_norm_{level}": options for level, options in _NUMBERS.items()}
DELTA_LEVELS = {f"avl_delta_{level}": options for level, options in _NUMBERS.items()}
CONVOLVE_LEVELS = {f"avl_convolve_{level}": options for level, options in _NUMBERS.items()}
LIKENESS_LEVELS = {f"avl_likeness_{level}": options for level, options in _NUMBERS.items()}
PROMPT_LEVELS = {f"avl_prompt_{level}": options for level, options in _NUMBERS.items()}
LINEAR_LEVELS = {
    "avl_linear_avx2": (*_AVX2, "-mf16c"),
    "avl_linear_avx512": (*_AVX512, "-mf16c"),
}
SCREEN_LEVELS = {
    level.replace("linear", "screen"): options for level, options in LINEAR_LEVELS.items()
}
STACKED_LEVELS = {
    level.replace("linear", "stacked"): options for level, options in LINEAR_LEVELS.items()
}
_VNNI = (*_AVX512, "-mavx512vnni")
_AMX = (*_VNNI, "-mavx512bf16", "-mamx-tile")
FEW_LEVELS = {
    f"avl_few_{level}": options
    for level, options in {**_NUMBERS, "vnni": _VNNI, "amx": (*_AMX, "-mamx-int8")}.items()
}
QUANTIZED_LEVELS = {
    "avl_quantized_avx2": (*_AVX2, "-mf16c"),
    "avl_quantized_avx_vnni": (*_AVX2, "-mf16c", "-mavxvnni"),
    "avl_quantized_avx512": _VNNI,
}
CODED_LEVELS = {
    level.replace("quantized", "coded"): options for level, options in QUANTIZED_LEVELS.items()
}
AMX_LEVEL = (*_AMX, "-mamx-bf16")
X86 = ("x86_64", "AMD64")
X86_LEVELS = {
    KERNELS: LEVELS,
    FEW: FEW_LEVELS,
    PROMPT: PROMPT_LEVELS,
    CODES: CODES_LEVELS,
    EPILOGUE: EPILOGUE_LEVELS,
    HEADS: HEADS_LEVELS,
    DELTA: DELTA_LEVELS,
    CONVOLVE: CONVOLVE_LEVELS,
    LIKENESS: LIKENESS_LEVELS,
    NORM: NORM_LEVELS,
    LINEAR: LINEAR_LEVELS,
    SCREEN: SCREEN_LEVELS,
    STACKED: STACKED_LEVELS,
    QUANTIZED: QUANTIZED_LEVELS,
    CODED: CODED_LEVELS,
}
ARM = ("aarch64", "arm64")  # with 64 bits, and NEON
ARM_LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    LINEAR: {"avl_linear_neon": ()},
    SCREEN: {"avl_screen_neon": ()},
    STACKED: {"avl_stacked_neon": ()},
    QUANTIZED: {
        "avl_quantized_neon": (),
        "avl_quantized_dotprod": ("-march=armv8.2-a+dotprod",),
        "avl_quantized_i8mm": ("-march=armv8.2-a+dotprod+i8mm",),
    },
    CODED: {"avl_coded_neon": (), "avl_coded_dotprod": ("-march=armv8.2-a+dotprod",)},
}


class Unit(NamedTuple):
    """What a compiler makes one object file of: a source, and options beside FLAGS."""

    source: str
    name: str
    options: tuple[str, ...] = ()


class CompileError(Exception):
    """There is no C compiler, or it refused the sources."""


def compiler() -> str:
    """The C compiler: $CC, or the first of COMPILERS that is there.

    Raises:
        CompileError: none is there.
    """
    for name in filter(None, (os.environ.get("CC"), *COMPILERS)):
        found = shutil.which(name)
        if found:
            return found
    raise CompileError(
        f"expected a C compiler ({', '.join(COMPILERS)} or $CC), found none; install one "
        "(Debian: gcc)"
    )


def build() -> Path:
    """Compile the sources beside this file into LIBRARY, which is replaced as a whole.

    Raises:
        CompileError: it cannot be done here.
    """
    if sys.platform == "win32":
        raise CompileError("expected Linux or macOS, found Windows; nothing to do")
    found = compiler()
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".build-") as folder:
        objects = [compiled(found, unit, Path(folder)) for unit in units(found)]
        staged = Path(folder, LIBRARY.name)
        _run(found, "-shared", *objects, "-o", str(staged), *LINKING)
        staged.replace(LIBRARY)
    return LIBRARY


def units(found: str, machine: str | None = None) -> Iterator[Unit]:
    """What a compiler makes the library of, for this machine or another (`platform.machine()`)."""
    machine = machine or platform.machine()
    yield from (Unit(name, name) for name in SOURCES)
    of_machine = X86_LEVELS if machine in X86 else ARM_LEVELS if machine in ARM else {}
    for source, levels in of_machine.items():
        for level, options in levels.items():
            is_known = source not in (QUANTIZED, CODED, FEW) or knows(found, options)
            known = options if is_known else ("-DAVL_UNKNOWN",)  # then the file is without kernels
            yield Unit(source, level, (f"-DAVL_LEVEL={level}", *known))
    has_amx = machine in X86 and knows(found, AMX_LEVEL)
    amx_level = ("-DAVL_AMX", *AMX_LEVEL) if has_amx else ()
    yield from (Unit(name, name, amx_level) for name in AMX)
    has_vnni = machine in X86 and knows(found, _VNNI)
    yield from (Unit(name, name, ("-DAVL_VNNI", *_VNNI) if has_vnni else ()) for name in WORDS)


def knows(found: str, options: Sequence[str]) -> bool:
    """Whether a compiler takes options."""
    command = [found, *options, "-fsyntax-only", "-x", "c", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


def compiled(found: str, unit: Unit, folder: Path) -> str:
    """The object file of a unit, in `folder`.

    Raises:
        CompileError: the compiler refused it.
    """
    out = str(folder / f"{unit.name}.o")
    options = (*FLAGS, *IN_ORDER.get(unit.source, ()), *unit.options)
    _run(found, *options, "-c", str(FOLDER / unit.source), "-o", out)
    return out


def _run(found: str, *arguments: str) -> None:
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise CompileError(f"expected {found} to compile {FOLDER}, found: {done.stderr[:2000]}")


if __name__ == "__main__":
    try:
        print(build())
    except CompileError as problem:
        sys.exit(f"error: {problem}")

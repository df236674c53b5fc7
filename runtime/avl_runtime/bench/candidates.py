"""Who is measured; and avl's own policies as such. Other libraries: `against`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from avl_plugins.policies import Action, parse
from avl_runtime.bench.errors import BenchError
from avl_runtime.bench.workers import own_command
from avl_runtime.package.package import Package


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the report, and how its worker is started.

    Attributes:
        job: what its worker is told, beside what all are told.
        same_prompt: whether it is asked the very same, pictures included.
    """

    name: str
    runs_on: str
    command: tuple[str, ...]
    actions: tuple[Action, ...] = ()
    job: Mapping[str, Any] = field(default_factory=dict)
    same_prompt: bool = True
    note: str = ""


def own_candidates(
    packages: Sequence[Package],
    policies: Sequence[str],
    backends: Sequence[str],
    kept: Sequence[str] = ("auto",),
    computes: Sequence[str] = ("auto",),
) -> list[Candidate]:
    """Every policy on every backend and package, named apart by what there are several of.

    Args:
        kept: ways to keep cached rows, of `protocol.KV`.
        computes: what prompts are multiplied in, of `protocol.COMPUTES`.

    Raises:
        PolicyError: a policy is unknown.
        BenchError: the packages are not of the same model.
    """
    first = packages[0]
    found: list[Candidate] = []
    for package in packages[1:]:
        if package.manifest.dims != first.manifest.dims:
            raise BenchError(
                f"--beside {package.folder}: expected a package of a model of the same sizes as "
                f"{first.folder}'s, found another; measure it alone"
            )
    for package, backend, kv, compute, policy in product(
        packages, backends, kept, computes, map(parse, policies)
    ):
        apart = [weights_of(package)] if len(packages) > 1 else []
        apart += [backend] if len(backends) > 1 else []
        apart += [f"{kv} rows"] if len(kept) > 1 else []
        apart += [f"{compute} prompts"] if len(computes) > 1 else []
        name = str(policy) + (f" [{', '.join(apart)}]" if apart else "")
        job = {
            "package": str(package.folder),
            "policy": str(policy),
            "backend": backend,
            "kv": kv,
            "compute": compute,
        }
        own = Candidate(name, "avl", tuple(own_command()), policy.actions(), job)
        if any(one.name == own.name for one in found):
            raise BenchError(f"expected each candidate once, found {own.name} twice")
        found.append(own)
    return found


def weights_of(package: Package) -> str:
    """fp32, int4, …"""
    quantized = package.manifest.quantization
    return package.manifest.dtype if quantized is None else f"int{quantized.bits}"

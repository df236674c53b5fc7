"""Who is measured: avl's own policies, and other libraries on the same checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avl_plugins.errors import quoted
from avl_plugins.policies import Action, parse
from avl_runtime.bench.errors import BenchError
from avl_runtime.bench.workers import foreign_command, own_command
from avl_runtime.package.package import Package

# What a peer needs, by module, and what installs that.
PEERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "transformers": (("torch", "transformers", "PIL"), "torch transformers pillow"),
    "onnxruntime-genai": (
        ("onnxruntime_genai", "onnx", "onnx_ir", "torch", "transformers", "safetensors"),
        "'onnxruntime-genai==0.18.*' onnx onnx-ir torch transformers",
    ),
}
ATTENTIONS = ("eager", "sdpa")
GENAI_NOTE = (
    "its model builder's text decoder of the same weights; visual tokens are text tokens here, so "
    "as many rows go through the decoder, but pictures are not encoded and answers differ"
)
_LOOK = """
import sys
from importlib.util import find_spec

print(*[name for name in sys.argv[1:] if not find_spec(name)])
"""


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
    packages: Sequence[Package], policies: Sequence[str], backends: Sequence[str]
) -> list[Candidate]:
    """Every policy on every backend and package, named apart by what there are several of.

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
    for package in packages:
        for backend in backends:
            for policy in map(parse, policies):
                apart = [weights_of(package)] if len(packages) > 1 else []
                apart += [backend] if len(backends) > 1 else []
                name = str(policy) + (f" [{', '.join(apart)}]" if apart else "")
                job = {"package": str(package.folder), "policy": str(policy), "backend": backend}
                own = Candidate(name, "avl", tuple(own_command()), policy.actions(), job)
                if any(one.name == own.name for one in found):
                    raise BenchError(f"expected each candidate once, found {own.name} twice")
                found.append(own)
    return found


def peer_candidates(
    packages: Sequence[Package],
    against: Sequence[str],
    python: str | None,
    checkpoint: Path | None,
) -> list[Candidate]:
    """Other libraries, with the checkpoint that the packages were made from.

    Args:
        python: an interpreter for peers that this one lacks.
        checkpoint: None for the folder that a package records.

    Raises:
        BenchError: a peer is unknown or missing, or the checkpoint is.
    """
    if not against:
        return []
    package = packages[0]
    recorded = [one.manifest.weights.folder for one in packages]
    folder = checkpoint or next((Path(one) for one in recorded if one is not None), None)
    if folder is None or not (folder / "config.json").is_file():
        raise BenchError(
            f"--against: expected the checkpoint that {package.folder} was made from, found none "
            f"at {folder or 'the package itself'}; name its folder with --checkpoint"
        )
    found = []
    for peer in dict.fromkeys(against):
        if peer not in PEERS:
            raise BenchError(f"--against: expected {' or '.join(PEERS)}, found {quoted(peer)}")
        interpreter = _interpreter(peer, python)
        if peer == "transformers":
            command = tuple(
                foreign_command(interpreter, "avl_runtime.bench.peers.transformers_peer")
            )
            found += [
                Candidate(
                    f"transformers {attention}",
                    peer,
                    command,
                    (),
                    {"checkpoint": str(folder), "attention": attention},
                )
                for attention in ATTENTIONS
            ]
        else:
            command = tuple(foreign_command(interpreter, "avl_runtime.bench.peers.genai_peer"))
            bits = package.manifest.quantization
            job = {"checkpoint": str(folder), "precision": f"int{bits.bits}" if bits else "fp32"}
            found.append(Candidate(peer, peer, command, (), job, False, GENAI_NOTE))
    return found


def weights_of(package: Package) -> str:
    """fp32, int4, …"""
    quantized = package.manifest.quantization
    return package.manifest.dtype if quantized is None else f"int{quantized.bits}"


def _interpreter(peer: str, python: str | None) -> str:
    """This Python if it has the peer, else the one named for peers."""
    modules, packages = PEERS[peer]
    for interpreter in filter(None, (sys.executable, python)):
        command = [interpreter, "-c", _LOOK, *modules]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        except OSError as error:
            raise BenchError(
                f"--peer-python: expected a Python interpreter, found {interpreter}: {error}"
            ) from None
        missing = done.stdout.split()
        if not done.returncode and not missing:
            return interpreter
    where = python or "peers/bin/python"
    make = "" if python else "python -m venv peers && "
    told = f" and name it with --peer-python {where}" if python is None else ""
    raise BenchError(
        f"--against {peer}: expected {', '.join(modules)}, found no {', '.join(missing)}; run: "
        f"{make}{where} -m pip install {packages}{told}"
    )

"""Other libraries as candidates: what each needs, and as what it is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avl_plugins.errors import quoted
from avl_runtime.bench.boot import foreign_command
from avl_runtime.bench.candidates import Candidate
from avl_runtime.bench.errors import BenchError
from avl_runtime.package.package import Package

TEXT_NOTE = (
    "the text decoder of the same weights; visual tokens are text tokens here, so as many rows go "
    "through the decoder, but pictures are not encoded and answers differ"
)
ATTENTIONS = ("eager", "sdpa")
# Of a config.json, as the manifest calls them; a config may leave out what is its class's default.
SIZES = {"hidden_size": "hidden_size", "num_hidden_layers": "num_layers"}
LOOK_S = 60  # how long an interpreter may take to say what it has
_LOOK = """
import sys
from importlib.util import find_spec

def lacks(name):
    try:
        return find_spec(name) is None
    except ModuleNotFoundError:
        return True

print("lacks", *filter(lacks, sys.argv[1:]))
"""

# Of a checkpoint's folder, the bits of the first package's weights (None: as stored), and what
# runs a worker's module.
Make = Callable[[str, int | None, Callable[[str], tuple[str, ...]]], Iterator[Candidate]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A library beside avl.

    Attributes:
        modules: it needs, by their names in Python; `packages`: what brings them, for pip.
        candidates: what is measured of it.
    """

    modules: tuple[str, ...]
    packages: str
    candidates: Make


def _transformers(
    checkpoint: str, bits: int | None, worker: Callable[[str], tuple[str, ...]]
) -> Iterator[Candidate]:
    for attention in ATTENTIONS:
        job = {"checkpoint": checkpoint, "attention": attention}
        name = f"transformers {attention}"
        yield Candidate(name, "transformers", worker("transformers_peer"), (), job)


def _genai(
    checkpoint: str, bits: int | None, worker: Callable[[str], tuple[str, ...]]
) -> Iterator[Candidate]:
    name = "onnxruntime-genai"
    job = {"checkpoint": checkpoint, "precision": f"int{bits}" if bits else "fp32"}
    yield Candidate(name, name, worker("genai_peer"), (), job, False, TEXT_NOTE)


def _openvino(
    checkpoint: str, bits: int | None, worker: Callable[[str], tuple[str, ...]]
) -> Iterator[Candidate]:
    """By its own precision, which is bf16 where the processor computes in that, and in fp32."""
    weights = f"int{bits}" if bits else "fp16"
    for name, precision in (("openvino", None), ("openvino f32", "f32")):
        job = {"checkpoint": checkpoint, "weights": weights, "precision": precision}
        job["rows"] = "u8" if bits else "f16"
        yield Candidate(name, "openvino", worker("openvino_peer"), (), job, False, TEXT_NOTE)


def _llama(
    checkpoint: str, bits: int | None, worker: Callable[[str], tuple[str, ...]]
) -> Iterator[Candidate]:
    weights = f"q{bits}_0" if bits else "f16"
    for name, flash in (("llama.cpp", False), ("llama.cpp flash", True)):
        job = {"checkpoint": checkpoint, "weights": weights, "flash": flash}
        yield Candidate(name, "llama.cpp", worker("llama_peer"), (), job, False, TEXT_NOTE)


PEERS: Mapping[str, Peer] = {
    "transformers": Peer(
        ("torch", "transformers", "PIL"), "torch transformers pillow", _transformers
    ),
    "onnxruntime-genai": Peer(
        ("onnxruntime_genai", "onnx", "onnx_ir", "torch", "transformers", "safetensors"),
        "onnxruntime-genai==0.18.0 onnx onnx-ir torch transformers",
        _genai,
    ),
    "openvino": Peer(
        ("openvino_genai", "openvino_tokenizers", "optimum.intel", "nncf", "torch", "safetensors"),
        "openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 optimum-intel==2.2.0 "
        "nncf==3.4.0 torch",
        _openvino,
    ),
    "llama.cpp": Peer(
        ("llama_cpp", "gguf", "torch", "safetensors"),
        "llama-cpp-python==0.3.36 gguf==0.19.0 torch safetensors",
        _llama,
    ),
}


def peer_candidates(
    packages: Sequence[Package],
    against: Sequence[str],
    python: str | None,
    checkpoint: Path | None,
) -> list[Candidate]:
    """Other libraries, with the checkpoint that the packages were made from.

    Their weights have as many bits as those of the first package.

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
    _check_sizes(folder, package)
    quantized = package.manifest.quantization
    found: list[Candidate] = []
    for peer in dict.fromkeys(against):
        if peer not in PEERS:
            raise BenchError(f"--against: expected {' or '.join(PEERS)}, found {quoted(peer)}")
        found_python = interpreter(peer, python)

        def worker(module: str, runs: str = found_python) -> tuple[str, ...]:
            return tuple(foreign_command(runs, f"avl_runtime.bench.peers.{module}"))

        bits = None if quantized is None else quantized.bits
        found += PEERS[peer].candidates(str(folder), bits, worker)
    return found


def _check_sizes(folder: Path, package: Package) -> None:
    """Refuse a checkpoint whose decoder has other sizes than the package's."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        inner = config.get("text_config", config)
        found = {name: inner.get(name) for name in SIZES}
    except (OSError, ValueError, AttributeError) as error:
        raise BenchError(
            f"--checkpoint: expected a checkpoint of Hugging Face, found {folder}: {error}"
        ) from None
    for name, size in SIZES.items():
        wanted = getattr(package.manifest.dims, size)
        if found[name] is not None and found[name] != wanted:
            raise BenchError(
                f"--checkpoint: expected the one that {package.folder} was made from, whose "
                f"{name} is {wanted}, found {found[name]} in {folder}; name its folder"
            )


def interpreter(peer: str, python: str | None) -> str:
    """This Python if it has the peer, else the one named for peers.

    Raises:
        BenchError: neither has it.
    """
    modules, packages = PEERS[peer].modules, PEERS[peer].packages
    for tried in filter(None, (sys.executable, python)):
        command = [tried, "-c", _LOOK, *modules]
        try:
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, check=False, timeout=LOOK_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = getattr(error, "strerror", None) or f"no answer in {LOOK_S} s"
            raise BenchError(
                f"--peer-python: expected a Python interpreter, found {tried}: {why}; name the one "
                "that scripts/peers.sh prints"
            ) from None
        told, *missing = done.stdout.split() or [""]
        if done.returncode or told != "lacks":
            raise BenchError(
                f"--peer-python: expected a Python interpreter, found {tried}, which ends "
                f"with status {done.returncode}; name the one that scripts/peers.sh prints"
            )
        if not missing:
            return tried
    raise BenchError(
        f"--against {peer}: expected {', '.join(modules)}, found no {', '.join(missing)}; run: "
        "scripts/peers.sh, and name the Python that it prints with --peer-python, or, without the "
        f"repository: {python or sys.executable} -m pip install {packages}"
    )

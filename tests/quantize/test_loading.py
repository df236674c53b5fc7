"""How ONNX Runtime is told to load graphs with and without codes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avl_runtime.execute.host import ort, ort_options
from avl_runtime.execute.host.ort_options import has_room, session_config
from avl_runtime.package.package import load_package
from avl_runtime.package.quantization import Quantization
from quantize.conftest import Exported

INT4 = Quantization("clip", 4, 64, ("decoder",), False, None)
PREPACKING = "session.disable_prepacking"


def test_floats_are_packed_where_they_are_read_again_and_again_and_fit() -> None:
    mapped = {PREPACKING: "1"}
    assert session_config(None, encoder=False, packs=True) == {}
    assert session_config(None, encoder=False, packs=False) == mapped
    for packs in (True, False):
        assert session_config(None, True, packs) == session_config(INT4, True, packs) == mapped


def test_weights_may_take_half_of_the_memory() -> None:
    assert has_room(1 << 20)
    assert not has_room(1 << 60)


def test_16_bit_weights_take_the_room_of_the_float32_they_are_packed_as(
    tiny_checkpoint: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = load_file(tiny_checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    widened = sum(tensor.float().nbytes for tensor in stored.values())
    package = load_package(tiny_package)
    assert package.float32_bytes() == widened
    seen: list[tuple[bool, bool]] = []

    def config(quantization: Quantization | None, encoder: bool, packs: bool) -> dict[str, str]:
        seen.append((encoder, packs))
        return session_config(quantization, encoder, packs)

    monkeypatch.setattr(ort, "session_config", config)
    graphs = len(package.manifest.graphs)
    for memory, packs in ((2 * widened, True), (2 * widened - 1, False)):
        seen.clear()
        monkeypatch.setattr(ort_options, "usable_memory", lambda memory=memory: memory)
        ort.OrtBackend(package, threads=1)
        assert seen == [(True, packs), *[(False, packs)] * (graphs - 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_bytes_follow_each_tensor(
    dtype: torch.dtype, tiny_package: Path, tmp_path: Path
) -> None:
    tensors = {"one": torch.zeros(3, 5, dtype=dtype), "other": torch.zeros(7, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    package = load_package(tiny_package)
    shard = replace(package.manifest.weights.shards[0], path="model.safetensors")
    weights = replace(package.manifest.weights, folder=str(tmp_path), shards=(shard,))
    linked = replace(package, manifest=replace(package.manifest, weights=weights))
    assert linked.float32_bytes() == 3 * 5 * 4 + 7


def test_codes_are_prepacked_and_run_on_8_bit_activations() -> None:
    with_vision = replace(INT4, parts=("decoder", "vision"))
    for config in (session_config(INT4, False, False), session_config(with_vision, True, False)):
        assert PREPACKING not in config
        assert config["session.qdq_matmulnbits_accuracy_level"] == "4"


MEMORY = """
import sys
from avl_runtime.execute.host.ort_options import tight_memory
from avl_runtime.machine.memory import give_back
import numpy as np

def rss():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("VmRSS")) * 1024

def load():
    "Keep every second of 64 blocks of 4 MiB, as fusing does."
    blocks = [np.ones(1 << 19) for _ in range(64)]
    return blocks[::2]

warm = [np.ones(1 << 21) for _ in range(2)]
del warm  # blocks of 16 MiB: from here on glibc keeps smaller ones when they are freed
before = rss()
if sys.argv[1] == "while loading":
    with tight_memory():
        kept = load()
else:
    kept = load()
    if sys.argv[1] == "when asked":
        give_back()
print((rss() - before) / sum(block.nbytes for block in kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("given_back", "held"), [("while loading", 1), ("when asked", 1), ("not", 2)]
)
def test_freed_memory_is_given_back(given_back: str, held: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, given_back], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(held, abs=0.2)


def test_the_manifest_says_it(tiny_int4: Exported) -> None:
    assert load_package(tiny_int4.folder).manifest.quantization == INT4

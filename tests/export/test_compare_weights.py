"""What the comparator allows for rounding, and its comparison of quantized packages."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from avl_export.check.cli import main as avl_check
from avl_export.check.compare import TOLERANCE
from avl_export.check.recheck import recheck
from avl_export.check.table import CheckError, ignore
from avl_export.cli import main
from avl_export.quantize.packaged import read_packaged
from avl_runtime.package.package import MANIFEST, load_package
from avl_runtime.package.shard_files import describe
from export.checkpoints import make_config, write_random
from export.test_compare import damage, swap
from quantize.compressed_packers import MIXED, write_compressed
from quantize.packers import quantize_checkpoint

ROUNDOFF = {"fp16": 2**-11, "bf16": 2**-8}
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}


def states(model: Any, rows: torch.Tensor) -> list[torch.Tensor]:
    """What the comparator sees of a model: states and new rows of every layer, and logits."""
    with torch.no_grad():
        out = model(inputs_embeds=rows, use_cache=True, output_hidden_states=True)
    layers = out.past_key_values.layers
    new = [rows for layer in layers for rows in (layer.keys, layer.values)]
    return [tensor.double() for tensor in (*out.hidden_states[1:], *new, out.logits)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("layers", [8, 32])
def test_rounding_stays_well_below_what_is_allowed(layers: int, seed: int) -> None:
    """torch rounds every result on the CPU as it does on a GPU; the reference is float64."""
    torch.manual_seed(seed)
    width = 128
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=344,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
        initializer_range=width**-0.5,  # keeps the size of what passes through
    )
    config._attn_implementation = "eager"
    stored = LlamaForCausalLM(config).eval().bfloat16()
    rows = torch.randn(1, 60, width).bfloat16()
    exact = states(copy.deepcopy(stored).double(), rows.double())
    errors = {}
    for dtype, kind in TORCH.items():
        found = states(copy.deepcopy(stored).to(kind), rows.to(kind))
        pairs = zip(found, exact, strict=True)
        errors[dtype] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        assert 1 < errors[dtype] / (ROUNDOFF[dtype] * layers**0.5) < 4
        assert 2 * 2**0.5 * errors[dtype] < TOLERANCE[dtype]
    assert 4 < errors["bf16"] / errors["fp16"] < 16


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose weights make blocks of 32."""
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 100}
    return write_random(tmp_path_factory.mktemp("dense") / "model", make_config(text=text))


def exported(model: Path, out: Path, *options: str) -> Path:
    arguments = ["--model", str(model), "--out", str(out), "--no-check", *options]
    assert main(arguments) == 0
    return out


OPTIONS = {
    "int8": ("--quantize", "int8"),
    "int4": ("--quantize", "int4", "--block-size", "32", "--quantize-also", "lm_head,embedding"),
}


@pytest.mark.parametrize("kind", [*OPTIONS, "gptq", "awq", "compressed-tensors"])
def test_a_quantized_package_and_transformers(
    kind: str, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers is given what the codes stand for; from the checkpoint it is far away."""
    model = dense
    if kind in ("gptq", "awq"):
        model = tmp_path / "packed"
        quantize_checkpoint(dense, model, method=kind, group=32, asymmetric=kind == "awq")
    if kind == "compressed-tensors":
        model = tmp_path / "packed"
        write_compressed(dense, model, MIXED)
    out = exported(model, tmp_path / "model.avl", *OPTIONS.get(kind, ()))
    capsys.readouterr()
    command = [str(out), "--backend", "ort-cpu", "--json", "--model", str(model)]
    assert avl_check(command) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[-1]["name"] == "parked decoder.1 logits"
    # ONNX Runtime rounds what codes are multiplied with to 8 bits.
    assert max(row["difference"] / row["largest"] for row in rows) < 0.05


def record_anew(out: Path, location: str) -> None:
    """Have the manifest know a file as it is now, as if the export had written it so."""
    manifest = json.loads((out / MANIFEST).read_text())
    (shard,) = (one for one in manifest["weights"]["shards"] if one["path"] == location)
    sha256 = hashlib.sha256((out / location).read_bytes()).hexdigest()
    shard |= asdict(describe(out / location, location, sha256, linked=False))
    (out / MANIFEST).write_text(json.dumps(manifest))


def test_codes_of_another_weight(dense: Path, tmp_path: Path) -> None:
    out = exported(dense, tmp_path / "model.avl", *OPTIONS["int4"])
    package = load_package(out)
    places = read_packaged(package).linears
    names = [n for n in places if n.endswith("k_proj.weight")]
    one, other = (places[name] for name in names[:2])
    path = out / one.location
    data = bytearray(path.read_bytes())
    for here, there in ((one.codes, other.codes), (one.scales, other.scales)):
        a, b = (slice(r.offset, r.offset + r.nbytes) for r in (here, there))
        data[a], data[b] = data[b], data[a]
    path.write_bytes(bytes(data))
    record_anew(out, one.location)
    wanted = f"expected codes that stand for {names[0]}, found a difference"
    with pytest.raises(CheckError, match=wanted):
        recheck(out, ignore, backends=["ort-cpu"], model=str(dense))


def test_a_quantized_graph_that_reads_another_weight(dense: Path, tmp_path: Path) -> None:
    """The files are right, and a graph reads them elsewhere."""
    out = exported(dense, tmp_path / "model.avl", *OPTIONS["int4"])
    for part in ("int4", "scale"):
        names = (f"layers.{layer}.self_attn.k_proj.weight.{part}" for layer in (0, 1))
        damage(out, "decoder.0.onnx", swap(*names))
    with pytest.raises(CheckError, match=r"found dense decoder.0 k_new.0 first to differ"):
        recheck(out, ignore, backends=["ort-cpu"], model=str(dense))

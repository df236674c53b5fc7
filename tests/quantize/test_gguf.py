"""GGUF files: packages hold what their blocks stand for, and compute with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration

from avl_export.check.compare import check_package
from avl_export.check.recheck import recheck
from avl_export.check.reference import Reference, tensors
from avl_export.check.walk import check_prompt
from avl_export.checkpoint.safetensors_header import read_header
from avl_export.checkpoint.source import Source
from avl_export.quantize.gguf import TYPES
from avl_export.quantize.packaged import read_packaged
from avl_export.quantize.reading import read_weight
from avl_export.quantize.store import PLAIN
from avl_runtime.package.package import load_package
from export.checkpoints import make_config, write_random
from families.support import Case, write_checkpoint
from families.test_qwen2_5_vl import CASES as QWEN25
from families.test_qwen3_vl import CASES as QWEN3
from families.test_smolvlm import IDEFICS3, SMOLVLM
from quantize.conftest import Exported, Exports
from quantize.gguf_files import TypeOf, Written, all_of, random_blocks, write_files

Refused = Callable[..., str]

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
}
# As llama.cpp mixes types within a file.
MIXED = {
    "token_embd": Type.Q4_K,
    "attn_q": Type.Q4_0,
    "attn_k": Type.Q6_K,
    "attn_v": Type.Q8_0,
    "attn_output": Type.Q4_0,
    "ffn_gate": Type.Q6_K,
    "ffn_up": Type.F16,
    "ffn_down": Type.BF16,
    "output": Type.Q6_K,
}
BITS = {Type.Q4_0: 4, Type.Q8_0: 8, Type.Q6_K: 8}


def mixed(name: str, _: tuple[int, ...]) -> Type:
    """A type for each matrix of a layer; keys of the second layer are Q4_K."""
    return Type.Q4_K if name.startswith("blk.1.attn_k.") else MIXED[name.split(".")[-2]]


def llava_files(folder: Path, types: TypeOf, **options: Any) -> tuple[Path, Any, Written]:
    """A random LLaVA with rows of 256, and its files."""
    source = write_random(folder / "source", make_config(text=WIDE, rms_norm_eps=1e-5))
    model = LlavaForConditionalGeneration.from_pretrained(source, attn_implementation="eager")
    return source, model.eval(), write_files(model, folder, types, **options)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Written]:
    return llava_files(tmp_path_factory.mktemp("llava"), mixed)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Written]:
    return llava_files(tmp_path_factory.mktemp("coded"), all_of(Type.Q4_0))


def held(exported: Exported) -> dict[str, np.ndarray]:
    """Every weight of a package, as floats, and in the dtype in which it lies there."""
    package = load_package(exported.folder)
    if package.manifest.quantization is None:
        path = exported.folder / PLAIN
        plain = {name: Source(name, path, record) for name, record in read_header(path).items()}
        return {n: s.read_floats(0, s.record.shape[0]) for n, s in plain.items()}
    packaged = read_packaged(package)
    return {
        **{n: s.read_floats(0, s.record.shape[0]) for n, s in packaged.plain.items()},
        **{n: read_weight(exported.folder, place) for n, place in packaged.linears.items()},
    }


def assert_holds(exported: Exported, written: Written, left: int = 0) -> None:
    """A package's weights are those that the files mean: codes bit for bit, others rounded."""
    found = held(exported)
    linears = exported.plan.store.linears
    for name, weight in found.items():
        meant = written.meant.get(name)
        if meant is None:  # a matrix that is the embedding too
            meant = written.meant["model.language_model.embed_tokens.weight"]
        if name not in linears:
            half = exported.plan.store.plain[name].record.dtype == "F16"
            meant = meant.half().float() if half else meant
        np.testing.assert_array_equal(weight, meant.numpy(), err_msg=name)
    assert len(written.meant.keys() - found.keys()) == left


@given(st.integers(0, 1 << 30), st.sampled_from([Type.Q4_0, Type.Q8_0, Type.Q4_K, Type.Q6_K]))
def test_blocks_stand_for_what_gguf_py_reads_in_them(seed: int, kind: Type) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), 256 * int(rng.integers(1, 4)))
    data, layout = random_blocks(rng, kind, shape), TYPES[kind.name]
    found = layout.floats(data.reshape(shape[0], -1, layout.nbytes)).reshape(shape)
    np.testing.assert_array_equal(found, gguf.quants.dequantize(data, kind))


def test_a_llava_of_all_types_computes_what_they_mean(
    llava: tuple[Path, Any, Written], exports: Exports
) -> None:
    source, model, written = llava
    files: dict[str, Any] = {"mmproj": written.mmproj, "config": str(source)}
    exported = exports(written.model, check=False, **files)
    assert_holds(exported, written)
    store = exported.plan.store
    bits = {n.split("language_model.")[-1]: place.bits for n, place in store.linears.items()}
    parts = {"q_proj": 4, "v_proj": 8, "o_proj": 4, "gate_proj": 8}
    own = {n: parts.get(n.split(".")[-2], 8) for n in bits}
    assert bits == own
    assert [n for n in own if "k_proj" in n] == ["layers.0.self_attn.k_proj.weight"]
    assert len(bits) == 2 * 4 + 1 + 1
    assert [*store.kept.values()].count("codes are Q4_K") == 2
    model.load_state_dict(
        {
            n: t.half().float() if n in store.plain and store.plain[n].record.dtype == "F16" else t
            for n, t in written.meant.items()
        },
        strict=False,
    )
    package = load_package(exported.folder)
    reference = tensors(exported.plan.family, model, check_prompt(package))
    report = check_package(package, Reference(reference))
    assert report.logits <= 2e-5 * report.logit_scale
    assert report.logit_scale > 0.5
    again = recheck(exported.folder, lambda _: None, model=str(written.model), **files)
    assert again.logits == pytest.approx(report.logits, abs=2e-5)


def test_floats_keep_their_types(tmp_path: Path, exports: Exports, traced: None) -> None:
    """Turned rows too; and llama.cpp's newer names of a tower's matrices."""
    source, _, written = llava_files(
        tmp_path, all_of(Type.F16), mmproj=all_of(Type.F32), swapped=False
    )
    exported = exports(written.model, mmproj=written.mmproj, config=str(source), check=False)
    assert_holds(exported, written)
    assert load_package(exported.folder).manifest.quantization is None
    plain = exported.plan.store.plain
    assert {plain[n].record.dtype for n in plain if n.endswith("_proj.weight")} == {"F16", "F32"}


@pytest.mark.parametrize("case", [QWEN25[0], QWEN3[0]], ids=lambda case: case.name)
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.F16], ids=lambda kind: kind.name)
def test_qwens(case: Case, kind: Type, tmp_path: Path, exports: Exports, traced: None) -> None:
    write_checkpoint(case, tmp_path / "source")
    model = case.model.from_pretrained(tmp_path / "source")
    tower = all_of(Type.F16 if kind == Type.F16 else Type.F32)
    written = write_files(model, tmp_path, all_of(kind), tower)
    source = str(tmp_path / "source")
    exported = exports(written.model, mmproj=written.mmproj, config=source, check=False)
    assert_holds(exported, written)
    count = 0 if kind == Type.F16 else 4 * 7 + 1  # the matrix of words is the output's too
    assert len(exported.plan.store.linears) == count
    assert not exported.plan.unread.names


@pytest.mark.parametrize(
    ("case", "kind"), [(IDEFICS3, Type.Q8_0), (SMOLVLM, Type.Q4_0)], ids=lambda one: one.name
)
def test_smolvlms(
    case: Case,
    kind: Type,
    tmp_path: Path,
    exports: Exports,
    traced: None,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which of both families a file is of, only a configuration tells."""
    source = tmp_path / "source"
    write_checkpoint(case, source)
    model = case.model.from_pretrained(source)
    written = write_files(model, tmp_path, all_of(kind))
    files = ["--mmproj", str(written.mmproj)]
    capsys.readouterr()  # what transformers said
    assert "expected --config, as files of idefics3 do not tell" in refused(written.model, *files)
    exported = exports(written.model, mmproj=written.mmproj, config=str(source), check=False)
    assert_holds(exported, written)
    assert exported.plan.family.name == case.name
    assert len(exported.plan.store.linears) == 3 * 7 + 1
    assert not exported.plan.unread.names


def test_codes_with_more_bits_than_asked_are_quantized(
    llava: tuple[Path, Any, Written], exports: Exports, traced: None
) -> None:
    source, _, written = llava
    exported = exports(
        written.model,
        mmproj=written.mmproj,
        config=str(source),
        quantize="int4",
        block_size=32,
        check=False,
    )
    linears = exported.plan.store.linears
    found = held(exported)
    assert len(linears) == 2 * 7 + 1
    for name, place in linears.items():
        part = name.split(".")[-2]
        meant = written.meant[name].numpy()
        assert place.bits == (8 if part == "lm_head" else 4)  # nobody asked for the output
        if part in ("q_proj", "o_proj", "lm_head"):
            np.testing.assert_array_equal(found[name], meant)
        else:
            error = np.linalg.norm(found[name] - meant) / np.linalg.norm(meant)
            assert 0.02 < error < 0.15


def test_codes_that_all_stay_want_no_option(
    coded: tuple[Path, Any, Written], refused: Refused
) -> None:
    source, _, written = coded
    options = ["--mmproj", str(written.mmproj), "--config", str(source), "--quantize", "int8"]
    assert "leave --quantize out" in refused(written.model, *options)


def test_another_configuration_is_refused(
    coded: tuple[Path, Any, Written], tmp_path: Path, refused: Refused
) -> None:
    source, _, written = coded
    options = ["--mmproj", str(written.mmproj), "--config"]
    other = tmp_path / "other"
    shutil.copytree(source, other)
    path = other / "config.json"
    config = json.loads(path.read_text())
    for name, value, said in (
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}, "5000.0 as rope_theta"),
        ("num_attention_heads", 8, "expected 4 as num_attention_heads"),
        ("rms_norm_eps", 1e-6, "1e-05 as rms_norm_eps"),
        ("vocab_size", 99, "expected [99, 256] as the configuration says, found [100, 256]"),
        ("attention_bias", True, "expected a tensor [256], found none"),
    ):
        text = config["text_config"] | {name: value}
        path.write_text(json.dumps(config | {"text_config": text}))
        assert said in refused(written.model, *options, str(other))
    path.write_text(json.dumps(config | {"model_type": "llava_next"}))
    assert "found that of a llava_next" in refused(written.model, *options, str(other))


def test_tensors_of_other_models_are_refused(
    coded: tuple[Path, Any, Written], tmp_path: Path, refused: Refused
) -> None:
    source, _, written = coded
    path = tmp_path / "model.gguf"
    files = ["--mmproj", str(written.mmproj), "--config", str(source)]
    for name, said in (
        (b"blk.1.attn_x.", "found blk.1.attn_x.weight, which it does not know"),
        (b"blk.7.attn_q.", "blk.7.attn_q.weight: expected a tensor of the model"),
    ):
        path.write_bytes(written.model.read_bytes().replace(b"blk.1.attn_q.", name))
        assert said in refused(path, *files)

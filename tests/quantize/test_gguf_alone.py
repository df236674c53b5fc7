"""GGUF files by themselves: configuration and tokenizer are what they tell."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration, Qwen2Tokenizer

from avl_export.checkpoint.aliases import known_files
from avl_export.checkpoint.gguf.header import read_gguf
from avl_export.checkpoint.gguf.vocabulary import read_vocabulary
from avl_export.families.processors.preprocessing import CLIP_MEAN
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan
from export.checkpoints import make_config, write_random
from families.support import CORPUS, Case, write_checkpoint
from families.test_qwen2_5_vl import CASES as QWEN25
from families.test_qwen3_vl import CASES as QWEN3
from quantize.conftest import TEXT
from quantize.gguf_files import Written, all_of, llama_words, qwen_words, write_files
from support.random_parts import byte_level_tokenizer

Refused = Callable[..., str]

LOOSE = {"dtype", "initializer_range", "tokens_per_second", "window_size", "transformers_version"}
SPECIAL = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0}
BYTES = {f"<0x{number:02X}>": 0.0 for number in range(256)}
# Pieces as SentencePiece has them, the likeliest first; letters come last.
WORDS = ("▁the", "the", "▁t", "he", "th", "er", "▁a", "in", "▁th", "ing", "▁▁", "rea", "ad", "re")
LETTERS = ("▁", *string.ascii_lowercase, "?", ".", "é")
PIECES = {**SPECIAL, **BYTES} | {p: -float(n) for n, p in enumerate((*WORDS, *LETTERS))}


def pieces_of(text: str) -> list[str]:
    """As SentencePiece cuts text: the best pair of neighbours is joined until there is none."""
    parts = list(("▁" + text.replace(" ", "▁")) if text else "")
    while True:
        pairs = [(PIECES[a + b], -n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in PIECES]
        if not pairs:
            break
        place = -max(pairs)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    found = []
    for part in parts:
        found += [part] if part in PIECES else [f"<0x{byte:02X}>" for byte in part.encode()]
    return found


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Written]:
    folder = tmp_path_factory.mktemp("llava")
    text = {**TEXT, "vocab_size": len(PIECES), "rms_norm_eps": 1e-5}
    config = make_config(text=text, image_token_index=0)
    source = write_random(folder / "source", config)
    model = LlavaForConditionalGeneration.from_pretrained(source).eval()
    return source, model, write_files(model, folder, all_of(Type.Q4_0), words=llama_words(PIECES))


def plan_of(written: Written, folder: Path, **options: Any) -> Plan:
    files = Options(str(written.model), folder / "out", mmproj=written.mmproj, **options)
    return make_plan(files)


def words_of(plan: Plan) -> Tokenizer:
    assert plan.texts.tokenizer is not None
    return plan.texts.tokenizer.tokenizer


def test_a_llava(llava: tuple[Path, Any, Written], tmp_path: Path) -> None:
    _, model, written = llava
    plan = plan_of(written, tmp_path)
    found, wanted = plan.family.model.config, model.config
    assert found.text_config.rope_parameters == wanted.text_config.rope_parameters
    for name in (
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "vocab_size",
        "max_position_embeddings",
        "attention_bias",
        "hidden_act",
    ):
        assert getattr(found.text_config, name) == getattr(wanted.text_config, name), name
    for name in (
        "hidden_size",
        "image_size",
        "patch_size",
        "layer_norm_eps",
        "hidden_act",
        "num_attention_heads",
        "intermediate_size",
    ):
        assert getattr(found.vision_config, name) == getattr(wanted.vision_config, name), name
    # Of three layers the second last state is read, and the third is not in the file.
    assert (found.vision_config.num_hidden_layers, found.vision_feature_layer) == (2, -1)
    assert plan.family.traits.image.placeholder == "<unk>"
    assert (plan.texts.tokens.bos, plan.texts.tokens.eos) == (1, (2,))
    assert plan.report()["config"] == "GGUF"
    assert any("pass them with --config" in note for note in plan.notes)
    size = plan.family.traits.image.layout.processing
    assert size.crop == (56, 56)
    names = list(PIECES)
    encoded = words_of(plan).encode("the reading er </s>x").ids
    assert [names[n] for n in encoded] == ["<s>", *pieces_of("the reading er "), "</s>", "x"]


@given(st.text(alphabet="the radig é日 ?"))
def test_sentence_pieces(llava: tuple[Path, Any, Written], text: str) -> None:
    text = text.lstrip(" ")  # before which transformers puts no second blank
    words = read_vocabulary(read_gguf(llava[2].model))
    tokenizer = Tokenizer.from_str(json.dumps(words.tokenizer))
    found = tokenizer.encode(text, add_special_tokens=False)
    assert found.tokens == pieces_of(text)
    assert tokenizer.decode(found.ids) == text


@pytest.mark.parametrize("case", [QWEN25[0], QWEN3[0]], ids=lambda case: case.name)
def test_qwens(case: Case, tmp_path: Path) -> None:
    """What the files say alone is what the checkpoint that they were made from says."""
    source = tmp_path / "source"
    write_checkpoint(case, source)
    size = case.config.text_config.vocab_size
    state = json.loads(byte_level_tokenizer(CORPUS, case.special, None, size - 20).to_str())
    own = Qwen2Tokenizer(
        vocab=state["model"]["vocab"],
        merges=[tuple(pair) for pair in state["model"]["merges"]],
        eos_token=case.eos,
        pad_token=case.pad,
        extra_special_tokens=list(case.special),
    )
    own.add_tokens(["<tool_call>"])
    own.save_pretrained(source)
    (source / "chat_template.jinja").write_text(case.template)
    model = case.model.from_pretrained(source)
    words = qwen_words(own, case.template, size)
    written = write_files(model, tmp_path, all_of(Type.F16), words=words)
    alone = plan_of(written, tmp_path)
    told = plan_of(written, tmp_path, config=str(source))
    ours, theirs = alone.family.traits, told.family.traits
    assert alone.family.decoder.dims == told.family.decoder.dims
    assert alone.segments == told.segments
    ends = (case.special.index(case.eos), case.special.index("<|endoftext|>"))
    assert ours.tokens == replace(theirs.tokens, eos=ends)
    assert ours.chat_template == theirs.chat_template
    for found, wanted in ((ours.image, theirs.image), (ours.video, theirs.video)):
        assert (found.token, found.placeholder) == (wanted.token, wanted.placeholder)
        window = found.layout.patches.window  # which no file tells
        assert found.layout.patches == replace(wanted.layout.patches, window=window)
    assert ours.image.layout.processing.mean == pytest.approx(CLIP_MEAN, rel=1e-6)
    known = known_files({"qwen2_5_vl": "qwen2.5-vl-3b", "qwen3_vl": "qwen3-vl-2b"}[case.name])
    least = known["preprocessor_config.json"].get("min_pixels", 65536)
    assert ours.image.layout.min_pixels == least
    visions = (
        json.loads(p.family.model.config.to_json_string())["vision_config"] for p in (alone, told)
    )
    found, wanted = visions
    assert {n: found.get(n) for n in wanted if n not in LOOSE} == {
        n: v for n, v in wanted.items() if n not in LOOSE
    }
    assert found.keys() >= wanted.keys() - LOOSE
    text = f"Naïve façade, 12345 it's\n\n <tool_call> {case.eos}e\u0301 日本"
    assert words_of(alone).encode(text).ids == own.encode(text)
    assert words_of(alone).decode(own.encode(text)) == words_of(told).decode(own.encode(text))


def changed(path: Path, before: bytes, after: bytes, folder: Path) -> Path:
    """A copy of a file with some of its bytes changed."""
    assert path.read_bytes().count(before) == 1
    copy = folder / f"changed-{path.name}"
    copy.write_bytes(path.read_bytes().replace(before, after))
    return copy


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", "tokenizer.ggml.tokens to be a"),
        (b"tokenizer.ggml.scores", b"tokenizer.ggml.scorez", "scores to be one for each token"),
        (b"tokenizer.ggml.eos_to", b"tokenizer.ggml.xos_to", "the token that ends a reply"),
        (b"\x05\0\0\0\0\0\0\0llama\x12", b"\x05\0\0\0\0\0\0\0bertX\x12", "found 'bertX'"),
        (
            b"llama.rope.dimension_count\4\0\0\0\x10",
            b"llama.rope.dimension_count\4\0\0\0\x08",
            "16 as",
        ),
        (b"llama.block_count", b"llama.block_kount", "llama.block_count to be a number"),
        (b"llama.attention.layer_norm_rms", b"llama.attention.layer_norm_rmz", "rms_epsilon to be"),
    ],
    ids=str,
)
def test_files_that_do_not_tell_enough(
    before: bytes,
    after: bytes,
    said: str,
    llava: tuple[Path, Any, Written],
    tmp_path: Path,
    refused: Refused,
) -> None:
    written = llava[2]
    line = refused(changed(written.model, before, after, tmp_path), "--mmproj", str(written.mmproj))
    assert said in line
    assert "--config" in line

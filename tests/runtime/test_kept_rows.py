"""Caches of rows in fewer bits, against transformers with keys and values rounded so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_scheduler import EIGHT, alone, asked
from transformers import AttentionInterface

from avl_export.cli import main as avl_export
from avl_plugins import cpu
from avl_plugins.errors import PolicyError
from avl_plugins.schema import rotation
from avl_runtime import LVLM
from avl_runtime.execute.protocol import BackendError
from avl_runtime.package.package import PackageError
from avl_runtime.requests import Scheduler
from avl_runtime.tasks import sample
from support.random_llava import draw_images, write_checkpoint
from support.reference import encode, load_reference

ALIKE = ("fp16", "int8")
KINDS = (*ALIKE, "int8-int2")


@pytest.fixture(scope="module")
def coded(tiny_package: Path) -> LVLM:
    """avl-tiny with rows that are codes."""
    return LVLM.load(tiny_package, kv="int8")


@pytest.fixture(scope="module")
def kept(tiny_package: Path, coded: LVLM) -> dict[str, LVLM]:
    """avl-tiny with rows of each kind."""
    others = {kind: LVLM.load(tiny_package, kv=kind) for kind in ("fp16", "int8-int2")}
    return {"int8": coded, **others}


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Rows [..., D] as 127 steps on either side of zero can say them."""
    unit = rows.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (rows / unit).round() * unit


def parked(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows [..., D] as codes of so few bits can say them; the step is Max's (1960)."""
    most = (2**bits - 1) / 2
    step = rows.square().mean(-1, keepdim=True).sqrt() * {4: 0.3352, 2: 0.9957}[bits]
    codes = ((rows / step).floor() + 0.5).clamp(-most, most)
    return codes * (rows * codes).sum(-1, keepdim=True) / codes.square().sum(-1, keepdim=True)


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (rows.repeat_interleave(group, 1) for rows in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=query.shape[2] > 1, scale=scale
    )
    return out.transpose(1, 2)


def parking(bits: int | None, prompt: int, apart: list[torch.Tensor]) -> str:
    """The same for parked rows, of which later rows than a prompt's see codes of `bits`.

    Args:
        bits: None for no rows of fewer bits than 8.
        apart: positions of each layer's parked rows.
    """

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        if module.__class__.__name__.startswith("CLIP"):
            scores = (query @ key.transpose(2, 3) * scaling).softmax(-1)
            return (scores @ value).transpose(1, 2), None
        turn = torch.tensor(rotation(query.shape[3]), dtype=torch.float32)
        key, value = rounded(key @ turn), rounded(value @ turn)
        out = causal_attention(query, key @ turn, value @ turn, scaling)
        if bits is not None:
            where = apart[module.layer_idx]
            for rows in (key, value):
                rows[:, :, where] = parked(rows[:, :, where], bits)
            later = causal_attention(query, key @ turn, value @ turn, scaling)
            out = torch.cat([out[:, :prompt], later[:, prompt:]], 1)
        return out, None

    AttentionInterface.register(f"parked_in_{bits}", attend)
    return f"parked_in_{bits}"


def rounding(kind: str) -> str:
    """transformers' name for attention that rounds what a cache of a kind would hold."""

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        causal = query.shape[2] > 1
        if module.__class__.__name__.startswith("CLIP"):
            causal = False
        elif kind == "fp16":
            key, value = key.half().float(), value.half().float()
        else:
            turn = torch.tensor(rotation(query.shape[3]), dtype=torch.float32)
            key, value = rounded(key @ turn) @ turn, rounded(value)
        group = query.shape[1] // key.shape[1]
        key, value = (rows.repeat_interleave(group, 1) for rows in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scaling
        )
        return out.transpose(1, 2), None

    AttentionInterface.register(f"rows_in_{kind}", attend)
    return f"rows_in_{kind}"


def of_transformers(folder: Path, inputs: dict[str, torch.Tensor], tokens: list[int], how: str):
    """Logits before each of `tokens`, [T, V], each with the whole conversation read anew."""
    reference = load_reference(folder)
    reference.set_attn_implementation(how)
    ids = torch.cat([inputs["input_ids"], torch.tensor([tokens[:-1]], dtype=torch.long)], 1)
    rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        logits = reference(input_ids=ids, **rest, use_cache=False).logits
    return logits[0, -len(tokens) :].numpy()


# Of what rounding changes: 1 without any, and more with another rounding. Numbers that fall to the
# other side of a half step are all that may differ. Steps of halves are so small that sums in
# another order make some three in a thousand do so, and those change more in the next layer.
DIFFERS = {"int8": 0.1, "fp16": 0.6}


@pytest.mark.parametrize("seed", range(3))
def test_replies_are_those_of_rounded_keys_and_values(seed: int, tmp_path: Path) -> None:
    shape = write_checkpoint(tmp_path / "model", seed)
    images = draw_images(seed, 1, shape.image_size)
    arguments = ["--model", tmp_path / "model", "--out", tmp_path / "p.avl", "--no-check"]
    assert avl_export([*map(str, arguments), "--dtype", "fp32"]) == 0
    inputs = encode(tmp_path / "model", "what is it ?", images)
    for kind in ALIKE:
        result = LVLM.load(tmp_path / "p.avl", kv=kind).generate(
            "what is it ?", images, policy="dense", max_new_tokens=12, return_logits=True
        )
        tokens = list(result.token_ids)
        exact, expected = (
            of_transformers(tmp_path / "model", inputs, tokens, how)
            for how in ("eager", rounding(kind))
        )
        off = np.linalg.norm(result.logits - expected)
        assert off < DIFFERS[kind] * np.linalg.norm(exact - expected)
    for bits in (4, 2):
        result = LVLM.load(tmp_path / "p.avl", kv=f"int8-int{bits}").generate(
            "what is it ?",
            images,
            policy="akvq:pivots=0.3",
            max_new_tokens=12,
            return_logits=True,
            return_placements=True,
        )
        tokens, ids = list(result.token_ids), inputs["input_ids"][0]
        image_token = load_reference(tmp_path / "model").config.image_token_id
        of_images = (ids == image_token).nonzero()[:, 0]
        apart = [of_images[torch.tensor(layer)] for layer in result.placements[-1].parked]
        assert min(map(len, apart)) > 0
        coarser, expected = (
            of_transformers(tmp_path / "model", inputs, tokens, parking(each, len(ids), apart))
            for each in (None, bits)
        )
        off = np.linalg.norm(result.logits - expected)
        assert off < 0.2 * np.linalg.norm(coarser - expected)


@pytest.mark.parametrize("policy", ["dense", "avl", "avl:text=0.5,text_min=4", "avl+fastv"])
def test_bytes_are_those_of_rows_and_scales(tiny: LVLM, kept: dict[str, LVLM], policy: str) -> None:
    width = tiny.package.manifest.dims.head_dim
    one = sample("ocr", "held-out", 3)
    models = tiny, kept["fp16"], kept["int8"], kept["int8-int2"]
    replies = [
        model.generate(
            one.prompt,
            [one.image],
            policy=policy,
            max_new_tokens=9,
            min_new_tokens=9,
            return_placements=True,
        )
        for model in models
    ]
    plain, halves, codes, mixed = (reply.stats for reply in replies)
    assert (plain.kv, halves.kv, codes.kv, mixed.kv) == ("fp32", *KINDS)
    assert plain.kernels == halves.kernels == codes.kernels
    if plain.kernels is not None:
        widened = "; rows in int8-int2: widened by standard ops in every step"
        assert mixed.kernels == plain.kernels + widened
    # A layer without parked rows has room for one, as graphs take no empty dimension.
    apart = replies[-1].placements[-1].parked.sum(1).clip(1).sum()
    heads = tiny.package.manifest.dims.num_kv_heads
    assert codes.kv_bytes - mixed.kv_bytes == apart * heads * (2 * width - 2 * width // 4)
    for name in ("kv_bytes", "kv_bytes_dense"):
        rows = getattr(plain, name) // (8 * width)
        assert getattr(halves, name) == rows * 4 * width
        assert getattr(codes, name) == rows * (2 * width + 8)


@pytest.mark.parametrize("kind", KINDS)
def test_without_compiled_kernels_the_same_is_said(
    kept: dict[str, LVLM], tiny_package: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(model: LVLM, policy: str) -> Any:
        one = sample("ocr", "held-out", 3)
        return model.generate(one.prompt, [one.image], policy=policy, return_logits=True)

    policies = ("dense", "avl", "avl:text=0.5,text_min=4", "avl+fastv")
    compiled = [ask(kept[kind], policy) for policy in policies]
    monkeypatch.setenv(cpu.SWITCH, "off")
    bodies = LVLM.load(tiny_package, kv=kind)
    for policy, found in zip(policies, compiled, strict=True):
        plain = ask(bodies, policy)
        assert found.token_ids == plain.token_ids
        apart = np.abs(found.logits - plain.logits)
        if kind == "int8-int2":
            # Sums in another order may make one code of 2 bits another: a third of a row's range.
            assert (apart > 0.02).mean() < 1e-3 and apart.max() < 0.1
        else:
            assert apart.max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_eight_policies_in_one_batch_give_what_each_gives_alone(
    kept: dict[str, LVLM], kind: str
) -> None:
    model = kept[kind]
    scheduler = Scheduler(model)
    begun = []
    for number in range(8):
        prompt, images = asked(number)
        request = scheduler.add(
            prompt, images=images, policy=EIGHT[number], max_new_tokens=8, return_logits=True
        )
        begun.append(request)
        scheduler.step()
    while scheduler.requests:
        scheduler.step()
    for number, request in enumerate(begun):
        expected = alone(model, number, 8)
        assert request.result.token_ids == expected.token_ids, EIGHT[number]
        np.testing.assert_allclose(request.result.logits, expected.logits, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_turns_forks_and_rollbacks_keep_rows(kept: dict[str, LVLM], kind: str) -> None:
    one = sample("caption", "held-out", 44)
    chat = kept[kind].chat(policy="avl")
    chat.send("Describe the image.", [one.image])
    other = chat.fork()
    first = chat.send("Read the text.").token_ids
    assert other.send("Read the text.").token_ids == first
    chat.undo()
    assert chat.send("Read the text.").token_ids == first


def test_drafts_change_no_token(coded: LVLM) -> None:
    for number in range(3):
        one = sample("ocr", "held-out", 50 + number)
        plain, looked = (
            coded.generate(one.prompt * 2, [one.image], policy="dense", prompt_lookup=most)
            for most in (0, 6)
        )
        assert plain.token_ids == looked.token_ids


def test_checked_drafts_of_core_rows_are_dense_attentions_tokens(coded: LVLM) -> None:
    accepted = 0
    for number in range(6):
        one = sample(("ocr", "caption")[number % 2], "held-out", 70 + number)
        dense, exact = (
            coded.generate(one.prompt, [one.image], policy=policy)
            for policy in ("dense", "avl:exact,n=6")
        )
        assert exact.token_ids == dense.token_ids
        accepted += exact.stats.drafts[0].accepted
    assert accepted > 20  # the core alone does draft them


def test_pivots_and_parked_rows_kept_alike_are_dense_attention(tiny: LVLM) -> None:
    one = sample("ocr", "held-out", 5)
    dense, akvq = (
        tiny.generate(
            one.prompt, [one.image], policy=policy, return_logits=True, return_placements=True
        )
        for policy in ("dense", "akvq")
    )
    assert akvq.token_ids == dense.token_ids
    np.testing.assert_allclose(akvq.logits, dense.logits, atol=1e-4, rtol=0)
    (placed,) = akvq.placements
    assert (placed.core ^ placed.parked).all()
    assert 0.03 < placed.core.mean() < 0.06


def test_pivots_in_a_batch_and_over_turns(kept: dict[str, LVLM]) -> None:
    model = kept["int8-int2"]
    drawn = [sample("caption", "held-out", 44 + number) for number in range(3)]
    policies = ("akvq", "fastv+akvq", "avl")
    prompts, images = [one.prompt for one in drawn], [[one.image] for one in drawn]
    together = model.generate_batch(prompts, images, policies=policies, return_logits=True)
    for one, policy, found in zip(drawn, policies, together, strict=True):
        alone = model.generate(one.prompt, [one.image], policy=policy, return_logits=True)
        assert found.token_ids == alone.token_ids
        np.testing.assert_allclose(found.logits, alone.logits, atol=0.02, rtol=0)
    chat = model.chat(policy="fastv+akvq")
    chat.send("Describe the image.", [drawn[0].image])
    other = chat.fork()
    first = chat.send("What is in it?", [drawn[1].image]).token_ids
    assert other.send("What is in it?", [drawn[1].image]).token_ids == first


def test_drafts_of_core_rows_want_rows_kept_alike(kept: dict[str, LVLM]) -> None:
    one = sample("ocr", "held-out", 3)
    with pytest.raises(PolicyError, match="found --kv int8-int2; use --kv int8"):
        kept["int8-int2"].generate(one.prompt, [one.image], policy="avl:exact")
    with pytest.raises(PolicyError, match="found --kv int8-int2; use --kv int8"):
        kept["int8-int2"].chat(policy="avl:exact")


def test_what_cannot_keep_codes_is_refused(tiny_package: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="expected kv to be one of auto, fp32, fp16, int8"):
        LVLM.load(tiny_package, kv="int4")
    with pytest.raises(BackendError, match="--kv int8: expected the backend ort-cpu"):
        LVLM.load(tiny_package, backend="ort-cuda", kv="int8")
    write_checkpoint(tmp_path / "model", 0)
    arguments = ["--model", tmp_path / "model", "--out", tmp_path / "p.avl", "--no-check"]
    assert avl_export([*map(str, arguments), "--dtype", "fp16"]) == 0
    with pytest.raises(PackageError, match="--kv int8: expected a package with graphs"):
        LVLM.load(tmp_path / "p.avl", kv="int8")
    with pytest.raises(BackendError, match="--kv fp32: expected rows as this package computes"):
        LVLM.load(tmp_path / "p.avl", kv="fp32")

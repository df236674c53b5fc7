"""Prefill, decode and refresh on the stand-in give what ort-cpu gives."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_plugins.errors import AvlError
from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.cli import eval as eval_command
from avl_runtime.cli.output import as_json
from avl_runtime.execute.device import growth
from avl_runtime.execute.device.batch import DeviceBatch
from avl_runtime.generate.prefill import extend, finished
from avl_runtime.package.engine_sets import Limits
from avl_runtime.requests import Scheduler
from avl_runtime.tasks import sample
from device.loop_cases import ask, interpreted_reply, on_stand_in, same
from device.standin_engines import WEIGHTS
from support.left import Left

POLICIES = (
    "dense",
    "fastv",
    "avl",
    "avl:refresh=1,core=0.1",
    "avl:text=0.5,text_min=4",
    "avl+fastv",
    "random",
    "random:of=avl",
    "mmtok:tokens=40+avl",
    "divprune:tokens=40",
    "random:of=embedded,keep=0.3+fastv",
    "snapkv:keep=0.4,window=4",
    "fastv+vlcache:keep=0.3",
)
Make = Callable[..., tuple[LVLM, Any]]


@pytest.fixture
def make(tiny_package: Path, tmp_path: Path) -> Make:
    """avl-tiny on a stand-in, with the stand-in."""
    return lambda *args, **options: on_stand_in(tiny_package, tmp_path / "made", *args, **options)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_reply_is_that_of_ort_cpu(make: Make, tiny: LVLM, policy: str) -> None:
    """The prompt of 155 tokens goes through in chunks of 64."""
    model, device = make()
    expected = ask(tiny, policy, 20, return_placements=True)
    same(ask(model, policy, 20, return_placements=True), expected)
    steps = len(expected.token_ids) - 1
    kinds = 1 + ("avl" in policy)  # ordinary steps, and refreshes
    if "refresh=1" in policy:
        kinds = 1
    assert device.done["replay"] == steps - kinds


@pytest.mark.parametrize("policy", ["dense", "avl", "avl:text=0.5,text_min=4", "random:of=avl"])
def test_parked_rows_on_the_host(make: Make, tiny: LVLM, policy: str) -> None:
    model, _ = make(park_on_host=True)
    memory = model.loaded.backend.memory
    chats = [each.chat(policy=policy) for each in (model, tiny)]
    one, other = sample("vqa", "held-out", 2), sample("caption", "held-out", 5)
    for prompt, images in ((one.prompt, [one.image]), (other.prompt, [other.image])):
        found, expected = (
            chat.send(prompt, images, max_new_tokens=8, return_logits=True, return_placements=True)
            for chat in chats
        )
        same(found, expected)
    assert memory.used["parked"] == 0 < memory.parked_on_host


def test_plain_rows_for_engines_with_plugins(make: Make, tiny: LVLM) -> None:
    model, _ = make(row_block=1)
    same(ask(model, "avl", 8), ask(tiny, "avl", 8))


def test_interpreted_kernels(
    interpreting: ProcessPoolExecutor, tiny_package: Path, tmp_path: Path
) -> None:
    policy = "avl:text=0.5,text_min=4,refresh=2"
    done = interpreting.submit(interpreted_reply, tiny_package, tmp_path, policy, 4).result()
    assert done["select_core-1024"] == 2
    assert done["select_text-1024"] == 6


@pytest.mark.parametrize("policy", ["dense", "avl", "avl:text=0.5,text_min=4"])
def test_a_token_waits_for_the_device_once(make: Make, policy: str) -> None:
    model, device = make()
    ask(model, policy, 1)  # so that the picture's features are there
    waited = []
    for steps in (8, 14):
        before = device.done["synchronize"]
        assert len(ask(model, policy, steps).token_ids) == steps
        waited.append(device.done["synchronize"] - before)
    assert waited[1] - waited[0] == 6


@pytest.mark.parametrize("policy", ["dense", "avl:text=0.7,text_min=4"])
def test_a_cache_that_grows(
    make: Make, tiny: LVLM, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(growth, "GROWTH", 8)
    model, device = make()
    one = sample("caption", "held-out", 3)
    found, expected = (
        each.generate(one.prompt, [one.image], policy=policy, max_new_tokens=40, stop=[])
        for each in (model, tiny)
    )
    same(found, expected)
    # Each time the cache grows a step is run as it is and another recorded.
    assert 0 < device.done["replay"] < len(found.token_ids) - 3


@pytest.mark.parametrize("policy", ["dense", "avl", "avl:text=0.5,text_min=4"])
def test_a_batch(make: Make, tiny: LVLM, policy: str) -> None:
    model, _ = make()
    both = [sample("caption", "held-out", 3), sample("vqa", "held-out", 1)]
    found, expected = (
        each.generate_batch(
            [one.prompt for one in both],
            [[one.image] for one in both],
            policy=policy,
            max_new_tokens=16,
            return_logits=True,
            return_placements=True,
        )
        for each in (model, tiny)
    )
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("policy", POLICIES)
def test_turns_of_a_chat(make: Make, tiny: LVLM, policy: str) -> None:
    model, _ = make()
    chats = [each.chat(policy=policy) for each in (model, tiny)]
    one, other = sample("vqa", "held-out", 2), sample("caption", "held-out", 5)
    for prompt, images in (
        (one.prompt, [one.image]),
        ("And now?", []),
        (other.prompt, [other.image]),
    ):
        found, expected = (
            chat.send(prompt, images, max_new_tokens=9, return_logits=True, return_placements=True)
            for chat in chats
        )
        same(found, expected)


def test_a_prompt_that_fails_leaves_the_chat_as_it_was(
    make: Make, tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = make()
    chats = [each.chat(policy="avl:text=0.5,text_min=4") for each in (model, tiny)]
    one, other = sample("caption", "held-out", 2), sample("caption", "held-out", 5)
    for chat in chats:
        chat.send(one.prompt, [one.image], max_new_tokens=6)
    segment, runs = model.loaded.backend.segments[1], []

    def interrupted(tensors: Any, use: str) -> None:
        runs.append(use)
        if len(runs) == 2:
            raise KeyboardInterrupt
        type(segment).run(segment, tensors, use)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chats[0].send(other.prompt, [other.image], max_new_tokens=6)
    found, expected = (
        chat.send(other.prompt, [other.image], max_new_tokens=6, return_logits=True)
        for chat in chats
    )
    same(found, expected)


def test_rows_are_selected_by_the_host_where_there_are_too_many(
    make: Make, tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avl_runtime.execute.device.selects.ROWS", (16, 64))
    model, device = make()
    policy = "avl:text=0.5,text_min=4"
    same(
        ask(model, policy, 14, return_placements=True),
        ask(tiny, policy, 14, return_placements=True),
    )
    assert not [name for name in device.done if name.startswith("select")]


@pytest.mark.parametrize("steps", [1, 2, 9, 30])
def test_a_dense_reply_holds_what_a_dense_reply_is_said_to(
    make: Make, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(growth, "GROWTH", 8)
    model, _ = make()
    stats = ask(model, "dense", steps, stop=[]).stats
    assert stats.kv_bytes == stats.kv_bytes_dense


@pytest.mark.parametrize("policy", ["dense", "avl:text=0.5,text_min=4"])
def test_recorded_steps_give_what_steps_as_they_are_give(
    make: Make, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    model, device = make()
    recorded = ask(model, policy, 12)
    assert device.done["replay"]
    device.done.clear()
    monkeypatch.setattr(DeviceBatch, "records", False)
    plain = ask(model, policy, 12)
    assert not device.done["replay"]
    assert plain.logits.tobytes() == recorded.logits.tobytes()


@pytest.mark.parametrize("park_on_host", [False, True])
def test_device_bytes(make: Make, park_on_host: bool) -> None:
    model, device = make(park_on_host=park_on_host)
    backend, dims = model.loaded.backend, model.package.manifest.dims
    chat = model.chat("avl:keep=0.5,core=0.25")
    one = sample("caption", "held-out", 3)
    stats = chat.send(one.prompt, [one.image], max_new_tokens=5).stats
    held = stats.device_bytes
    row = 2 * dims.num_layers * dims.num_kv_heads * dims.head_dim * 4
    text = stats.prompt_tokens - stats.visual_tokens
    parked = row * -(-(stats.visual_tokens // 4) // 8) * 8
    assert held.active == row * -(-(text + stats.visual_tokens // 4 + 4) // 8) * 8
    assert (held.parked, held.parked_on_host) == ((0, parked) if park_on_host else (parked, 0))
    assert stats.kv_bytes == held.active + parked
    # The stand-in's weights are not asked of the ledger, everything else is.
    free, total = device.memory()
    assert held.weights == 3 * WEIGHTS
    assert total - free == held.weights + backend.memory.used.total() - held.weights
    told = as_json(chat.send("And?", max_new_tokens=2))["device_bytes"]
    assert set(told) == {"weights", "active", "parked", "scratch", "parked_on_host"}


def test_nothing_is_left_behind(make: Make) -> None:
    model, device = make()
    memory = model.loaded.backend.memory
    ask(model, "avl", 4)
    free, used = device.memory()[0], dict(memory.used)
    for _ in range(2):
        ask(model, "avl", 4)
    assert device.memory()[0] == free
    assert dict(memory.used) == used
    assert used["active"] == used["parked"] == 0


def test_the_context_that_engines_take_ends_a_reply(make: Make) -> None:
    model, _ = make(Limits(decode_rows=8, prompt_rows=64, cache_rows=160, batch=1))
    result = ask(model, "dense", 60)
    assert len(result.token_ids) == 160 - 155 + 1


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(8, 64, 144, 2), "--max-context 155"),
        (Limits(8, 64, 512, 1), "--max-batch 2"),
    ],
)
def test_what_engines_were_not_built_for(make: Make, limits: Limits, says: str) -> None:
    model, _ = make(limits)
    one = sample("caption", "held-out", 3)
    with pytest.raises(AvlError) as error:
        model.generate_batch([one.prompt] * 2, [[one.image]] * 2, max_new_tokens=4)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_drafts_that_engines_could_not_check_are_refused(make: Make) -> None:
    model, _ = make()
    with pytest.raises(AvlError, match="prompt_lookup: expected graphs that give logits of sev"):
        ask(model, "dense", 4, prompt_lookup=4)


def test_merging_needs_rows_on_the_host(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = make()
    with pytest.raises(AvlError, match="rows that the host can write, as some are merged into"):
        ask(model, "lookm", 4)
    asked = ["dense", "lookm:keep=0.5", "lookm:keep=0.5,merge=none"]
    assert eval_command._served(model, asked) == asked[::2]  # avl-eval --zoo goes on
    assert "avl-eval: left out: lookm:keep=0.5: expected rows" in capsys.readouterr().err


@pytest.mark.parametrize("foreign", ["host", "device"])
def test_conversations_of_another_engine_are_refused(
    make: Make, tiny: LVLM, tiny_package: Path, tmp_path: Path, foreign: str
) -> None:
    """Rows of another backend cannot be stacked: none is left out of a batch in silence."""
    model, _ = make()
    other, _ = on_stand_in(tiny_package, tmp_path / "other")
    here, elsewhere = model.loaded, (tiny if foreign == "host" else other).loaded
    one = sample("caption", "held-out", 3)
    mixed = []
    for each in (here, elsewhere):
        mixed.append(each.sequence(model.policy))
        prompt = each.processor.encode(one.prompt, [one.image])
        finished(each.prefill(mixed[-1], prompt))
    for own, sequences in ((here, mixed), (elsewhere, mixed[::-1])):
        with pytest.raises(TypeError, match=f"begun on this {own.backend.name}, found one"):
            own.decoder().join(sequences, 4)
        decoder = own.decoder()
        decoder.join(sequences[:1], 4)
        assert decoder.members == (sequences[0],)


def test_out_of_memory_during_prefill(make: Make, tiny: LVLM) -> None:
    model, device = make()
    ask(model, "dense", 1)  # so that the picture's features are there
    device.total = device.total - device.memory()[0] + 400_000
    with pytest.raises(AvlError) as error:
        ask(model, "dense", 4)
    told = str(error.value)
    assert "expected 0.7 MiB of device memory for the KV rows of a prompt of 155 tokens" in told
    assert "found 0.3 MiB free of 0.7 MiB; about 70 tokens fit: use fewer" in told
    assert "--policy avl+fastv" in told
    device.total += 1 << 26
    same(ask(model, "dense", 4), ask(tiny, "dense", 4))


def test_a_ranking_of_ones_own_gets_its_rows(make: Make, tiny: LVLM) -> None:
    """The kernels rank by attention: they must leave another order to the host."""
    model, device = make()
    for policy in (Left(), Left(prune=True)):
        found, expected = (ask(each, policy, 8, return_placements=True) for each in (model, tiny))
        same(found, expected)
    assert not [name for name in device.done if name.startswith("select_core")]


def test_sequences_come_and_go(make: Make, tiny: LVLM) -> None:
    """Each under a policy of its own gives what it gives alone, and what ort-cpu gives."""
    policies = ("dense", "avl", "avl:text=0.5,text_min=4", "random:of=avl", "avl+fastv")
    model, _ = make(Limits(decode_rows=8, prompt_rows=64, cache_rows=512, batch=4))
    scheduler = Scheduler(model)
    waiting, begun, most = list(enumerate(policies)), [], 0
    while waiting or scheduler.requests:
        if waiting and len(scheduler.requests) < 4:
            number, policy = waiting.pop(0)
            one = sample("caption", "held-out", 3 + number)
            request = scheduler.add(
                one.prompt,
                [one.image],
                policy=policy,
                max_new_tokens=14 - 2 * number,
                return_logits=True,
                return_placements=True,
            )
            begun.append((number, policy, request))
        scheduler.step()
        most = max(most, len(scheduler.running))
    assert most >= 3
    for number, policy, request in begun:
        expected = ask(tiny, policy, 14 - 2 * number, 3 + number, return_placements=True)
        same(request.result, expected)
    memory = model.loaded.backend.memory
    del scheduler, request, begun
    gc.collect()
    assert memory.used["active"] == memory.used["parked"] == 0


def test_threads_take_turns(make: Make, tiny: LVLM) -> None:
    """The device's stream and buffers are one for all of a model's requests."""
    model, _ = make()
    policies = ("dense", "avl", "avl:text=0.5,text_min=4")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda policy: ask(model, policy, 8), policies))
    for policy, result in zip(policies, found, strict=True):
        same(result, ask(tiny, policy, 8))


def test_streams_take_turns(make: Make, tiny: LVLM) -> None:
    """Replies in between leave engines with other shapes than a recording holds."""
    model, _ = make()
    one = sample("caption", "held-out", 3)
    streams = [
        each.stream(one.prompt, [one.image], policy=policy, max_new_tokens=9, return_logits=True)
        for policy in ("dense", "avl")
        for each in (model, tiny)
    ]
    open_ones = list(streams)
    while open_ones:
        open_ones = [each for each in open_ones if next(each, None) is not None]
    for ours, theirs in zip(streams[::2], streams[1::2], strict=True):
        same(ours.result, theirs.result)


def test_a_short_prompt_is_read_while_a_long_one_is(make: Make, tiny: LVLM) -> None:
    model, _ = make(Limits(decode_rows=8, prompt_rows=64, cache_rows=512, batch=2))
    scheduler, one = Scheduler(model), sample("caption", "held-out", 3)
    options: dict[str, Any] = {"max_new_tokens": 6, "return_logits": True, "policy": "avl"}
    long = scheduler.add(one.prompt, [one.image], **options)
    for _ in range(2):  # its picture, and a chunk
        scheduler.step()
    short = scheduler.add("How many?", **options)
    while not short.reply.token_ids:
        scheduler.step()
    assert not long.reply.token_ids
    while scheduler.requests:
        scheduler.step()
    same(long.result, ask(tiny, "avl", 6))
    same(short.result, tiny.generate("How many?", **options))


def test_requests_beyond_what_engines_take_wait(make: Make, tiny: LVLM) -> None:
    model, _ = make(Limits(decode_rows=8, prompt_rows=64, cache_rows=512, batch=1))
    scheduler, one = Scheduler(model), sample("caption", "held-out", 3)
    both = [
        scheduler.add(one.prompt, [one.image], policy=policy, max_new_tokens=6, return_logits=True)
        for policy in ("dense", "avl")
    ]
    most = 0
    while scheduler.requests:
        scheduler.step()
        most = max(most, len(scheduler.running))
    assert most == 1
    for request, policy in zip(both, ("dense", "avl"), strict=True):
        same(request.result, ask(tiny, policy, 6))


def test_a_cancelled_sequence_frees_its_rows(make: Make, tiny: LVLM) -> None:
    model, _ = make()
    memory = model.loaded.backend.memory
    scheduler = Scheduler(model)
    one = sample("caption", "held-out", 3)
    kept, gone = (
        scheduler.add(one.prompt, [one.image], policy=policy, max_new_tokens=12, return_logits=True)
        for policy in ("avl", "dense")
    )
    while len(scheduler.running) < 2:
        scheduler.step()
    scheduler.step()
    before = memory.used["active"]
    scheduler.cancel(gone)
    assert memory.used["active"] < before / 2
    while scheduler.requests:
        scheduler.step()
    same(kept.result, ask(tiny, "avl", 12))


@pytest.mark.parametrize("policy", ["dense", "avl:refresh=5"])
def test_several_rows_and_a_rollback(make: Make, tiny: LVLM, policy: str) -> None:
    """In a batch whose book-keeping is on the device: steps, rows at once, a rollback of both."""
    model, _ = make()
    reply = list(ask(tiny, policy, 12).token_ids)
    one = sample("caption", "held-out", 3)
    found, placed = [], []
    for each, drafts in ((model, True), (tiny, False)):
        loaded = each.loaded
        sequence, decoder = loaded.sequence(parse(policy)), loaded.decoder()
        other = loaded.sequence(parse("dense"))
        prompt = loaded.processor.encode(one.prompt, [one.image])
        for begun in (sequence, other):
            finished(loaded.prefill(begun, prompt))
        decoder.join([other, sequence], 16)
        decoder.run([reply[0], reply[0]])
        length = sequence.length
        if drafts:
            decoder.run([reply[1], 5])  # a wrong token, of a step that the device did by itself
            sequence.roll_back(length)
            other.roll_back(other.length - 1)
            tokens = [reply[1], 5, 9]
            hidden = loaded.embedding.lookup(np.array(tokens))
            extend(sequence, loaded.package.manifest, hidden, tokens)
            sequence.roll_back(length + 1)
        else:
            decoder.leave(sequence, keep=True)
            alone = loaded.decoder()
            alone.join([sequence], 16)
            alone.run([reply[1]])
            alone.leave(sequence, keep=True)
            decoder.join([sequence], 16)
        # Under A-VL the fifth step refreshes the core, and reads what the books say.
        found.append([decoder.run([reply[1], token]).copy() for token in reply[2:8]])
        placed.append(decoder.placement(sequence))
        decoder.leave(sequence, keep=True)
        rows = [
            sorted(cache.positions[layer, 0, head, : cache.active_len[layer, 0]].tolist())
            for cache in sequence.caches
            for layer in range(cache.layers)
            for head in range(cache.positions.shape[2])
        ]
        placed.append(rows)
    assert np.allclose(found[0], found[1], atol=2e-3)
    assert placed[1] == placed[3]
    for ours, theirs in zip(placed[0], placed[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_half_precision(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from avl_export.cli import main as export

    package = tmp_path / "half.avl"
    arguments = ["--model", str(tiny_checkpoint), "--out", str(package), "--no-check"]
    assert export([*arguments, "--dtype", "fp16"]) == 0
    model, _ = on_stand_in(package, tmp_path / "made")
    host = LVLM.load(package, backend="ort-cpu", threads=1)
    found, expected = ask(model, "avl", 10), ask(host, "avl", 10)
    assert found.token_ids == expected.token_ids
    assert np.allclose(found.logits, expected.logits, atol=0.1)

"""Sequences that join and leave a running batch, each as if it were alone."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from avl_export.cli import main as avl_export
from avl_plugins.errors import AvlError
from avl_plugins.policies import (
    DROPPED,
    Action,
    Divide,
    Policy,
    Refresh,
    TextBudget,
    View,
    parse,
)
from avl_runtime import LVLM
from avl_runtime.evaluate.cost import placed_rows
from avl_runtime.execute.host.check import HostChecked
from avl_runtime.execute.host.executor import HostExecutor
from avl_runtime.generate.prefill import extend, finished
from avl_runtime.generate.sampling import SamplingError
from avl_runtime.generate.sequence import RollbackError, Sequence
from avl_runtime.requests import Scheduler
from avl_runtime.tasks import sample
from support.left import Left

EIGHT = (
    "dense",
    "fastv",
    "avl",
    "avl:refresh=1,core=0.1",
    "avl:text=0.5,text_min=4",
    "avl+fastv",
    "random:seed=3",
    "random:of=avl,refresh=2",
)


def asked(number: int) -> tuple[str, list[Any]]:
    """A prompt of its own for each number; the third has no picture, the fifth has two."""
    one = sample(("caption", "vqa", "ocr")[number % 3], "held-out", 40 + number)
    if number == 2:
        return "How many objects are there?", []
    images = [one.image]
    if number == 4:
        images.append(sample("caption", "held-out", 60).image)
    return one.prompt, images


def alone(model: LVLM, number: int, tokens: int) -> Any:
    prompt, images = asked(number)
    return model.generate(
        prompt,
        images,
        policy=EIGHT[number],
        max_new_tokens=tokens,
        return_logits=True,
        return_placements=True,
    )


def test_eight_policies_in_one_batch_give_what_each_gives_alone(tiny: LVLM) -> None:
    scheduler = Scheduler(tiny)
    waiting = [(number, 6 + 3 * (number % 4)) for number in range(8)]
    begun: list[tuple[int, int, Any]] = []
    steps, most = 0, 0
    while waiting or scheduler.requests:
        if waiting and steps % 2 == 0:
            number, tokens = waiting.pop(0)
            prompt, images = asked(number)
            request = scheduler.add(
                prompt,
                images=images,
                policy=EIGHT[number],
                max_new_tokens=tokens,
                return_logits=True,
                return_placements=True,
            )
            begun.append((number, tokens, request))
        scheduler.step()
        most = max(most, len(scheduler.running))
        steps += 1
    assert most >= 4  # they did run together
    for number, tokens, request in begun:
        found, expected = request.result, alone(tiny, number, tokens)
        assert request.done
        assert found.token_ids == expected.token_ids, EIGHT[number]
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5, rtol=0)
        assert found.text == expected.text
        assert len(found.placements) == len(expected.placements)
        for ours, theirs in zip(found.placements, expected.placements, strict=True):
            assert ours.step == theirs.step
            np.testing.assert_array_equal(ours.core, theirs.core)
            np.testing.assert_array_equal(ours.parked, theirs.parked)


def test_options_are_each_requests_own(tiny: LVLM) -> None:
    prompt, images = asked(0)
    whole = tiny.generate(prompt, images, policy="dense").text
    scheduler = Scheduler(tiny)
    plain = scheduler.add(prompt, images, policy="dense")
    cut = scheduler.add(prompt, images, policy="dense", stop=[whole[8:14]])
    drawn = [
        scheduler.add(prompt, images, policy="dense", temperature=3.0, seed=seed) for seed in (1, 1)
    ]
    while scheduler.requests:
        scheduler.step()
    assert plain.result.text == whole
    assert cut.result.text == whole[: whole.index(whole[8:14])]
    assert drawn[0].result.token_ids == drawn[1].result.token_ids != plain.result.token_ids


def test_a_prompt_is_read_between_steps_of_those_that_run(tiny: LVLM) -> None:
    scheduler = Scheduler(tiny)
    prompt, images = asked(0)
    first = scheduler.add(prompt, images, policy="dense", max_new_tokens=40)
    while not scheduler.running:
        scheduler.step()
    # Nobody else asks about these, whose features may be there then.
    pictures = [sample("caption", "held-out", 7001 + i).image for i in range(4)]
    second = scheduler.add("Describe the image.", pictures, policy="dense", max_new_tokens=2)
    got = []
    while second not in scheduler.running:
        got.append([one is first for one in scheduler.step()])
    # Four pictures to encode, and 2 segments of 582 rows in chunks of 256: four and six steps, with
    # a token of the first after each.
    assert got[:9] == [[True]] * 9
    while scheduler.requests:
        scheduler.step()
    expected = tiny.generate("Describe the image.", pictures, policy="dense", max_new_tokens=2)
    assert second.result.token_ids == expected.token_ids
    assert first.result.token_ids == alone(tiny, 0, 40).token_ids


@pytest.mark.parametrize("when", ["waiting", "reading", "running", "done"])
def test_cancelling_frees_rows_in_that_step(tiny: LVLM, when: str) -> None:
    scheduler = Scheduler(tiny)
    prompt, images = asked(1)
    other = scheduler.add(*asked(0), policy="avl", max_new_tokens=12)
    while not scheduler.running:
        scheduler.step()
    mine = scheduler.add(prompt, images, policy="dense", max_new_tokens=3 if when == "done" else 9)
    if when != "waiting":
        scheduler.step()
    if when in ("running", "done"):
        while mine not in scheduler.running:
            scheduler.step()
    while when == "done" and not mine.done:
        scheduler.step()
    held = [weakref.ref(a) for cache in mine.sequence.caches for a in cache.k_active]
    scheduler.cancel(mine)
    gc.collect()
    assert mine.done
    assert mine.sequence.caches == []
    if when == "running":  # the array of both is gone, and one of the other's alone is there
        assert all(ref() is None for ref in held)
        assert all(cache.batch == 1 for cache in other.sequence.caches)
    if when == "done":
        assert len(mine.result.token_ids) == 3
    else:
        with pytest.raises(AvlError, match="cancelled"):
            _ = mine.result
    while scheduler.requests:
        scheduler.step()
    expected = tiny.generate(*asked(0), policy="avl", max_new_tokens=12)
    assert other.result.token_ids == expected.token_ids


def test_those_that_end_together_leave_together(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of those that stay are copied once, and not once for each that ends."""
    made: list[int] = []
    batch = HostExecutor.batch

    def noted(self: HostExecutor, parts: Any, members: Any, steps: int) -> Any:
        made.append(len(members))
        return batch(self, parts, members, steps)

    monkeypatch.setattr(HostExecutor, "batch", noted)
    scheduler = Scheduler(tiny)
    tokens = {0: 4, 1: 4, 2: 4, 3: 9, 5: 9}  # the fourth has two pictures, and would wait
    requests = {
        number: scheduler.add(*asked(number), max_new_tokens=count, min_new_tokens=count)
        for number, count in tokens.items()
    }
    while scheduler.requests:
        scheduler.step()
    assert made == [5, 2]
    for number, request in requests.items():
        count = tokens[number]
        expected = tiny.generate(*asked(number), max_new_tokens=count, min_new_tokens=count)
        assert request.result.token_ids == expected.token_ids


@pytest.mark.parametrize("policy", ["dense", "avl:text=0.5,text_min=4", "avl:exact,n=4"])
def test_rows_are_gone_with_their_request(tiny: LVLM, policy: str) -> None:
    """At once, and not when Python looks for what refers to itself."""
    gc.disable()
    try:
        scheduler = Scheduler(tiny)
        mine = scheduler.add(*asked(0), policy=policy, max_new_tokens=8)
        while mine not in scheduler.running:
            scheduler.step()
        held = []
        while scheduler.requests:
            arrays = [a for cache in mine.sequence.caches for a in cache.k_active]
            held = [weakref.ref(array) for array in arrays] or held
            arrays = []
            scheduler.step()
        assert mine.result.token_ids
        assert held
        del mine, scheduler
        assert all(ref() is None for ref in held)
    finally:
        gc.enable()


def test_a_prompt_that_fails_ends_its_request_alone(tiny: LVLM) -> None:
    scheduler = Scheduler(tiny)
    good = scheduler.add(*asked(0), policy="dense", max_new_tokens=6)
    bad = scheduler.add("a " * 3000, policy="dense", max_new_tokens=6)
    while scheduler.requests:
        scheduler.step()
    with pytest.raises(AvlError, match="at most 2048 tokens"):
        _ = bad.result
    assert good.result.token_ids == tiny.generate(*asked(0), max_new_tokens=6).token_ids
    with pytest.raises(AvlError, match="temperature"):
        scheduler.add("What?", temperature=-1)
    assert scheduler.step() == []


def test_a_result_is_not_there_before_it_is_done(tiny: LVLM) -> None:
    scheduler = Scheduler(tiny)
    request = scheduler.add("What?", max_new_tokens=2)
    with pytest.raises(AvlError, match="still runs"):
        _ = request.result


def test_policies_of_a_batch(tiny: LVLM) -> None:
    both = [asked(0), asked(1)]
    found = tiny.generate_batch(
        [prompt for prompt, _ in both],
        [images for _, images in both],
        policies=["avl", "fastv"],
        max_new_tokens=8,
    )
    for (prompt, images), policy, result in zip(both, ("avl", "fastv"), found, strict=True):
        assert result.stats.policy == policy
        expected = tiny.generate(prompt, images, policy=policy, max_new_tokens=8)
        assert result.token_ids == expected.token_ids
    with pytest.raises(AvlError, match="policies: expected one for each of 1 prompts"):
        tiny.generate_batch(["What?"], policies=["avl", "dense"])


def test_one_model_in_several_threads(tiny: LVLM) -> None:
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = alone(tiny, number, 6)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, result in found.items():
        expected = alone(tiny, number, 6)
        assert result.token_ids == expected.token_ids
        assert result.logits.tobytes() == expected.logits.tobytes()


# Rows that are taken back.


def begun(model: LVLM, policy: str, tokens: int = 0) -> tuple[Sequence, Any, list[int]]:
    """A sequence that decodes, after so many tokens of its reply; its decoder; the reply."""
    loaded = model.loaded
    prompt, images = asked(0)
    reply = list(model.generate(prompt, images, policy=policy, max_new_tokens=16).token_ids)
    sequence, decoder = loaded.sequence(parse(policy)), loaded.decoder()
    finished(loaded.prefill(sequence, loaded.processor.encode(prompt, images)))
    decoder.join([sequence], 32)
    for token in reply[:tokens]:
        decoder.run([token])
    return sequence, decoder, reply


def several(model: LVLM, sequence: Sequence, tokens: list[int]) -> np.ndarray:
    loaded = model.loaded
    hidden = loaded.embedding.lookup(np.array(tokens))
    return extend(sequence, loaded.package.manifest, hidden, tokens)


@pytest.mark.parametrize("policy", ["dense", "fastv", "avl:refresh=9"])
def test_after_a_rollback_nothing_was_ever_drafted(tiny: LVLM, policy: str) -> None:
    _, plain, reply = begun(tiny, policy, 2)
    sequence, decoder, _ = begun(tiny, policy, 2)
    length = sequence.length
    several(tiny, sequence, [reply[2], 7, 11])  # two drafted wrongly
    assert sequence.length == length + 3
    sequence.roll_back(length + 1)
    wanted = [plain.run([token])[0].copy() for token in reply[2:5]]
    found = [decoder.run([token])[0].copy() for token in reply[3:5]]
    for ours, theirs in zip(found, wanted[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_several_rows_at_once_are_as_one_by_one(tiny: LVLM) -> None:
    """In a batch too, of which one sequence alone goes on by several."""
    _, plain, reply = begun(tiny, "dense", 2)
    wanted = [plain.run([token])[0].copy() for token in reply[2:6]]
    sequence, decoder, _ = begun(tiny, "dense", 2)
    other, _, others = begun(tiny, "avl", 0)
    _, other_plain, _ = begun(tiny, "avl", 0)
    decoder.leave(sequence, keep=True)
    decoder.join([other, sequence], 32)
    logits = several(tiny, sequence, reply[2:5])
    np.testing.assert_allclose(logits, wanted[2], atol=1e-5, rtol=0)
    both = decoder.run([others[0], reply[5]])
    np.testing.assert_allclose(both[1], wanted[3], atol=1e-5, rtol=0)
    np.testing.assert_allclose(both[0], other_plain.run([others[0]])[0], atol=1e-5, rtol=0)


def test_rows_that_are_read_half_are_taken_back(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence, decoder, reply = begun(tiny, "dense", 2)
    read, length, step = HostExecutor.read, sequence.length, sequence.step

    def interrupted(self: HostExecutor, segment: int, *given: Any, **more: Any) -> Any:
        if segment:
            raise KeyboardInterrupt
        return read(self, segment, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(HostExecutor, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            several(tiny, sequence, reply[2:5])
    assert (sequence.length, sequence.step) == (length, step)
    _, plain, _ = begun(tiny, "dense", 2)
    assert decoder.run([reply[2]]).tobytes() == plain.run([reply[2]]).tobytes()
    with pytest.raises(ValueError, match="1 to 256 tokens at once, found 300"):
        several(tiny, sequence, [7] * 300)


def test_what_a_policy_has_moved_cannot_be_taken_back(tiny: LVLM) -> None:
    for policy, tokens in (("avl:refresh=3", 3), ("avl:text=0.5,text_min=4", 1)):
        sequence, _, _ = begun(tiny, policy, tokens)
        with pytest.raises(RollbackError, match="read the conversation anew"):
            sequence.roll_back(sequence.length - 1)
    sequence, decoder, reply = begun(tiny, "avl:refresh=3", 4)
    sequence.roll_back(sequence.length - 1)
    decoder.run([reply[3]])
    with pytest.raises(ValueError, match="to go back to"):
        sequence.roll_back(sequence.length + 1)
    with pytest.raises(RollbackError):
        sequence.roll_back(3)


# A ranking of one's own.


def columns(mask: np.ndarray) -> list[int]:
    return sorted({int(i) % 12 for i in np.flatnonzero(mask)})


@pytest.mark.parametrize("kernels_on", [True, False])
def test_a_ranking_of_ones_own_gets_its_rows(
    tiny: LVLM, tiny_package: Any, monkeypatch: pytest.MonkeyPatch, kernels_on: bool
) -> None:
    model = tiny
    if not kernels_on:
        from avl_plugins import cpu

        monkeypatch.setenv(cpu.SWITCH, "off")
        model = LVLM.load(tiny_package, backend="ort-cpu")
    prompt, images = asked(0)
    result = model.generate(prompt, images, policy=Left(), max_new_tokens=8, return_placements=True)
    assert len(result.placements) == 4
    for placed in result.placements:
        for layer in range(6):
            assert columns(placed.core[layer]) == [0, 1, 2]
            assert columns(placed.parked[layer]) == [3, 4, 5]
    (placed,) = model.generate(
        prompt, images, policy=Left(prune=True), max_new_tokens=2, return_placements=True
    ).placements
    assert [columns(layer) for layer in placed.core] == [[*range(12)]] * 2 + [[*range(6)]] * 4


@dataclass(frozen=True)
class Pyramid(Policy):
    """Fewer image tokens the deeper the layer: no two layers hold as many rows."""

    name: ClassVar[str] = "pyramid"

    def actions(self) -> tuple[Action, ...]:
        return (ByDepth(), Refresh(0.1, 2))


@dataclass(frozen=True, slots=True)
class ByDepth(Divide):
    keep: float = 0.9
    core: float = 0.5

    def choose(self, view: View) -> Any:
        found = []
        for index in range(len(view.positions)):
            share = 0.9 - 0.1 * (view.layer + index)
            one = View(
                view.positions[index : index + 1],
                view.attention[index : index + 1],
                view.layer + index,
                view.step,
                view.total,
            )
            found.append(Divide(share, share / 2).choose(one)[0])
        return np.stack(found)


@pytest.mark.parametrize("steps", [1, 7])
def test_layers_may_hold_different_numbers_of_rows(tiny: LVLM, steps: int) -> None:
    prompt, images = asked(0)
    placed = tiny.generate(
        prompt, images, policy=Pyramid(), max_new_tokens=steps, return_placements=True
    ).placements
    kept = [int(0.9 * 144 - 14.4 * layer + 1e-9) for layer in range(6)]
    assert (placed[0].core | placed[0].parked).sum(1).tolist() == kept
    assert placed[0].core.sum(1).tolist() == [
        int((0.45 - 0.05 * layer) * 144 + 1e-9) for layer in range(6)
    ]
    if steps > 2:  # the refresh draws another core, of the same size in every layer
        assert placed[1].core.sum(1).tolist() == [14] * 6
        assert (placed[1].core | placed[1].parked).sum(1).tolist() == kept


@dataclass(frozen=True, slots=True)
class Odd(Divide):
    """Answers what it is told to."""

    keep: float = 0.5
    core: float = 0.5
    answer: str = "shape"

    def choose(self, view: View) -> Any:
        if self.answer == "shape":
            return np.zeros(3, np.int8)
        if self.answer == "kind":
            return np.zeros(view.positions.shape, np.bool_)
        if self.answer == "number":
            return np.full(view.positions.shape, 3, np.int8)
        return None


@dataclass(frozen=True, slots=True)
class Uneven(TextBudget):
    """Another number of rows for each KV head, or for each layer."""

    ratio: float = 0.5
    minimum: int = 2
    heavy: float = 0.5
    by_layer: bool = False

    def limit(self, total: int) -> int | None:
        return None

    def choose(self, view: View) -> Any:
        fates = np.zeros(view.positions.shape, np.int8)
        for layer, heads in enumerate(fates):
            for head, rows in enumerate(heads):
                newest = np.argsort(-view.positions[layer, head])
                rows[newest[: layer if self.by_layer else head]] = DROPPED
        return fates


@dataclass(frozen=True)
class Of(Policy):
    """A policy of one action."""

    action: Action
    name: ClassVar[str] = "of"

    def actions(self) -> tuple[Action, ...]:
        return (self.action,)

    def __str__(self) -> str:
        return self.name


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (Odd(), r"Odd: expected int8 \(2, 144\) from choose\(\), .* found int8 \(3,\)"),
        (Odd(answer="kind"), r"found bool \(2, 144\)"),
        (Odd(answer="number"), "ACTIVE, PARKED or DROPPED"),
        (Odd(answer="nothing"), "found <class 'NoneType'> ; mend"),
        (Uneven(), "Uneven: expected the KV heads of a layer to drop as many"),
    ],
)
def test_an_action_that_answers_nonsense_is_named(tiny: LVLM, action: Action, says: str) -> None:
    prompt, images = asked(0)
    with pytest.raises(AvlError, match=says):
        tiny.generate(prompt, images, policy=Of(action), max_new_tokens=3)


def test_layers_may_evict_different_numbers_of_text_rows(tiny: LVLM) -> None:
    prompt, images = asked(0)
    chat = tiny.chat(Of(Uneven(by_layer=True)))
    chat.send(prompt, images, max_new_tokens=1)
    whole = chat._kept.sequence.length
    held = [int(n) for cache in chat._kept.sequence.caches for n in cache.active_len[:, 0]]
    assert held == [whole - layer for layer in (0, 1, 0, 1, 2, 3)]


def test_fractions_of_a_chain_are_of_all_image_tokens(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """What a later layer keeps is no fraction of what an earlier one left, and costs say so."""
    out = tmp_path / "cut.avl"
    arguments = ["--model", str(tiny_checkpoint), "--out", str(out), "--no-check"]
    assert avl_export([*arguments, "--split", "2,4"]) == 0
    model = LVLM.load(out, backend="ort-cpu", threads=1)
    prompt, images = asked(0)
    policy = "fastv:layer=4,keep=0.5+fastv:keep=0.75"
    (placed,) = model.generate(
        prompt, images, policy=policy, max_new_tokens=1, return_placements=True
    ).placements
    kept = [144, 144, 108, 108, 72, 72]
    assert placed.core.sum(1).tolist() == kept
    assert placed_rows(model.package.manifest.dims, parse(policy).actions(), 144)[0] == kept


@pytest.mark.parametrize("left", [(), (50,)])
@pytest.mark.parametrize("options", [{}, {"prompt_lookup": 4}])
def test_rules_that_leave_no_token_end_their_own_request(
    tiny: LVLM, left: tuple[int, ...], options: dict[str, Any]
) -> None:
    """At the first token, and in a step: with one token that may come, and may come once."""
    prompt, images = asked(1)
    whole = tiny.generate(prompt, images, max_new_tokens=12)
    scheduler = Scheduler(tiny)
    other = scheduler.add(prompt, images, max_new_tokens=12)
    banned = sorted(set(range(tiny.package.manifest.dims.vocab_size)) - set(left))
    failing = scheduler.add(
        prompt, images, suppress_tokens=banned, no_repeat_ngram_size=1, **options
    )
    while not (other.done and failing.done):
        scheduler.step()
    assert other.result.token_ids == whole.token_ids
    assert failing.reply.token_ids == list(left)
    with pytest.raises(SamplingError, match="a token that penalties and bans leave"):
        _ = failing.result
    assert scheduler.requests == () and failing.sequence.caches == []
    assert tiny.generate(prompt, images, max_new_tokens=12).token_ids == whole.token_ids


def test_rows_of_drafts_that_cannot_be_stored_end_all(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One segment has the rows then and the next has not, so that the batch cannot go on."""
    prompt, images = asked(0)
    whole = tiny.generate(prompt, images, max_new_tokens=12)
    scheduler = Scheduler(tiny)
    requests = [
        scheduler.add(prompt, images, policy=policy, max_new_tokens=12)
        for policy in ("avl:exact,n=4", "dense")
    ]
    store = HostChecked.store

    def fails(self: HostChecked, segment: int, index: int, count: int) -> None:
        if segment == 1:
            raise AvlError("expected memory for rows, found none")
        store(self, segment, index, count)

    with monkeypatch.context() as patch:
        patch.setattr(HostChecked, "store", fails)
        while scheduler.requests:
            scheduler.step()
    for request in requests:
        with pytest.raises(AvlError, match="expected memory for rows"):
            _ = request.result
    assert tiny.generate(prompt, images, max_new_tokens=12).token_ids == whole.token_ids

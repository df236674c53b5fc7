"""`avl:exact` says what dense attention says: greedy, sampled, in chats, in batches, at random."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.errors import PolicyError
from avl_plugins.policies import Drafting, parse
from avl_runtime import LVLM
from avl_runtime.execute.host.batch import HostBatch
from avl_runtime.generate.core_drafts import AT_LEAST, EACH, PASS, CoreDrafts
from avl_runtime.generate.options import Options
from avl_runtime.generate.reply import Reply
from avl_runtime.requests import Request, Scheduler
from avl_runtime.requests.request import CancelledError
from avl_runtime.tasks import sample
from support.random_llava import draw_images, write_checkpoint

SPECS = ("avl:exact,core=0.1,n=8", "avl:exact,core=0.02,n=16", "avl:exact,core=0.3,n=2")
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "seed": 5, "top_p": 0.95},
    "ruled": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4, "stop": "ring"},
}


def asked(number: int) -> tuple[str, list[Any]]:
    one = sample("caption" if number % 2 else "ocr", "held-out", 60 + number)
    return one.prompt, [one.image]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_replies_are_dense_ones(tiny: LVLM, spec: str, options: dict[str, Any]) -> None:
    drafted = accepted = 0
    for number in range(4):
        prompt, images = asked(number)
        given = {"max_new_tokens": 40, "return_logits": True, **options}
        wanted = tiny.generate(prompt, images, policy="dense", **given)
        found = tiny.generate(prompt, images, policy=spec, **given)
        assert (found.token_ids, found.text) == (wanted.token_ids, wanted.text)
        assert found.finish_reason == wanted.finish_reason
        np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-4, rtol=0)
        (source,) = found.stats.drafts
        assert source.source == "core"
        drafted, accepted = drafted + source.drafted, accepted + source.accepted
    assert 0 < accepted <= drafted


def test_lookup_drafts_first_and_the_core_where_it_does_not(tiny: LVLM) -> None:
    one = sample("caption", "held-out", 44)
    said = tiny.generate(one.prompt, [one.image], policy="dense", max_new_tokens=30).text
    text = f"{said} {said} {one.prompt}"
    given: dict[str, Any] = {"max_new_tokens": 40}
    wanted = tiny.generate(text, [one.image], policy="dense", **given)
    found = tiny.generate(text, [one.image], policy=SPECS[0], prompt_lookup=7, **given)
    assert found.token_ids == wanted.token_ids
    assert [each.source for each in found.stats.drafts] == ["prompt lookup", "core"]
    assert found.stats.drafts[1].accepted > 0


def test_a_conversation_goes_on_as_a_dense_one(tiny: LVLM) -> None:
    chats = [tiny.chat(policy=policy) for policy in ("dense", SPECS[0])]
    told: list[list[tuple[int, ...]]] = [[], []]
    for chat, found in zip(chats, told, strict=True):
        for number, text in enumerate(("Describe the image.", "Read the text.", "How many?")):
            images = [] if number == 1 else asked(number)[1]
            found.append(chat.send(text, images=images, max_new_tokens=24).token_ids)
        chat.undo()
        other = chat.fork()
        found.append(other.send("Describe the image.", max_new_tokens=24).token_ids)
        found.append(chat.send("Read the text.", max_new_tokens=24).token_ids)
    assert told[0] == told[1]


def test_a_turn_that_is_given_up_leaves_what_was_checked(tiny: LVLM) -> None:
    chat = tiny.chat(policy=SPECS[0])
    prompt, images = asked(1)
    with chat.stream(prompt, images=images, max_new_tokens=40) as stream:
        assert "".join(islice(stream, 2))
    anew = tiny.chat(policy="dense", messages=chat.messages)
    found, wanted = (one.send("Read the text.", max_new_tokens=24) for one in (chat, anew))
    assert found.token_ids == wanted.token_ids


BATCH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("avl:exact,core=0.1,n=8", {}),
    ("dense", {"prompt_lookup": 7}),
    ("avl:exact,core=0.05,n=4", {"temperature": 0.7, "seed": 2}),
    ("avl", {}),
    ("avl:exact,n=16", {"prompt_lookup": 15}),
    ("avl:text=0.5,text_min=4", {}),
    ("avl:exact,core=0.2,n=8+fastv", {}),
)


def test_a_batch_of_all_kinds_gives_what_each_gives_alone(tiny: LVLM) -> None:
    scheduler, requests = Scheduler(tiny), []
    for number, (policy, options) in enumerate(BATCH):
        prompt, images = asked(number)
        most = 12 + 5 * number
        requests.append(
            scheduler.add(prompt, images, policy=policy, max_new_tokens=most, **options)
        )
        scheduler.step()
        scheduler.step()
    while scheduler.requests:
        scheduler.step()
    for number, ((policy, options), request) in enumerate(zip(BATCH, requests, strict=True)):
        prompt, images = asked(number)
        alone = {name: value for name, value in options.items() if name != "prompt_lookup"}
        plain = policy if "exact" not in policy else "fastv" if "fastv" in policy else "dense"
        wanted = tiny.generate(
            prompt, images, policy=plain, max_new_tokens=12 + 5 * number, **alone
        )
        assert request.result.token_ids == wanted.token_ids
        assert request.result.finish_reason == wanted.finish_reason
        if "exact" in policy:
            assert request.result.stats.accepted > 0


def test_requests_that_all_draft_are_checked_in_one_run(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are read once for all of them, and rows are fewer than make linears differ."""
    shapes = []
    check = HostBatch.check

    def noted(self: HostBatch, drafted: Any, steps: int) -> Any:
        shapes.append(drafted.hidden.shape[:2])
        return check(self, drafted, steps)

    monkeypatch.setattr(HostBatch, "check", noted)
    for requests, rows in ((3, 8), (20, 3)):
        shapes.clear()
        images = [asked(number)[1] for number in range(requests)]
        prompts = ["Describe the image."] * requests
        given: dict[str, Any] = {"images": images, "max_new_tokens": 12}
        found = tiny.generate_batch(prompts, policy="avl:exact,core=0.1,n=8", **given)
        assert max(shapes) == (requests, rows)
        assert {count for count, _ in shapes if count > 1}
        wanted = tiny.generate_batch(prompts, policy="dense", **given)
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]


def test_what_is_cancelled_between_a_draft_and_its_check_is_gone(tiny: LVLM) -> None:
    scheduler = Scheduler(tiny)
    prompt = tiny.processor.encode(*asked(0))
    policy, options = parse(SPECS[0]), Options(max_new_tokens=20)
    sequence = tiny.loaded.sequence(policy)
    one = scheduler.submit(Request(tiny.loaded, prompt, policy, options, sequence=sequence))
    other = scheduler.add(*asked(1), policy=SPECS[0], max_new_tokens=20)
    while len(one.reply.token_ids) < 2:
        scheduler.step()
    known = [*prompt.input_ids.tolist(), *one.reply.token_ids]
    while sequence.length < len(known) + 2:  # two drafts have rows
        scheduler.step()
    assert len(known) == len(prompt.input_ids) + len(one.reply.token_ids)
    scheduler.cancel(one)
    with pytest.raises(CancelledError):
        _ = one.result
    assert sequence.token_ids == known[:-1]
    for cache in sequence.caches:
        rows = cache.active_len + cache.parked_len
        assert (rows == sequence.length).all()
    while scheduler.requests:
        scheduler.step()
    wanted = tiny.generate(*asked(1), policy="dense", max_new_tokens=20)
    assert other.result.token_ids == wanted.token_ids


def test_without_a_picture_there_is_nothing_to_leave_out(tiny: LVLM) -> None:
    found = tiny.generate("How many objects are there?", policy=SPECS[0], max_new_tokens=8)
    wanted = tiny.generate("How many objects are there?", policy="dense", max_new_tokens=8)
    assert found.token_ids == wanted.token_ids and found.stats.drafted == 0


def test_where_the_core_was_is_told_for_each_check(tiny: LVLM) -> None:
    prompt, images = asked(1)
    found = tiny.generate(
        prompt, images, policy=SPECS[0], max_new_tokens=24, return_placements=True
    )
    steps = [placement.step for placement in found.placements]
    assert steps[0] == 0 and len(steps) > 2 and steps == sorted(steps)
    for placement in found.placements:
        assert (placement.core ^ placement.parked).all()
        assert (placement.core.sum(1) == 14).all()  # a tenth of 144
    assert any((one.core != found.placements[0].core).any() for one in found.placements)


@pytest.mark.parametrize("seed", [7])
def test_random_models_in_batches(seed: int, tmp_path: Path, package_of: Any) -> None:
    checkpoint = tmp_path / "model"
    write_checkpoint(checkpoint, seed)
    model = LVLM.load(package_of(checkpoint))
    images = [[image] for image in draw_images(seed, 4, 64)]
    prompts = ["What is in the picture?", "Read the text.", "Describe the image.", "Is it red?"]
    given: dict[str, Any] = {"images": images, "max_new_tokens": 32, "temperature": 0}
    wanted = model.generate_batch(prompts, policy="dense", **given)
    for spec in SPECS:
        found = model.generate_batch(prompts, policy=spec, **given)
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
        assert sum(one.stats.drafted for one in found) > 0


# How many are drafted.


def costs(
    drafts: int, chance: float, sparse: int, parked: int, values: int, repeats: bool
) -> float:
    """Of a token, in bytes, if each draft is right by chance; `repeats`: else once more."""
    tokens = 1 + sum(chance**count for count in range(1, drafts + 1))
    once = sparse + parked + ((PASS + EACH * drafts) * values if drafts else 0)
    wrong = 1 - chance**drafts if repeats else 0
    return (once + wrong * once + drafts * sparse) / tokens


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 15), st.integers(0, 15)), max_size=12),
    st.integers(0, 1 << 30),
    st.integers(1, 1 << 30),
    st.integers(0, 1 << 29),
    st.integers(0, 15),
    st.booleans(),
)
def test_as_many_are_drafted_as_make_tokens_cheapest(
    passes: list[tuple[int, int]],
    weights: int,
    parked: int,
    values: int,
    most: int,
    repeats: bool,
) -> None:
    drafts = CoreDrafts(Drafting(15, adapts=True), repeats)
    drafts.begin(0, parked, values)
    right, wrong = 0.85 * 4, 0.15 * 4
    for drafted, accepted in passes:
        drafts.count(drafted, min(drafted, accepted))
        right = 0.9 * right + min(drafted, accepted)
        wrong = 0.9 * wrong + (accepted < drafted)
    chance, sparse = right / (right + wrong), AT_LEAST + weights
    each = [costs(count, chance, sparse, parked, values, repeats) for count in range(most + 1)]
    best = min(range(most + 1), key=each.__getitem__)
    assert drafts.starts(most, weights) == (best > 0)
    for count in range(best):
        assert not drafts.complete
        drafts.add(count, ends=False)
    assert drafts.complete == (best > 0)


def test_drafts_rest_where_they_are_wrong_and_are_tried_again() -> None:
    drafts = CoreDrafts(Drafting(15, adapts=True))
    drafts.begin(0, 1 << 27, 1 << 25)
    for _ in range(20):
        drafts.count(1, 0)
    assert [drafts.starts(15, 0) for _ in range(33)] == [*[False] * 32, True]
    assert not drafts.starts(0, 0)  # a reply that has no room for them


def test_a_draft_that_ends_the_reply_is_checked_at_once() -> None:
    drafts = CoreDrafts(Drafting(7, adapts=False))
    drafts.begin(10, 10, 5)
    assert drafts.starts(15, 0)
    drafts.add(5, ends=False)
    assert not drafts.complete
    drafts.add(2, ends=True)
    assert drafts.complete and drafts.pending == [5, 2]


# Sampling.


def test_guesses_are_drawn_as_tokens_are_and_tokens_as_without_them(tiny: LVLM) -> None:
    """Draws follow the model's own distribution, and drafts of one like it are mostly right."""
    random = np.random.default_rng(3)
    logits = np.float32(random.normal(0, 1.5, 12))
    near = np.float32(logits + random.normal(0, 0.1, 12))
    share = np.exp(logits - logits.max(), dtype=np.float64)
    share /= share.sum()
    other = np.exp(near - near.max(), dtype=np.float64)
    other /= other.sum()
    tokenizer, draws = tiny.processor.tokenizer, 3000
    options = Options(max_new_tokens=draws, temperature=1.0, seed=4).over(
        tiny.package.manifest.generation
    )
    with_guesses, without = (Reply(tokenizer, (), options, False) for _ in range(2))
    right = 0
    for _ in range(draws):
        guess = with_guesses.guess(near, [], 0)
        with_guesses.guess(near, [], 1)
        with_guesses.take(logits, [], draws)
        without.take(logits, [], draws)
        right += guess == with_guesses.token_ids[-1]
    assert with_guesses.token_ids == without.token_ids
    counts = np.bincount(with_guesses.token_ids, minlength=12)
    chi = ((counts - draws * share) ** 2 / (draws * share)).sum()
    assert chi < 31.3  # 11 degrees of freedom: one seed in a thousand is above
    assert right / draws > 1 - 3 * 0.5 * np.abs(share - other).sum()


# Refusals.


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("avl:exact,keep=0.5", "avl:exact: expected a known option, found 'keep'; use core, n"),
        ("avl:exact,n=0", "avl:exact: expected n to be a whole number of at least 1, found 0"),
        ("avl:exact,n=17", "avl:exact: expected n of at most 16, found 17"),
        ("avl:exact,core=0", "avl:exact: expected core above 0"),
        ("avl:exact=True", "avl: expected a known option, found 'exact'"),
        ("avl:core=0.2,exact", "avl: expected options as key=value, found 'exact'"),
        ("avl+avl:exact", "both to say which image tokens are read in every step"),
    ],
)
def test_what_it_does_not_take_is_told(tiny: LVLM, spec: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        tiny.generate("Hello", policy=spec)

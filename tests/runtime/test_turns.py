"""Whose prompt is read next: counted in chunks, on prompts that are nothing but numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_runtime import LVLM
from avl_runtime.requests import Scheduler
from avl_runtime.requests.turns import OLDEST, Turns
from avl_runtime.tasks import sample

CHUNK, SEGMENTS = 8, 2


def chunks(tokens: int) -> int:
    return SEGMENTS * -(-tokens // CHUNK)


@dataclass(eq=False)
class Prompt:
    """A prompt of so many tokens, and how many chunks of it are still to be read.

    Attributes:
        waited: chunks that others had since it came; `oldest`: since it was the first of all.
    """

    tokens: int
    left: int = field(init=False)
    waited: int = 0
    oldest: int = 0

    def __post_init__(self) -> None:
        self.left = chunks(self.tokens)


def read(turns: Turns[Prompt], room: int = 1 << 30) -> Prompt | None:
    """Read one chunk, as an executor with so much room would."""
    waiting = turns.waiting
    chosen = turns.next(room)
    for one in waiting:
        if one is not chosen:
            one.waited += 1
            one.oldest += one is waiting[0]
    if chosen is not None:
        chosen.left -= 1
        if not chosen.left:
            turns.remove(chosen)
    return chosen


def come(turns: Turns[Prompt], tokens: int) -> Prompt:
    prompt = Prompt(tokens)
    turns.add(prompt, tokens)
    return prompt


Arrivals = st.lists(st.lists(st.integers(1, 20 * CHUNK), max_size=3), min_size=1, max_size=40)


@given(Arrivals)
@settings(deadline=None)
def test_no_prompt_waits_for_ever_and_no_chunk_is_wasted(arrivals: list[list[int]]) -> None:
    """Whatever comes, the oldest has one of `OLDEST` chunks, so all are read in their time."""
    turns: Turns[Prompt] = Turns(CHUNK)
    came: list[Prompt] = []
    while arrivals or turns.waiting:
        came += [come(turns, tokens) for tokens in (arrivals.pop(0) if arrivals else ())]
        waited = bool(turns.waiting)
        assert (read(turns) is not None) == waited
    before = 0
    for prompt in came:
        assert prompt.left == 0
        assert prompt.oldest <= (OLDEST - 1) * (chunks(prompt.tokens) + 1)
        before += chunks(prompt.tokens)
        assert prompt.waited <= OLDEST * before


@given(Arrivals, st.integers(1, 3 * CHUNK // 2 * SEGMENTS), st.integers(0, 60))
@settings(deadline=None)
def test_a_short_prompt_waits_for_one_chunk_of_others(
    arrivals: list[list[int]], _tokens: int, later: int
) -> None:
    """Where no other of a chunk waits; with the one that is read as it comes that makes two."""
    turns: Turns[Prompt] = Turns(CHUNK)
    for step in range(later):
        for tokens in arrivals[step] if step < len(arrivals) else ():
            come(turns, tokens + CHUNK)
        read(turns)
    short = come(turns, _tokens % CHUNK + 1)
    while short.left:
        read(turns)
    assert short.waited <= 1


@given(Arrivals)
@settings(deadline=None)
def test_prompts_of_a_size_are_read_one_after_the_other(arrivals: list[list[int]]) -> None:
    """But for the oldest: rows of one are there for the next that begins alike."""
    turns: Turns[Prompt] = Turns(CHUNK)
    while arrivals or turns.waiting:
        for tokens in arrivals.pop(0) if arrivals else ():
            come(turns, tokens)
        read(turns)
        half = [one for one in turns.waiting[1:] if one.left < chunks(one.tokens)]
        sizes = [turns.size(one.tokens) for one in half]
        assert len(set(sizes)) == len(sizes)
        assert turns.begun <= len(half) + 1


@given(Arrivals, st.integers(1, 4), st.lists(st.integers(0, 30), min_size=1))
@settings(deadline=None)
def test_no_more_are_begun_than_there_is_room_for(
    arrivals: list[list[int]], most: int, lasting: list[int]
) -> None:
    """Nor does a flood of short prompts take the room that comes before the oldest's turn."""
    turns: Turns[Prompt] = Turns(CHUNK)
    running: list[int] = []  # chunks' time that each of those decodes
    idle = count = 0
    while arrivals or turns.waiting:
        for tokens in arrivals.pop(0) if arrivals else ():
            come(turns, tokens)
        running = [left - 1 for left in running if left > 1]
        waited = bool(turns.waiting)
        chosen = read(turns, most - len(running) - turns.begun)
        idle = idle + 1 if waited and chosen is None else 0
        assert idle <= 31  # whoever runs ends one day
        if chosen is not None and not chosen.left:
            running.append(lasting[count % len(lasting)])
            count += 1
        assert turns.begun + len(running) <= most
        if turns.waiting:
            oldest = turns.waiting[0]
            assert oldest.oldest <= (OLDEST + 32 * most) * (chunks(oldest.tokens) + most * 40)


def test_sizes_are_powers_of_two_of_a_chunk() -> None:
    turns: Turns[int] = Turns(256)
    assert [turns.size(tokens) for tokens in (1, 256, 257, 512, 513, 1024, 1025)] == [
        *(0, 0, 1, 1, 2, 2, 3)
    ]


@pytest.mark.parametrize("runs", [True, False], ids=["while another decodes", "alone"])
def test_a_first_token_does_not_wait_for_a_long_prompt(tiny: LVLM, runs: bool) -> None:
    """The long one needs at least 10 chunks more; the short one two, and one at most is another's.

    It goes on decoding meanwhile, and both answers are as each alone.
    """
    scheduler = Scheduler(tiny)
    text = " ".join(["a"] * 700)
    other = sample("caption", "held-out", 89)
    if runs:
        scheduler.add(other.prompt, [other.image], max_new_tokens=60)
        while not scheduler.running:
            scheduler.step()
    long = scheduler.add(text, max_new_tokens=4)
    scheduler.step()
    short = scheduler.add("How many?", max_new_tokens=4)
    steps = 0
    while not short.reply.token_ids:
        scheduler.step()
        steps += 1
    assert steps <= 3 and not long.reply.token_ids
    while not short.done:
        scheduler.step()
    assert not long.reply.token_ids
    while scheduler.requests:
        scheduler.step()
    for prompt, request in ((text, long), ("How many?", short)):
        assert request.result.token_ids == tiny.generate(prompt, max_new_tokens=4).token_ids


def test_a_first_token_is_told_before_those_that_wait_are_read(tiny: LVLM) -> None:
    """Requests that wait together begin to decode together; their first tokens need no batch."""
    scheduler = Scheduler(tiny)
    asked = [sample("caption", "held-out", 90 + number) for number in range(3)]
    requests = [scheduler.add(one.prompt, [one.image], max_new_tokens=5) for one in asked]
    told: list[int] = []
    while not scheduler.running:
        for moved in scheduler.step():
            assert moved.fresh == moved.reply.text
            told.append(requests.index(moved))
    assert told == [0, 1, 2] and len(scheduler.running) == 3
    texts = [request.fresh for request in requests]
    while scheduler.requests:
        for moved in scheduler.step():
            texts[requests.index(moved)] += moved.fresh
    expected = [tiny.generate(one.prompt, [one.image], max_new_tokens=5).text for one in asked]
    assert texts == expected


def test_who_has_told_a_first_token_waits_for_no_more_than_the_last_prompt(tiny: LVLM) -> None:
    """A request alone tells its first token before it joins; of several, the last one joins."""
    scheduler = Scheduler(tiny)
    lone = scheduler.add("How many?", max_new_tokens=2)
    while not lone.reply.token_ids:
        scheduler.step()
    assert not scheduler.running
    assert scheduler.step() == [] and scheduler.running == (lone,)
    scheduler.cancel(lone)
    first, last = (scheduler.add("How many?", max_new_tokens=2) for _ in range(2))
    while not last.reply.token_ids:
        scheduler.step()
    assert scheduler.running == (first, last)


def test_an_answer_of_one_token_waits_for_no_other_prompt(tiny: LVLM) -> None:
    scheduler = Scheduler(tiny)
    asked = [sample("caption", "held-out", 90 + number) for number in range(2)]
    first, second = (scheduler.add(one.prompt, [one.image], max_new_tokens=1) for one in asked)
    while not first.done:
        scheduler.step()
    assert first.result.token_ids and not second.reply.token_ids
    while scheduler.requests:
        scheduler.step()
    assert second.result.token_ids

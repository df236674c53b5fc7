"""Turns, waiting for an idle machine, and statistics, with clocks and workers that are not real."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_plugins.policies import parse
from avl_runtime.bench.candidates import Candidate
from avl_runtime.bench.errors import BenchError
from avl_runtime.bench.idle import Load, wait_idle
from avl_runtime.bench.schedule import Run, as_run, interleave, orders
from avl_runtime.bench.summary import Loaded, Spread, refresh_steps, summarize
from avl_runtime.evaluate.cost import Request
from avl_runtime.package.dims import Dims

DIMS = Dims(64, 128, 4, 4, 2, 16, 100, 512, 1)


def make_run(prefill: float = 1.0, steps: tuple[float, ...] = (0.1, 0.2), **others: float) -> Run:
    return Run(None, prefill, steps, 1.5, 1000, 2000, ((1, 2, 3),), others.get("others"))


@given(st.integers(1, 6), st.integers(0, 20))
def test_every_candidate_runs_once_a_round_and_begins_equally_often(
    count: int, rounds: int
) -> None:
    names = [f"c{i}" for i in range(count)]
    found = orders(names, rounds)
    assert len(found) == rounds
    assert all(sorted(order) == names for order in found)
    begins = Counter(order[0] for order in found)
    assert max(begins.values(), default=0) - min(begins[name] for name in names) <= 1


def test_candidates_take_turns_and_warm_up_rounds_do_not_count() -> None:
    calls: list[str] = []
    clock = iter(range(100))

    def candidate(name: str) -> Callable[[], Run]:
        def run() -> Run:
            calls.append(name)
            return make_run(prefill=float(next(clock)))

        return run

    found = interleave(
        {name: candidate(name) for name in "abc"}, 3, 1, lambda: calls.append("wait")
    )
    assert calls[0::2] == ["wait"] * 12
    assert "".join(calls[1::2]) == "abcbcacababc"
    # The clock stood at 0, 1, 2 during the round that does not count.
    assert [run.prefill_s for run in found["a"]] == [5, 7, 9]
    assert {name: len(runs) for name, runs in found.items()} == {"a": 3, "b": 3, "c": 3}


class FakeMachine:
    """Processors that are busy by a script: a share for each look, two seconds apart."""

    def __init__(self, shares: Iterator[float]) -> None:
        self._shares = shares
        self._load = Load(0, 0)
        self.slept = 0.0

    def read(self) -> Load:
        return self._load

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        share = next(self._shares)
        self._load = Load(self._load.busy + round(200 * share), self._load.total + 200)


def test_it_waits_until_the_machine_is_idle() -> None:
    machine = FakeMachine(iter([0.9, 0.5, 0.11, 0.05, 0.0]))
    assert wait_idle(60, machine.read, machine.sleep) == pytest.approx(0.05)
    assert machine.slept == 2.0


def test_a_machine_that_stays_busy_is_refused_in_a_sentence() -> None:
    machine = FakeMachine(iter([0.63] * 100))
    with pytest.raises(BenchError, match=r"expected an idle machine, found 63% .* after 5 s .*--"):
        wait_idle(5, machine.read, machine.sleep)
    assert machine.slept == 5.0


def test_without_a_limit_or_proc_it_does_not_look() -> None:
    machine = FakeMachine(iter([]))
    assert wait_idle(0, machine.read, machine.sleep) is None
    assert wait_idle(9, lambda: None, machine.sleep) is None
    assert machine.slept == 0


def test_what_others_used_is_the_machine_less_the_worker() -> None:
    answer = {
        "encode_s": None,
        "prefill_s": 1.0,
        "steps_s": [0.5],
        "cpu_s": 2.0,
        "kv_bytes": 1,
        "peak_rss_bytes": 1,
        "tokens": [[1]],
    }
    # 2 processors for 2 s at 100 ticks: 400 in all, 300 busy, 200 of them the worker's.
    run = as_run(answer, Load(0, 0), Load(300, 400), 100)
    assert run.others == pytest.approx(0.25)
    assert as_run(answer, None, None, 100).others is None
    assert as_run(answer, Load(0, 0), Load(100, 400), 100).others == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_spreads_are_the_textbooks(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.median == pytest.approx(statistics.median(values))
    assert (spread.minimum, spread.maximum) == (min(values), max(values))
    assert spread.minimum <= spread.quartile_1 <= spread.median * (1 + 1e-12)
    assert spread.median <= spread.quartile_3 * (1 + 1e-12) <= spread.maximum * (1 + 1e-11)


def test_quartiles_of_known_numbers() -> None:
    assert Spread.of([7, 1, 3, 5, 9]) == Spread(5, 1, 3, 7, 9)
    assert Spread.of([4]) == Spread(4, 4, 4, 4, 4)


def told(policy: str, same: bool = True, note: str = "") -> Loaded:
    candidate = Candidate("c", "avl", (), parse(policy).actions(), same_prompt=same, note=note)
    return Loaded(candidate, "fp32", 500)


def test_refreshes_are_told_apart_from_ordinary_steps() -> None:
    steps = (0.01, 0.02, 0.5, 0.03, 0.04, 0.7, 0.05)
    runs = [make_run(1.0, steps, others=0.0), make_run(3.0, steps, others=0.2)]
    request = Request(prompt=40, visual=20, steps=7, before=5)
    row = summarize(told("avl:keep=0.5,core=0.2,refresh=3"), runs, DIMS, request, 1, runs[0])
    assert row.decode_step is not None and row.refresh_step is not None
    assert row.decode_step.median == pytest.approx(30)
    assert row.refresh_step.median == pytest.approx(600)
    assert row.decode_token is not None
    assert row.decode_token.median == pytest.approx(1e3 * sum(steps) / 7)
    assert row.prefill == Spread(2000, 1000, 1500, 2500, 3000)
    assert row.end_to_end.minimum == pytest.approx(1e3 * (1 + sum(steps)))
    assert row.disturbed == 1 and row.same_tokens == 1
    assert row.step_ms == tuple(1e3 * step for step in steps)
    assert row.encode is None


def test_without_parked_rows_no_step_is_a_refresh() -> None:
    visual = Request(40, 20, 9, 5)
    assert refresh_steps(parse("avl:refresh=3").actions(), DIMS, visual) == {2, 5, 8}
    assert refresh_steps(parse("avl:refresh=3").actions(), DIMS, Request(40, 0, 9, 40)) == set()
    assert refresh_steps(parse("avl:keep=0.3,core=0.3").actions(), DIMS, visual) == set()
    assert refresh_steps(parse("fastv").actions(), DIMS, visual) == set()


def test_tokens_are_compared_with_the_first_candidates() -> None:
    first = make_run()
    other = Run(None, 1, (0.1, 0.2), 1, 1, 1, ((1, 9, 3),))
    request = Request(40, 20, 2, 5)
    assert summarize(told("dense"), [other], DIMS, request, 1, first).same_tokens == 2 / 3
    assert (
        summarize(told("dense", same=False), [other], DIMS, request, 1, first).same_tokens is None
    )


def test_without_pictures_all_are_asked_the_same() -> None:
    run, other = make_run(), told("dense", same=False, note="pictures are not encoded")
    seen, blind = (
        summarize(other, [run], DIMS, Request(40, visual, 2, 5), 1, run) for visual in (20, 0)
    )
    assert (seen.same_tokens, seen.note) == (None, "pictures are not encoded")
    assert (blind.same_tokens, blind.note) == (1, "")


def test_a_single_token_has_no_steps() -> None:
    run = make_run(steps=())
    row = summarize(told("dense"), [run], DIMS, Request(40, 0, 0, 40), 1, run)
    assert row.decode_step is row.refresh_step is row.decode_token is None
    assert row.decode_flops == 0 and row.step_ms == ()

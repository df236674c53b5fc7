"""Prompts that begin as earlier ones did: what they take from them changes no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.execute.host.executor import HostExecutor
from avl_runtime.execute.protocol import BackendError
from avl_runtime.kv.prefixes import Block, PrefixCache
from avl_runtime.prompts.features import FeatureCache
from avl_runtime.prompts.option_values import OptionError
from avl_runtime.requests import Scheduler
from avl_runtime.tasks import sample

KINDS = ("fp32", "fp16", "int8", "int8-int2")
DROPPING = ("fastv", "avl+fastv", "random:seed=3")  # hidden states, behind layer 2
POLICIES = (
    *DROPPING,
    "dense",
    "avl",
    "avl:refresh=1,core=0.1",
    "avl:text=0.5,text_min=4",
    "avl:text=0.5,text_min=4,prefill=0.6",
    "akvq",
    "random:of=avl,refresh=2",
    "divprune:keep=0.7",
    "mmtok:keep=0.6+fastv",
    "pool:keep=0.5",
)
PICTURES = [sample("caption", "held-out", 90 + number).image for number in range(3)]
TEXTS = ("Read the text.", "How many objects are there?", "Is it?")
PICTURE = 144  # tokens of one


@pytest.fixture(scope="module")
def loaded(tiny_package: Path) -> dict[str, LVLM]:
    """avl-tiny with rows of each kind, which it keeps for later prompts."""
    return {
        kind: LVLM.load(tiny_package, "ort-cpu", kv=kind, prefix_cache=1 << 30) for kind in KINDS
    }


@pytest.fixture
def models(loaded: dict[str, LVLM]) -> dict[str, LVLM]:
    """The same, with nothing kept yet."""
    for model in loaded.values():
        assert model.loaded.prefixes is not None
        model.loaded.prefixes.clear()
        model.loaded.prefixes.limit, model.loaded.executor.chunk = 1 << 30, 256
    return loaded


def parts(drawn: list[int]) -> list[dict[str, Any]]:
    """Pictures 0 to 2 and texts from 3 on, in the order drawn."""
    shown, said = len(PICTURES), len(TEXTS)
    return [
        {"type": "image", "image": PICTURES[one]}
        if one < shown
        else {"type": "text", "text": TEXTS[(one - shown) % said]}
        for one in drawn
    ]


def plain(model: LVLM, prompt: Any, *images: Any, **keywords: Any) -> Any:
    """The answer of a model that keeps nothing."""
    kept, model.loaded.prefixes = model.loaded.prefixes, None
    try:
        found = model.generate(prompt, *images, **keywords)
    finally:
        model.loaded.prefixes = kept
    assert found.stats.prefix_tokens == 0
    return found


@st.composite
def conversations(draw: Any) -> list[tuple[list[int], str]]:
    """Prompts of which most begin as another does, under two policies."""
    base = draw(st.lists(st.integers(0, 5), min_size=2, max_size=4))
    policies = st.sampled_from(draw(st.lists(st.sampled_from(POLICIES), min_size=2, max_size=2)))
    ends = st.lists(st.integers(0, 4), max_size=2)
    asked = st.tuples(st.integers(1, len(base)), ends, policies)
    return [
        ([*base[:begin], *end, 3], policy)
        for begin, end, policy in draw(st.lists(asked, min_size=2, max_size=4))
    ]


TEXT = "avl:text=0.5,text_min=4"
ALIKE = [([first, 3, 2, 4, 3], policy) for policy in ("dense", "fastv", TEXT) for first in (0, 1)]
OTHER_END = [([0, 3, 2, 5, 3], policy) for policy in (TEXT, "fastv", "dense")]


@example("fp32", 24, 1 << 30, ALIKE + OTHER_END, False, False)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    chunk=st.sampled_from([24, 100, 256]),
    limit=st.sampled_from([1 << 30, 150_000]),
    asked=conversations(),
    again=st.booleans(),
    together=st.booleans(),
)
def test_answers_are_those_of_prompts_that_are_read(
    models: dict[str, LVLM],
    kind: str,
    chunk: int,
    limit: int,
    asked: list[tuple[list[int], str]],
    again: bool,
    together: bool,
) -> None:
    """Whatever was asked before, in whatever order, alone and in a batch, with several answers."""
    model = models[kind]
    model.loaded.executor.chunk, cache = chunk, model.loaded.prefixes
    assert cache is not None
    asked = asked * 2 if again else asked
    choices = [
        {"policy": policy, "max_new_tokens": 4, "min_new_tokens": 4, "return_logits": True}
        | ({"temperature": 1.0, "seed": number // 2} if number % 3 == 2 else {})
        for number, (_, policy) in enumerate(asked)
    ]
    prompts = [parts(drawn) for drawn, _ in asked]
    expected = [plain(model, one, **each) for one, each in zip(prompts, choices, strict=True)]
    cache.clear()
    cache.limit = limit
    scheduler, requests = Scheduler(model), []
    for prompt, each in zip(prompts, choices, strict=True):
        requests.append(scheduler.add(prompt, **each))
        while not together and scheduler.requests:
            scheduler.step()
        assert cache.nbytes <= limit
    while scheduler.requests:
        scheduler.step()
    if again and limit > 1 << 20:
        stats = [request.result.stats for request in requests[len(asked) // 2 :]]
        known = [one.prefix_tokens for one in stats]
        read = [one.prompt_tokens - one.visual_tokens + one.visual_tokens_read for one in stats]
        assert known == [(tokens - 1) // chunk * chunk for tokens in read]
    for request, other in zip(requests, expected, strict=True):
        found = request.result
        assert found.token_ids == other.token_ids, request.policy
        assert found.stats.kv_bytes == other.stats.kv_bytes or together
        if together:  # steps of a batch sum in another order
            np.testing.assert_allclose(found.logits, other.logits, atol=0.02, rtol=0)
        else:
            np.testing.assert_array_equal(found.logits, other.logits)


@pytest.mark.parametrize("policy", ["dense", "avl", "fastv"])
def test_what_is_known_is_not_read(
    models: dict[str, LVLM], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Neither by the encoder nor by the decoder: but by layers that see what a policy drops."""
    model = models["int8"]
    model.generate(TEXTS[0], PICTURES[:2], policy=policy, max_new_tokens=1)
    rows, read = [0, 0], HostExecutor.read

    def counted(self: Any, segment: int, cache: Any, seq: int, chunk: Any, *more: Any, **a: Any):
        rows[segment] += len(chunk.positions)
        return read(self, segment, cache, seq, chunk, *more, **a)

    monkeypatch.setattr(HostExecutor, "read", counted)
    empty = FeatureCache(model.loaded.backend, model.loaded.package.manifest.encoded)
    monkeypatch.setattr(model.loaded, "features", empty)
    stats = model.generate(TEXTS[1], PICTURES[:2], policy=policy, max_new_tokens=1).stats
    images, text = 2 * PICTURE, stats.prompt_tokens - 2 * PICTURE
    unread = stats.prompt_tokens - stats.prefix_tokens
    assert stats.prefix_tokens == 256
    assert model.loaded.features.encoded == 1  # the second picture ends behind
    assert rows == [unread, images // 2 + text if policy == "fastv" else unread]


def test_a_conversation_begins_with_what_is_known(models: dict[str, LVLM], tiny: LVLM) -> None:
    model = models["fp32"]
    model.generate(TEXTS[0], PICTURES[:2], policy="avl", max_new_tokens=1)
    chat, whole = model.chat("avl"), tiny.chat("avl")
    first = chat.send(TEXTS[1], PICTURES[:2], max_new_tokens=6)
    assert first.stats.prefix_tokens == 256
    assert first.token_ids == whole.send(TEXTS[1], PICTURES[:2], max_new_tokens=6).token_ids
    other = chat.fork()
    for one in (chat, other):
        found = one.send(TEXTS[2], PICTURES[1:2], max_new_tokens=6)
        assert found.stats.prefix_tokens == 0
    expected = whole.send(TEXTS[2], PICTURES[1:2], max_new_tokens=6)
    assert found.token_ids == expected.token_ids


def test_a_prompt_that_is_given_up_leaves_nothing(models: dict[str, LVLM]) -> None:
    model = models["fp32"]
    assert model.loaded.prefixes is not None
    model.loaded.executor.chunk = 100
    scheduler = Scheduler(model)
    request = scheduler.add(TEXTS[0], PICTURES[:2], policy="dense")
    for _ in range(5):
        scheduler.step()
    cache = model.loaded.prefixes
    assert not cache.expect(cache.limit)  # some was expected of it
    scheduler.cancel(request)
    assert cache.nbytes == 0 and not scheduler.requests
    assert cache.expect(cache.limit)
    cache.unexpect(cache.limit)
    assert model.generate(TEXTS[0], PICTURES[:2], max_new_tokens=2).stats.prefix_tokens == 0


def _block(size: int) -> Block:
    return Block(((np.zeros((1, 1, 1, 1, size), np.int8),),), (), None)


@given(
    limit=st.integers(1, 40),
    chains=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=25),
)
def test_blocks_that_go_first_are_those_nobody_goes_on_from(
    limit: int, chains: list[list[int]]
) -> None:
    """Against a plain account of when each chain was last used."""
    cache, used = PrefixCache(limit), dict[bytes, int]()
    for clock, chain in enumerate(chains):
        keys = [bytes(chain[: end + 1]) for end in range(len(chain))]
        known = cache.find(keys)
        assert len(known) == sum(all(k in used for k in keys[: n + 1]) for n in range(len(keys)))
        sizes = [3 + key[-1] for key in keys]
        cache.add(keys, [*known, *map(_block, sizes[len(known) :])])
        fits = [sum(sizes[: end + 1]) <= limit for end in range(len(keys))]
        used |= {key: clock for key, one in zip(keys, fits, strict=True) if one}
        while sum(3 + key[-1] for key in used) > limit:
            leaves = [k for k in used if not any(o != k and o.startswith(k) for o in used)]
            del used[min(leaves, key=lambda key: (used[key], -len(key)))]
        assert cache.nbytes == sum(3 + key[-1] for key in used) <= limit
        assert len(cache.find(keys)) == sum(key in used for key in keys)
        used |= {key: clock for key in keys if key in used}


def test_blocks_make_way_for_those_that_are_still_made() -> None:
    cache = PrefixCache(10)
    cache.add([b"a", b"b"], [_block(4), _block(5)])
    assert cache.expect(3) and cache.nbytes == 4
    assert not cache.expect(8) and cache.nbytes == 4
    assert cache.expect(7) and not cache.find([b"a"])
    for size in (3, 7):
        cache.unexpect(size)
    cache.add([b"c"], [_block(10)])
    assert cache.nbytes == 10


@pytest.mark.parametrize("value", [0, -1, "much", 1.5, True])
def test_bytes_that_are_none_are_refused(tiny_package: Path, value: Any) -> None:
    with pytest.raises(OptionError, match="prefix_cache: expected a whole number of at least 1"):
        LVLM.load(tiny_package, "ort-cpu", prefix_cache=value)


def test_rows_elsewhere_are_not_kept(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostExecutor, "shares", False)
    assert LVLM.load(tiny_package, "ort-cpu", prefix_cache="auto").loaded.prefixes is None
    with pytest.raises(BackendError, match="prefix_cache: expected the backend ort-cpu"):
        LVLM.load(tiny_package, "ort-cpu", prefix_cache=1 << 20)
    assert issubclass(BackendError, AvlError)

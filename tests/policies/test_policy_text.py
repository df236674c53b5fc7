"""Policies as text, and the refusals."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.errors import PolicyError
from avl_plugins.policies import (
    ATTENTION,
    AVL,
    Action,
    AtRandom,
    Chain,
    Dense,
    Divide,
    FastV,
    Policy,
    Prune,
    Random,
    Refresh,
    TextBudget,
    parse,
    register,
    spec,
)

fractions = st.floats(0, 1, exclude_min=True, allow_nan=False)
counts = st.integers(1, 40)
pairs = st.tuples(fractions, fractions).map(sorted)  # core <= keep


@st.composite
def avls(draw: st.DrawFn, prefill: bool = True) -> AVL:
    core, keep = draw(pairs)
    core = draw(st.just(core) | st.none())
    filtered = draw(st.floats(keep, 1)) if prefill else 1.0
    heavy = draw(st.floats(0, 1))
    return AVL(
        keep, core, draw(counts), draw(fractions), draw(counts), heavy, filtered, draw(counts)
    )


@st.composite
def randoms(draw: st.DrawFn) -> Random:
    core, keep = draw(pairs)
    core = draw(st.just(core) | st.none())
    seed, of = draw(st.integers(0, 2**40)), draw(st.sampled_from(["fastv", "avl"]))
    return Random(keep, draw(counts), core, draw(counts), seed, of)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    first = draw(avls(prefill=False))
    return Chain(first, FastV(draw(counts), draw(st.floats(first.keep, 1))))


fastvs = st.builds(FastV, counts, fractions)
policies = st.one_of(st.just(Dense()), avls(), fastvs, randoms(), chains())


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(policy=policies)
def test_text_is_read_back(policy: Policy) -> None:
    assert parse(str(policy)) == policy
    assert str(parse(str(policy))) == str(policy)
    assert "\n" not in str(policy)


@pytest.mark.parametrize(
    ("text", "policy", "canonical"),
    [
        ("dense", Dense(), "dense"),
        ("avl", AVL(), "avl"),
        ("avl:keep=0.50, core=.2", AVL(keep=0.5, core=0.2), "avl:core=0.2"),
        (
            "avl:text=0.6,refresh=4,core=1,keep=1",
            AVL(1.0, 1.0, 4, 0.6),
            "avl:keep=1.0,core=1.0,refresh=4,text=0.6",
        ),
        ("fastv:layer=3,keep=0.25", FastV(3, 0.25), "fastv:layer=3,keep=0.25"),
        ("random:keep=0.25", Random(keep=0.25), "random:keep=0.25"),
        ("random:of=avl,seed=7", Random(seed=7, of="avl"), "random:seed=7,of=avl"),
        ("avl+fastv", Chain(AVL(), FastV()), "avl+fastv"),
        (" fastv:keep=0.75 + avl ", Chain(AVL(), FastV(keep=0.75)), "avl+fastv:keep=0.75"),
        ("avl+random", Chain(AVL(), Random()), "avl+random"),
        ("random:of=avl+fastv", Chain(Random(of="avl"), FastV()), "random:of=avl+fastv"),
    ],
)
def test_spellings(text: str, policy: Policy, canonical: str) -> None:
    assert parse(text) == policy
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "use dense, avl, avl:exact, akvq, fastv, pyramiddrop, sparsevlm, divprune, mmtok"),
        ("", "snapkv, pyramidkv, vlcache, zipvl, lookm, caac, random, or several joined by +"),
        ("fastvee", "found 'fastvee'"),
        ("avl:kept=0.5", "use keep, core, refresh, text, text_min, heavy, prefill, prefill_layer"),
        ("dense:keep=0.5", "has none"),
        ("avl:", "key=value"),
        ("avl:exact:n=4", "behind a comma, found 'avl:exact:n=4'; write avl:exact,n=4"),
        ("avl:keep", "key=value"),
        ("avl:keep=", "key=value"),
        ("avl:keep=half", "expected a number for keep, found 'half'"),
        ("fastv:layer=2.5", "expected a whole number for layer, found '2.5'"),
        ("fastv:keep=0.5,keep=0.6", "keep twice"),
        ("avl:keep=0", "keep above 0 and at most 1, found 0.0"),
        ("avl:keep=1.01", "keep above 0"),
        ("avl:keep=nan", "a number for keep"),
        ("avl:core=0", "core above 0"),
        ("avl:text=0", "text above 0"),
        ("avl:prefill=2", "prefill above 0"),
        ("avl:heavy=1.5", "heavy from 0 to 1"),
        ("avl:text_min=0", "text_min to be a whole number of at least 1"),
        ("avl:keep=0.25,core=0.3", "core of at most keep = 0.25, found 0.3"),
        ("avl:core=nan", "a number for core"),
        ("avl:refresh=0", "refresh to be a whole number of at least 1"),
        ("avl:prefill=0.4", "prefill of at least keep = 0.5, found 0.4"),
        ("avl:prefill_layer=0", "prefill_layer to be"),
        ("fastv:layer=0", "layer to be a whole number of at least 1, found 0"),
        ("random:layer=0", "layer to be"),
        ("random:of=dense", "of = fastv, avl, embedded or cached"),
        ("random:seed=-1", "seed to be"),
        ("random:of=avl,keep=0.2,core=0.3", "core of at most keep"),
        ("avl+avl", "found avl and avl both to say which image tokens are read in every step"),
        ("dense+avl", "found dense among them"),
        ("fastv+dense", "found dense among them"),
        ("fastv+random", "both to say which image tokens go on after layer 2"),
        ("avl+random:of=avl", "both to say which image tokens are read in every step"),
        ("avl+fastv+random", "found fastv and random both to say which image tokens go on"),
        ("avl:prefill=0.7+fastv", "both to say which image tokens go on after layer 2"),
        ("avl:keep=0.5+fastv:keep=0.4", "leave at least the 0.5 of the image tokens that avl"),
        ("fastv:keep=0.4+fastv:layer=4", "that fastv:layer=4 keeps, found 0.4"),
    ],
)
def test_refusals_are_one_line_that_says_which_and_why(text: str, words: str) -> None:
    with pytest.raises(PolicyError) as refusal:
        parse(text)
    assert words in str(refusal.value)
    assert "; " in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", ["0.5", None, True, float("nan"), float("inf")])
def test_values_of_other_types_are_refused(value: object) -> None:
    with pytest.raises(PolicyError):
        AVL(keep=value)
    with pytest.raises(PolicyError):
        FastV(layer=value)
    with pytest.raises(PolicyError):
        AVL(heavy=value)


def test_a_control_of_fastv_may_keep_less_than_the_unused_core() -> None:
    assert Random(keep=0.25).actions() == (Prune(2, 0.25, AtRandom(0)),)


def test_actions() -> None:
    assert Dense().actions() == ()
    assert FastV(3, 0.4).actions() == (Prune(3, 0.4, ATTENTION),)
    assert AVL().actions() == (Divide(0.5, 0.3), Refresh(0.3, 3))
    assert AVL(text=0.6, text_min=8, heavy=0.5, prefill=0.8, prefill_layer=4).actions() == (
        Prune(4, 0.8),
        Divide(0.5, 0.3),
        Refresh(0.3, 3),
        TextBudget(0.6, 8, 0.5),
    )
    drawn = AtRandom(9)
    assert Random(0.4, core=0.2, refresh=5, seed=9, of="avl").actions() == (
        Divide(0.4, 0.2, drawn),
        Refresh(0.2, 5, drawn),
    )


def test_a_chain_is_all_actions_in_the_order_of_time() -> None:
    chain = Chain(AVL(text=0.5), FastV(2, 0.75))
    assert chain == Chain(FastV(2, 0.75), AVL(text=0.5))
    assert [type(one) for one in chain.actions()] == [Prune, Divide, TextBudget, Refresh]
    three = parse("fastv:layer=4,keep=0.6+avl+fastv:keep=0.75")
    assert three.actions() == (Prune(2, 0.75), Prune(4, 0.6), Divide(0.5, 0.3), Refresh(0.3, 3))
    assert parse(str(three)) == three == Chain(parse("avl+fastv:keep=0.75"), FastV(4, 0.6))


@dataclasses.dataclass(frozen=True)
class Half(Policy):
    """Somebody else's."""

    keep: float = 0.5
    twice: bool = False
    seed: int | None = None
    name = "half-of-it"

    def actions(self) -> tuple[Action, ...]:
        return (Prune(2, self.keep),)


def test_a_policy_of_ones_own_is_known_by_its_name() -> None:
    assert register(Half) is Half is register(Half)
    policy = parse("half-of-it:keep=0.25,twice=True,seed=3")
    assert policy == Half(0.25, True, 3)
    assert parse(str(policy)) == policy
    assert str(Half()) == "half-of-it"
    assert parse("half-of-it+avl:keep=0.3").actions()[0] == Prune(2, 0.5)
    with pytest.raises(PolicyError, match="True or False for twice, found 'yes'"):
        parse("half-of-it:twice=yes")
    with pytest.raises(PolicyError, match="a whole number for seed, found 'x'"):
        parse("half-of-it:seed=x")


class Half0(Policy):
    def actions(self) -> tuple[Action, ...]:
        return (Prune(2, 0.5),)


@dataclasses.dataclass(frozen=True)
class Bare(Policy):
    name = "bare"


@dataclasses.dataclass(frozen=True)
class Odd(Half0):
    shape: tuple[int, ...] = ()
    name = "odd"


@dataclasses.dataclass(frozen=True)
class Perhaps(Half0):
    keep: float | None = 0.5
    name = "perhaps"


def test_an_option_that_may_be_none_is_read_back() -> None:
    register(Perhaps)
    for policy in (Perhaps(), Perhaps(0.4), Perhaps(None)):
        assert parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (type("Other", (Half,), {"name": "avl"}), "found avl again"),
        (type("Other", (Half,), {"name": "A VL"}), "found 'A VL'"),
        (type("Other", (), {"name": "other"}), "a dataclass derived from Policy"),
        (3, "found None"),
        (dataclasses.dataclass(type("Loose", (Half0,), {"name": "loose"})), "a frozen dataclass"),
        (Bare, "a policy with actions"),
        (Odd, "bool or str, or one of these or None, found shape: "),
    ],
)
def test_what_cannot_be_registered(kind: object, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        register(kind)


@pytest.mark.parametrize("name", list(spec._KINDS))
def test_own_policies_may_inherit_from_any_of_avls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "_KINDS", dict(spec._KINDS))
    kind = type("Heir", (spec._KINDS[name],), {"name": "heir", "__slots__": ()})
    register(dataclasses.dataclass(frozen=True)(kind))
    assert str(parse("heir")) == "heir"


def test_policies_are_values() -> None:
    assert len({AVL(), AVL(), FastV(), Dense(), Dense()}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        AVL().keep = 0.1


def test_the_core_is_all_that_is_kept_where_less_than_its_default_is_kept() -> None:
    assert AVL().core is None
    assert AVL(keep=0.25).actions() == (Divide(0.25, 0.25), Refresh(0.25, 3))
    assert str(AVL(keep=0.25)) == "avl:keep=0.25"
    drawn = AtRandom(0)
    expected = (Divide(0.1, 0.1, drawn), Refresh(0.1, 3, drawn))
    assert parse("random:of=avl,keep=0.1").actions() == expected

"""Options of somebody else's policies, and what text makes of their values."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.errors import PolicyError
from avl_plugins.policies import AVL, Action, Chain, Policy, Prune, parse, register


class Whole(Policy):
    def actions(self) -> tuple[Action, ...]:
        return (Prune(2, 0.5),)


@dataclasses.dataclass(frozen=True)
class Strange(Whole):
    shape: Unheard = 0  # type: ignore[name-defined]  # noqa: F821
    name = "strange"


@dataclasses.dataclass(frozen=True)
class Labelled(Whole):
    label: str = "a+b"
    maybe: str | None = "x"
    scale: float = 1.0
    count: int = 0
    name = "labelled"


@pytest.fixture(scope="module", autouse=True)
def known(own_policies: None) -> None:
    """`Labelled` by its name."""
    register(Labelled)


texts = st.text(max_size=6) | st.sampled_from(["a+b", "a,b", "a:b", "a=b", " a", "None", "", "ä"])
numbers = st.floats(allow_nan=False) | st.sampled_from([1e20, 1e-30, 5e-324, 1.7e308])
labelled = st.builds(Labelled, texts, texts | st.none(), numbers, st.integers(-(2**70), 2**70))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(policy=labelled)
def test_an_option_is_read_back_or_refused(policy: Labelled) -> None:
    """Whatever a policy of one's own holds: what is accepted is what its text says."""
    try:
        policy.check([2])
    except PolicyError as error:
        assert "without + , :" in str(error)
        with pytest.raises(PolicyError, match="without"):
            Chain(policy, AVL())
    else:
        assert parse(str(policy)) == policy
        chain = Chain(policy, AVL(keep=0.4))
        assert parse(str(chain)) == chain


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"label": "a+b+c"}, "labelled: expected a text without"),
        ({"label": 5}, "expected a value of type str as label, found 5; give it one"),
        ({"label": None}, "expected a value of type str as label, found None"),
        ({"maybe": "None"}, "expected a text without"),
        ({"scale": math.nan}, "expected a value of type float as scale, found nan"),
        ({"scale": "0.5"}, "expected a value of type float as scale, found '0.5'"),
        ({"scale": [0.5]}, "expected a value of type float"),
        ({"count": 4.0}, "expected a whole number for count, found '4.0'"),
        ({"count": True}, "expected a whole number for count, found 'True'"),
    ],
)
def test_options_of_other_values(values: dict[str, object], says: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(says) if "+" not in says else says):
        dataclasses.replace(Labelled(), **values).check([2])


def test_large_numbers_stand_beside_policies() -> None:
    assert str(Labelled(scale=1e20)) == "labelled:scale=1e20"
    assert parse("labelled:scale=1e20+avl") == Chain(Labelled(scale=1e20), AVL())
    for text, scale in (("inf", math.inf), ("-inf", -math.inf), (".5", 0.5), ("2.", 2.0)):
        assert parse(f"labelled:scale={text}") == Labelled(scale=scale)


@pytest.mark.parametrize("text", ["2_0", "\u0663", "0x2", "", " ", "2.0", "1e1", "9" * 5000])
def test_whole_numbers_are_plain_decimals(text: str) -> None:
    with pytest.raises(PolicyError, match=r"whole number for layer|key=value"):
        parse(f"fastv:layer={text}")


@pytest.mark.parametrize("text", ["0_1.5", "\u0660.\u0665", "Infinity", "0x1p-1", "1e", ".", "nan"])
def test_numbers_are_plain_decimals(text: str) -> None:
    with pytest.raises(PolicyError, match="a number for keep"):
        parse(f"avl:keep={text}")


def test_a_type_that_nobody_knows() -> None:
    with pytest.raises(PolicyError, match="types of options that its module knows, found name"):
        register(Strange)

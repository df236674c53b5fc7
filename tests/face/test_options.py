"""What may be asked of a generation, and how what may not is refused."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from avl_plugins.errors import AvlError
from avl_runtime import Options
from avl_runtime.generate.options import MAX_NEW_TOKENS, OptionError
from avl_runtime.package.generation_defaults import NEUTRAL, GenerationDefaults


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"max_new_tokens": np.int64(5), "top_k": np.uint8(3), "seed": 4.0}, (5, 3, 4)),
        ({"temperature": np.float32(0.5), "top_p": 1, "min_p": np.float64(0.25)}, (0.5, 1.0, 0.25)),
        ({"stop": "text"}, (("text",),)),
        ({"stop": ["a", "b"]}, (("a", "b"),)),
        ({"stop": []}, ((),)),
        ({"logit_bias": {"5": 1, np.int32(6): -2.5}}, ({5: 1.0, 6: -2.5},)),
        ({"suppress_tokens": np.array([4, 5])}, ((4, 5),)),
        ({"bad_words_ids": [[1], (2, 3)]}, (((1,), (2, 3)),)),
        ({"logprobs": 0}, (0,)),
    ],
)
def test_values_become_plain_numbers(given: dict[str, Any], kept: tuple[object, ...]) -> None:
    options = Options(**given)
    found = tuple(getattr(options, name) for name in given)
    assert found == kept
    assert [type(value) for value in found] == [type(value) for value in kept]


@pytest.mark.parametrize("name", list(Options.__dataclass_fields__))
def test_none_is_the_packages_default(name: str) -> None:
    assert Options(**{name: None}) == Options()


@pytest.mark.parametrize("least", [65, 5])
def test_a_reply_cannot_be_longer_at_least_than_at_most(least: int) -> None:
    found = None if least == 65 else 4
    words = f"min_new_tokens: expected at most max_new_tokens = {found or 64}, found {least}"
    with pytest.raises(OptionError, match=words):
        Options(found, min_new_tokens=least).over(NEUTRAL)
    with pytest.raises(OptionError, match="min_new_tokens"):
        Options.of({"options": Options(min_new_tokens=9), "max_new_tokens": 8})
    assert Options(5, min_new_tokens=5).over(NEUTRAL).min_new_tokens == 5


def test_a_packages_least_length_gives_way_to_a_callers_longest() -> None:
    """A reply that may not end before its limit ends there, which is not refused."""
    defaults = GenerationDefaults(min_new_tokens=30)
    assert Options(8).over(defaults).min_new_tokens == 8
    assert Options(99).over(defaults).min_new_tokens == 30
    assert Options().over(GenerationDefaults(min_new_tokens=70)).min_new_tokens == 64


WRONG = [
    ("max_new_tokens", 4.5),
    ("max_new_tokens", 0),
    ("max_new_tokens", True),
    ("max_new_tokens", "5"),
    ("max_new_tokens", math.nan),
    ("max_new_tokens", [5]),
    ("temperature", True),
    ("temperature", np.bool_(1)),
    ("temperature", math.inf),
    ("temperature", "0.5"),
    ("temperature", 10**400),
    ("temperature", Decimal(1)),
    ("top_k", -1),
    ("top_k", 1.5),
    ("top_p", 0),
    ("min_p", math.nan),
    ("seed", False),
    ("seed", -1),
    ("presence_penalty", 2.5),
    ("stop", 5),
    ("stop", b"x"),
    ("stop", ["a", 5]),
    ("stop", ["a", None]),
    ("stop", [""]),
    ("stop", "\udce9"),
    ("logit_bias", [5]),
    ("logit_bias", {5: "a"}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {"five": 1.0}),
    ("logit_bias", {"9" * 5000: 1.0}),
    ("logit_bias", {5: math.inf}),
    ("bad_words_ids", [5]),
    ("bad_words_ids", [[]]),
    ("suppress_tokens", "abc"),
    ("suppress_tokens", [1.5]),
    ("suppress_tokens", 5),
    ("logprobs", True),
    ("logprobs", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_a_wrong_value_is_one_short_line(name: str, value: object) -> None:
    with pytest.raises(AvlError) as caught:
        Options.of({name: value})
    said = str(caught.value)
    assert name in said and "\n" not in said and len(said) < 400


def test_a_misspelt_option_is_answered_with_the_nearest() -> None:
    for wrong, meant in (("temprature", "temperature"), ("max_tokens", "max_new_tokens")):
        with pytest.raises(OptionError, match=f"{wrong}.*did you mean {meant}"):
            Options.of({wrong: 1})
    with pytest.raises(OptionError, match=r"'zzz'.*there are max_new_tokens, temperature"):
        Options.of({"zzz": 1})


def test_options_as_one_object_with_changes() -> None:
    base = Options(temperature=0.5, top_k=4)
    assert Options.of({"options": base}) == base
    assert Options.of({"options": base, "top_k": 9}) == Options(temperature=0.5, top_k=9)
    with pytest.raises(OptionError, match="expected Options"):
        Options.of({"options": {"top_k": 9}})


def test_defaults_fill_what_is_left_open() -> None:
    defaults = GenerationDefaults(
        temperature=0.7, top_k=20, repetition_penalty=1.05, min_length=90, stop=("END",)
    )
    filled = Options(top_k=0, temperature=None).over(defaults)
    assert (filled.temperature, filled.top_k, filled.repetition_penalty) == (0.7, 0, 1.05)
    assert (filled.stop, filled.min_length, filled.max_new_tokens) == (("END",), 90, MAX_NEW_TOKENS)
    # As in `generate`, where it overrides a min_length of the checkpoint.
    assert Options(min_new_tokens=0).over(defaults).min_length == 0
    plain = Options.neutral(7).over(defaults)
    assert (plain.temperature, plain.repetition_penalty, plain.stop) == (0.0, 1.0, ())
    assert plain.max_new_tokens == 7 and not plain.sampler().draws


def test_ids_that_no_model_says_are_refused() -> None:
    Options(logit_bias={9: 1.0}, bad_words_ids=[[8], [9, 9]]).check_ids(10)
    for name, value in (
        ("logit_bias", {10: 1.0}),
        ("bad_words_ids", [[1, 10]]),
        ("suppress_tokens", [10]),
        ("begin_suppress_tokens", [99]),
    ):
        with pytest.raises(OptionError, match=f"{name}: expected token ids below 10"):
            Options(**{name: value}).check_ids(10)  # type: ignore[arg-type]

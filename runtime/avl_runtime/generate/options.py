"""What a caller may ask of a generation."""

from __future__ import annotations

import dataclasses
import difflib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avl_plugins.errors import quoted
from avl_runtime.generate.drafts import MOST_DRAFTS
from avl_runtime.generate.grammars import Constraint, schema_text
from avl_runtime.generate.sampling import Sampler
from avl_runtime.package.generation_defaults import NEUTRAL, GenerationDefaults
from avl_runtime.prompts.option_values import OptionError, flag, id_lists, ids, number, real, whole
from avl_runtime.prompts.text import StopMatcher, check_text

__all__ = ["MAX_NEW_TOKENS", "OptionError", "Options"]

MAX_NEW_TOKENS = 64
DIGITS = 20  # no token id has more


@dataclass(frozen=True, slots=True)
class Options:
    """How to generate. None stands for the package's default, which its checkpoint has set.

    Rules are applied in the order of Hugging Face's `generate`.

    Attributes:
        max_new_tokens: of the reply; 64 by default, whatever the package.
        temperature: 0 is greedy.
        top_k: draw among the k most likely tokens; 0 is off.
        top_p: draw among the most likely tokens that have this share together, in (0, 1].
        repetition_penalty: divides logits (multiplies negative ones) of tokens of the prompt and
            the reply; above 0, 1 is off.
        seed: of the draws; None draws a new one, which `Stats.seed` tells.
        stop: text, or several, before which the reply ends.
        min_p: drop tokens less likely than this share of the most likely one, in [0, 1].
        presence_penalty: subtracted from logits of tokens in the reply, in [-2, 2].
        frequency_penalty: the same, times how often they are there.
        logit_bias: added to logits, by token id.
        no_repeat_ngram_size: no n tokens come twice in a row, prompt included; 0 is off.
        bad_words_ids: sequences of tokens that are not completed.
        min_length: tokens of prompt and reply before the reply may end.
        min_new_tokens: tokens of the reply before it may end; at most `max_new_tokens`.
        suppress_tokens: tokens that never come.
        begin_suppress_tokens: tokens that do not come first.
        logprobs: note each token's log probability, and those of this many likeliest ones; None
            notes nothing.
        skip_special_tokens: leave special tokens out of the reply's text, which models write around
            places in a picture; an end token is no part of it in any case. True by default.
        prompt_lookup: tokens that a step may draft from what the conversation holds already, at
            most 15; 0 is off. The reply is the same; whether it comes sooner, `Stats` tells.
        json_schema: the reply is JSON of this schema, unless `max_new_tokens` or `stop` cuts it;
            {"type": "object"} is any object. A keyword that cannot be held to is refused.

    Raises:
        OptionError: a value is of the wrong type or out of range.
        TextError: a stop string is empty.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    no_repeat_ngram_size: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    logprobs: int | None = None
    skip_special_tokens: bool | None = None
    prompt_lookup: int | None = None
    json_schema: Mapping[str, Any] | None = None

    def __new__(cls, *values: Any, **named: Any) -> Options:
        """Refuse a misspelt name, as the methods that generate do."""
        cls._check_names(named)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check = _LISTS.get(field.name, number)
                object.__setattr__(self, field.name, check(field.name, value))
        least, most = self.min_new_tokens, self.max_new_tokens
        if least is not None and most is not None and least > most:
            raise OptionError(
                f"min_new_tokens: expected at most max_new_tokens = {most}, found {least}; raise "
                "max_new_tokens"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any], beside: Sequence[str] = ()) -> Options:
        """Options by name, as generating methods take them.

        Args:
            given: names and values; those beside `options` replace what it holds.
            beside: other keywords, which a misspelt name may have meant.

        Raises:
            OptionError: as for the options themselves, or there is none of a name.
        """
        named = dict(given)
        base = named.pop("options", None)
        if not isinstance(base, cls | None):
            raise OptionError(f"options: expected Options, found {quoted(base)}; write Options(…)")
        cls._check_names(named, beside)
        return cls(**named) if base is None else dataclasses.replace(base, **named)

    @classmethod
    def _check_names(cls, given: Iterable[str], beside: Sequence[str] = ()) -> None:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, *beside], 1)
                way_out = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise OptionError(f"expected a generation option, found {quoted(name)}; {way_out}")

    @classmethod
    def neutral(cls, max_new_tokens: int) -> Options:
        """Greedy and without any rule, whatever the package's defaults."""
        return cls(max_new_tokens).over(NEUTRAL)

    def over(self, defaults: GenerationDefaults) -> Options:
        """These options, with `defaults` in the place of what they leave open."""
        named = {
            field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)
        }
        named |= {"max_new_tokens": MAX_NEW_TOKENS, "presence_penalty": 0.0}
        named |= {"frequency_penalty": 0.0, "logit_bias": {}, "skip_special_tokens": True}
        named |= {"prompt_lookup": 0, "json_schema": None}
        if self.min_new_tokens is not None:
            named["min_length"] = 0  # `generate` lets the newer of the two settings win
        # A package's own does not refuse a shorter reply, which then does not end before its limit.
        most = MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens
        named["min_new_tokens"] = min(named["min_new_tokens"], most)
        missing = {name: value for name, value in named.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing) if missing else self

    def held(self) -> Options:
        """These options for a reply of a grammar, which says when it ends.

        Raises:
            OptionError: one would keep the reply from ending, or from repeating its punctuation.
        """
        for name in ("min_length", "min_new_tokens", "no_repeat_ngram_size"):
            if getattr(self, name):
                raise OptionError(
                    f"{name}: expected none for an answer whose form is asked for, found "
                    f"{getattr(self, name)}; leave it out"
                )
        return dataclasses.replace(self, min_length=0, min_new_tokens=0, no_repeat_ngram_size=0)

    def check_ids(self, vocabulary: int) -> None:
        """Refuse token ids that a model cannot say.

        Args:
            vocabulary: how many tokens it has.

        Raises:
            OptionError: there is one.
        """
        given = {
            "logit_bias": self.logit_bias or (),
            "bad_words_ids": [one for several in self.bad_words_ids or () for one in several],
            "suppress_tokens": self.suppress_tokens or (),
            "begin_suppress_tokens": self.begin_suppress_tokens or (),
        }
        for name, tokens in given.items():
            beyond = next((token for token in tokens if token >= vocabulary), None)
            if beyond is not None:
                raise OptionError(
                    f"{name}: expected token ids below {vocabulary}, the model's vocabulary, "
                    f"found {quoted(beyond)}; leave it out"
                )

    def sampler(self, eos: Sequence[int] = (), constraint: Constraint | None = None) -> Sampler:
        """What chooses tokens by these options; what they leave open is neutral.

        Args:
            eos: the tokens that end a reply.
            constraint: what the reply may be.
        """
        filled = self.over(NEUTRAL)
        rules = {name: getattr(filled, name) for name in _SAMPLING}
        seed = secrets.randbits(31) if self.seed is None else self.seed
        return Sampler(**rules, seed=seed, eos=eos, constraint=constraint)


def _stops(name: str, value: object) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, (Sequence, set, frozenset)) or isinstance(found, (bytes, bytearray)):
        raise OptionError(f"{name}: expected a text or a list of texts, found {quoted(value)}")
    for text in found:
        check_text(text, name)
    StopMatcher(tuple(found))
    return tuple(found)


def _bias(name: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise OptionError(
            f"{name}: expected numbers by token id, found {quoted(value)}; write {name}={{42: -1}}"
        )
    return {
        _token_id(name, token): real(name, added, "a finite number for each token id")
        for token, added in value.items()
    }


def _token_id(name: str, value: object) -> int:
    # JSON has texts for keys.
    if isinstance(value, str) and value.isdecimal() and len(value) < DIGITS:
        return int(value)
    return whole(name, value)


def _schema(name: str, value: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(schema_text(value, name))
    return found


def _drafts(name: str, value: object) -> int:
    return whole(name, value, note="0 is off", most=MOST_DRAFTS)


_LISTS: dict[str, Any] = {
    "prompt_lookup": _drafts,
    "json_schema": _schema,
    "stop": _stops,
    "logit_bias": _bias,
    "bad_words_ids": id_lists,
    "suppress_tokens": ids,
    "begin_suppress_tokens": ids,
    "skip_special_tokens": flag,
}
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "suppress_tokens",
    "begin_suppress_tokens",
)

"""Keywords of generating methods, so that type checkers know a misspelt one too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from avl_plugins.policies import Policy
from avl_runtime.generate.options import Options


class OptionKeywords(TypedDict, total=False):
    """The fields of `Options`, and `options` for all of them at once."""

    options: Options | None
    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    min_length: int | None
    min_new_tokens: int | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    logprobs: int | None
    skip_special_tokens: bool | None
    prompt_lookup: int | None
    json_schema: Mapping[str, Any] | None


class TurnKeywords(OptionKeywords, total=False):
    """Of a turn of a chat.

    placeholders: whether placeholders of pictures and videos in a text mark where they go.
    return_logits: keep [T, V] float32 logits, a row for each generated token.
    return_placements: note which image tokens are core and parked over time.
    """

    placeholders: bool
    return_logits: bool
    return_placements: bool


class AskKeywords(TurnKeywords, total=False):
    """Of a request that stands by itself.

    policy: in place of the model's own.
    system: a system prompt.
    """

    policy: str | Policy | None
    system: str | None


NOTED = frozenset({"return_logits", "return_placements"})  # what a result is to hold besides


def parted(given: Mapping[str, Any], kind: type) -> tuple[dict[str, Any], Options]:
    """Keywords of one of the kinds above: those beside options, and the options.

    Raises:
        OptionError: there is none of a name, or an option has a value that it cannot have.
    """
    beside = kind.__annotations__.keys() - OptionKeywords.__annotations__.keys()
    named = {name: given[name] for name in beside & given.keys()}
    rest = {name: value for name, value in given.items() if name not in named}
    return named, Options.of(rest, sorted(beside))

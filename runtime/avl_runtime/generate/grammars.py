"""What a reply may be: JSON of a schema, or any grammar, held to token by token.

llguidance (https://github.com/guidance-ai/llguidance) parses what has been said by the grammar, and
tells which tokens may come next.
"""

from __future__ import annotations

import functools
import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from avl_plugins.errors import quoted
from avl_runtime.machine.installation import need
from avl_runtime.prompts.option_values import OptionError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LONGEST_SCHEMA: Final = 64 << 10  # bytes
DEEPEST_SCHEMA: Final = 64
# What all `multipleOf` of a schema may be multiples of: llguidance compiles several of them that
# hold together without a limit, in time that grows with this.
LARGEST_MULTIPLE: Final = 10_000
LARGEST_WHOLE: Final = 1 << 53  # larger ones llguidance rounds, as its numbers are floats
# White space between two parts of JSON: models indent, and must not go on with it for ever.
SPACE: Final = r" |\r?\n[ \t]{0,40}"
COMPILED: Final = 8  # grammars that are kept
NOTHING: Final = "NoExtension"  # llguidance's word for no token that could come next
OWN: Final = "x-guidance"  # a schema's name for settings of llguidance


class GrammarError(OptionError):
    """A schema or a grammar cannot be used, or what has been said does not go on in it."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply may be.

    Attributes:
        source: as llguidance reads it, in Lark's syntax or JSON.
    """

    source: str


def json_grammar(schema: object, name: str = "json_schema", *, strict: bool = True) -> Grammar:
    """The JSON texts that a schema allows.

    Args:
        schema: JSON Schema, draft 2020-12. A property comes where `properties` has it.
        name: of the option, for messages.
        strict: whether keywords that cannot be held to are refused; else those alone are not
            enforced, as OpenAI's protocol has it.

    Raises:
        GrammarError: it is no object, or too large.
    """
    return Grammar(_as_grammar(schema_text(schema, name), name, strict))


def schema_of(grammar: Grammar) -> Mapping[str, Any]:
    """The schema that `json_grammar` made a grammar of, with llguidance's settings in it."""
    (only,) = json.loads(grammar.source)["grammars"]
    found: Mapping[str, Any] = only["json_schema"]
    return found


def embedded(grammar: Grammar) -> str:
    """What `json_grammar` made, as a part of a rule in Lark's syntax."""
    return f"%json {json.dumps(schema_of(grammar))}"


def schema_text(schema: object, name: str) -> str:
    """A schema as JSON.

    Raises:
        GrammarError: it is no object, or too large.
    """
    if not isinstance(schema, Mapping):
        raise GrammarError(f"{name}: expected a JSON schema, found {quoted(schema)}; write a dict")
    if OWN in schema:
        raise GrammarError(f"{name}: expected no {OWN} in it, found one; leave it out")
    multiples = [one for one in _multiples(schema, name) if one]
    exponents = [exponent for *_, exponent in (one.normalize().as_tuple() for one in multiples)]
    least = min((one for one in exponents if isinstance(one, int)), default=0)
    if least < -100 or any(one.adjusted() > 100 for one in multiples):
        raise GrammarError(f"{name}: expected multipleOf of less than 100 digits, found more")
    together = math.lcm(*(abs(int(one.scaleb(-least))) for one in multiples))
    if together > LARGEST_MULTIPLE:
        raise GrammarError(
            f"{name}: expected multipleOf whose common multiple is at most {LARGEST_MULTIPLE}, "
            f"found {quoted(together)}; leave some out"
        )
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise GrammarError(
            f"{name}: expected a JSON schema, found one that JSON cannot hold: {_line(error)}"
        ) from None
    if len(text) > LONGEST_SCHEMA:
        raise GrammarError(
            f"{name}: expected a schema of at most {LONGEST_SCHEMA} bytes, found {len(text)}; "
            "shorten it"
        )
    return text


def _multiples(schema: object, name: str) -> Iterator[Decimal]:
    """The `multipleOf` in a schema.

    Raises:
        GrammarError: it is too deep, or holds a number that llguidance would round.
    """
    waiting: list[tuple[Any, int]] = [(schema, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST_SCHEMA:
            raise GrammarError(
                f"{name}: expected a schema of at most {DEEPEST_SCHEMA} levels, found more; use "
                "$ref for what repeats"
            )
        if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
            raise GrammarError(
                f"{name}: expected whole numbers of at most 53 bits in it, found {quoted(value)}; "
                "write another"
            )
        if isinstance(value, Mapping):
            multiple = value.get("multipleOf")
            truth = isinstance(multiple, bool)  # which is a number to Python alone
            if not truth and isinstance(multiple, (int, float)) and math.isfinite(multiple):
                yield Decimal(str(multiple))
            waiting += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(one, depth + 1) for one in value]


def _as_grammar(text: str, name: str, strict: bool) -> str:
    need("serve", "llguidance", what_for=name)
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": SPACE, "lenient": not strict}
        )
    except ValueError as error:
        raise _unusable(name, error) from None


class Grammars:
    """Grammars of a package's replies; several threads may ask.

    Args:
        vocabulary: tokens that logits are of.
        eos: the tokens that end a reply.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, eos: Sequence[int]) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._eos = [token for token in eos if token < vocabulary]
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._turn = threading.Lock()

    def constraint(self, grammar: Grammar, name: str = "json_schema") -> Constraint:
        """What holds one reply to a grammar.

        Args:
            name: of the option, for messages.

        Raises:
            GrammarError: it cannot be compiled or allows nothing, or the tokenizer is of a sort
                that llguidance does not know.
            MissingError: llguidance is not installed.
        """
        need("serve", "llguidance", what_for=name)
        with self._turn:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compile(grammar, name)
                self._compiled[grammar] = matcher
                if len(self._compiled) > COMPILED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            return Constraint(matcher.deep_copy(), name)

    def literal(self, text: str) -> str:
        """A text in Lark's syntax, in which special tokens are themselves and never spelled.

        Raises:
            GrammarError: as in `constraint`.
        """
        need("serve", "llguidance", what_for="tools")
        with self._turn:
            known = self._tokens
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {one.content: token for token, one in added if known.is_special_token(token)}
        whole = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "$^")
        parts, at = [], 0
        for found in whole.finditer(text):
            parts += [json.dumps(text[at : found.start()]), f"<[{special[found[0]]}]>"]
            at = found.end()
        parts.append(json.dumps(text[at:]))
        return " ".join(part for part in parts if part != '""')

    def _compile(self, grammar: Grammar, name: str) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, grammar.source, log_level=0, limits=_limits())
        if not matcher.is_error():
            first = matcher.deep_copy()
            first.compute_bitmask()  # finds what allows nothing at all
            if first.is_error():
                matcher = first
        if matcher.is_error():
            raise _unusable(name, matcher.get_error())
        return matcher

    @functools.cached_property
    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if not self._eos:
            raise GrammarError(
                "expected a package with a token that ends replies, found none; leave the schema "
                "out"
            )
        try:
            count = max(self._vocabulary, self._tokenizer.get_vocab_size())
            return LLTokenizer(self._tokenizer.to_str(), n_vocab=count, eos_token=self._eos)
        except ValueError as error:
            raise GrammarError(
                f"expected a tokenizer whose tokens are bytes, found: {_line(error)}; leave the "
                "schema out"
            ) from None


class Constraint:
    """Holds one reply to its grammar."""

    def __init__(self, matcher: LLMatcher, name: str) -> None:
        self._matcher, self._name = matcher, name
        self._said: list[int] = []

    def allowed(self, said: Sequence[int]) -> NDArray[np.bool_]:
        """[tokenizer's tokens] which of them may come next.

        Args:
            said: tokens of the reply so far, without one that ends it. They need not go on from
                what was asked about before: drafts are taken back.

        Raises:
            GrammarError: the reply has left the grammar, or the parser needs too much.
        """
        known, common = self._said, 0
        if list(said[: len(known)]) == known:
            common = len(known)
        else:
            while common < min(len(known), len(said)) and known[common] == said[common]:
                common += 1
            self._matcher.rollback(len(known) - common)
        self._matcher.consume_tokens(list(said[common:]))
        self._said = list(said)
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise _unusable(self._name, self._matcher.get_error())
        return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").view(np.bool_)


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    # A state takes 1 to 2 kB; the default is 250,000 of them.
    return LLParserLimits(max_lexer_states=20_000, verbose_errors=False)


def _unusable(name: str, error: object) -> GrammarError:
    if str(error).startswith(NOTHING):
        error = "one that allows nothing, as where a $ref leads to itself"
    return GrammarError(
        f"{name}: expected what answers can be held to, found: {_line(error)}; change it"
    )


def _line(error: object) -> str:
    return " ".join(str(error).replace("<non-verbose/>", "").split())[:200]

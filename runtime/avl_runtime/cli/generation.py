"""Generation options on a command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avl_runtime.cli.lists import count
from avl_runtime.generate.options import Options
from avl_runtime.package.generation_defaults import NEUTRAL, GenerationDefaults

NAMES = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "logprobs",
    "prompt_lookup",
    "json_schema",
)

PACKAGE = "(default: the package's)"


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser; those left out are as the package's checkpoint says."""
    group = parser.add_argument_group(
        "generation", "What is left out is as the package says: avl-info PACKAGE shows it."
    )
    add = group.add_argument
    add(
        "--max-new-tokens",
        metavar="N",
        type=count,
        default=256,
        help="of the answer (default: 256)",
    )
    add("--temperature", metavar="T", type=float, help=f"0 is greedy {PACKAGE}")
    add(
        "--top-p",
        metavar="P",
        type=float,
        help=f"draw among tokens of this share, 1 is off {PACKAGE}",
    )
    add(
        "--top-k",
        metavar="K",
        type=int,
        help=f"draw among the K likeliest tokens, 0 is off {PACKAGE}",
    )
    add(
        "--min-p",
        metavar="P",
        type=float,
        help=f"drop tokens less likely than this share of the likeliest one, 0 is off {PACKAGE}",
    )
    add(
        "--repetition-penalty",
        metavar="R",
        type=float,
        help=f"divide logits of tokens that were there, 1 is off {PACKAGE}",
    )
    add(
        "--presence-penalty",
        metavar="A",
        type=float,
        help="subtract from logits of tokens in the answer (default: 0)",
    )
    add(
        "--frequency-penalty",
        metavar="A",
        type=float,
        help="the same, times how often they are there (default: 0)",
    )
    add(
        "--logit-bias",
        metavar="ID=B",
        type=_bias,
        action="append",
        help="add B to the logit of a token; repeat it for several",
    )
    add("--seed", metavar="S", type=int, help="of the draws (default: another one each time)")
    add(
        "--stop",
        metavar="TEXT",
        action="append",
        help="end the answer before this text; repeat it for several",
    )
    add(
        "--logprobs",
        metavar="N",
        type=int,
        help="with --json: each token's log probability, and the N likeliest ones",
    )
    add(
        "--prompt-lookup",
        metavar="N",
        type=int,
        help="draft up to N tokens a step from what was said before, and check them at once; the "
        "answer is the same (default: 0, off)",
    )
    add(
        "--json-schema",
        metavar="FILE",
        type=_schema,
        help="the answer is JSON of the schema in this file, unless --max-new-tokens or --stop "
        "cuts it",
    )


def generation_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given, as generating methods take it.

    Raises:
        OptionError: a value is out of range.
        TextError: a stop string is empty or no text.
    """
    given = {name: getattr(arguments, name) for name in NAMES}
    if given["logit_bias"] is not None:
        given["logit_bias"] = dict(given["logit_bias"])
    checked = Options.of(given)
    return {name: getattr(checked, name) for name in NAMES if given[name] is not None}


def without_effect(given: Mapping[str, Any], defaults: GenerationDefaults) -> list[str]:
    """The options among `given` that greedy answers do not depend on, as they are written."""
    if Options.of(given).over(defaults).temperature:
        return []
    names = ("top_p", "top_k", "min_p", "seed")
    off = {name: getattr(NEUTRAL, name, None) for name in names}
    return [
        f"--{name.replace('_', '-')}" for name in names if given.get(name) not in (None, off[name])
    ]


def _schema(path: str) -> Any:
    try:
        found = json.loads(Path(path).read_bytes())
        if found is None:  # which options take as none given
            raise ValueError("null, which is none; write an object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise argparse.ArgumentTypeError(
            f"expected a file with a JSON schema, found {path[:60]!r}: {reason}"
        ) from None


def _bias(text: str) -> tuple[int, float]:
    token, equals, number = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return int(token), float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a token id and a number as 42=-1.5, found {text[:60]!r}"
        ) from None

"""The grammar of replies that may call functions, in Lark's syntax as llguidance has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avl_runtime.generate.grammars import Grammar, embedded
from avl_runtime.generate.tagged_calls import TAGGED, rules
from avl_runtime.prompts.calls import CallForm


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called.

    Attributes:
        name: of letters, digits, `_` and `-`.
        arguments: JSON of what it takes.
    """

    name: str
    arguments: Grammar


def call_grammar(
    form: CallForm,
    functions: Sequence[Function],
    literal: Callable[[str], str],
    *,
    must: bool,
    several: bool,
    answer: Grammar | None = None,
) -> Grammar:
    """Replies that are an answer, or calls; before calls there may be text.

    Args:
        literal: a text, as `Grammars.literal` writes it.
        must: whether there are calls in any case, and nothing before them.
        several: whether there may be more than one call.
        answer: what an answer is, as `json_grammar` makes it; None for any text.

    Raises:
        GrammarError: a function has arguments that the form has no way to write.
    """
    trigger = literal(form.trigger)
    rest = f"{literal(form.between)} call" if form.between else "call"
    more = f" ({rest})*" if several else ""
    lines = ["%llguidance {}"]
    if must:
        lines.append(f"start: call{more}")
    elif answer is not None:
        lines += [f"start: answer | call{more}", f"answer: {embedded(answer)}"]
    else:
        # Text ends where the trigger was spelled, so that nothing that looks like a call is none.
        first = "spelled tool" if trigger.startswith('"') else f"spelled tool | TEXT {trigger} tool"
        lines += [f"start: TEXT | first{more}", f"first: {first}", "TEXT: /(.|\\n)*/"]
        lines.append(f"spelled[lazy]: TEXT {json.dumps(form.trigger)}")
    lines.append(f"call: {trigger} tool")
    lines.append("tool: " + " | ".join(f"tool_{at}" for at in range(len(functions))))
    front = form.begin.removeprefix(form.trigger)
    if form.line is not None:
        lines += TAGGED
        for at, one in enumerate(functions):
            lines += rules(f"tool_{at}", one.arguments, one.name, form, literal)
        return Grammar("\n".join(lines) + "\n")
    for at, one in enumerate(functions):
        named = literal(f"{front}{one.name}{form.middle}")
        end = f" {literal(form.end)}" if form.end else ""
        lines.append(f"tool_{at}: {named} {embedded(one.arguments)}{end}")
    return Grammar("\n".join(lines) + "\n")

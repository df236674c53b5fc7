"""docs/cli.md, from the parsers of the commands and the commands of a conversation."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from avl_export import cli as export
from avl_export.check import cli as check
from avl_runtime.cli import arguments as run
from avl_runtime.cli import batch, bench, build, doctor, info, serve, tune
from avl_runtime.cli import eval as evaluate
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.talk.commands import COMMANDS as SAID

# In the order in which a user meets them.
MAKERS = (export, check, info, run, serve, batch, evaluate, tune, bench, build, doctor)

HEAD = """\
# Commands

Made by `scripts/documents.py` from the commands' own parsers, so this page says what `--help` says.

Answers and results go to stdout, progress and problems to stderr. The exit status is 0, or 1 for a
failure (one line says what was expected, what was found and what to do), 2 for wrong usage and 130
after Ctrl-C. Every command has `--help` and `--version`. Policies are described in
[policies.md](policies.md).
"""

TALK = """\
### Conversations

`avl-run PACKAGE` without a question begins a conversation in a terminal. It keeps its KV cache
between turns, so that a turn reads only what is new. A line is a question; lines between `\"\"\"`
and `\"\"\"` are one question. Ctrl-C drops what was typed or ends an answer, and leaves when it is
pressed twice at an empty prompt. With the extra `chat` lines can be edited, recalled and completed.

    $ .venv/bin/avl-run avl-tiny.avl --image samples/scene.png --quiet
    /help lists the commands, /quit or Ctrl-D leaves
    scene.png: 168 x 168, 144 tokens
    > How many objects are there?
    6
    > /clear
    the conversation begins anew
    > /image samples/page.png
    page.png: 168 x 168, 144 tokens
    > Read the text.
    793409
    35247
    CSRXNP
    JFASH
    > /quit

avl-tiny was trained on single questions about one picture: `/clear` comes before another one.
Models trained on conversations take new pictures in any turn.
"""

# What else belongs to a command.
NOTES = {
    "avl-export": """\
[families.md](families.md#exporting) says how exports work, [quantization.md](quantization.md) how
weights are made smaller.
""",
    "avl-check": """\
Without `--layers` and `--backend` it does what `avl-export --check` does at the end of an export.
[families.md](families.md#checking) says what is compared.
""",
    "avl-run": """\
`--image` takes several files, addresses (`http:`, `data:`, `file:`), `-` for stdin, and
`NAME#frame=N` for one frame of an animation. Answers are drawn as the checkpoint's generation
settings say, which `avl-info PACKAGE` shows; options override them. Sampling without `--seed`
differs from run to run, and `--stats` and `--json` tell the seed.
""",
    "avl-serve": "[serve.md](serve.md) says what it answers and how it is kept safe.\n",
    "avl-batch": "[batch.md](batch.md) says what lines hold, and how it goes on after a kill.\n",
    "avl-eval": "[policies.md](policies.md#measuring-on-your-own-data) shows a `--data` file.\n",
    "avl-tune": "[policies.md](policies.md#the-cheapest-that-is-good-enough) says how it looks.\n",
    "avl-bench": "[benchmarks.md](benchmarks.md) holds what was measured with it.\n",
    "avl-build": "[gpu.md](gpu.md#engines) says more about engines.\n",
}


def reference(parsers: Sequence[CommandParser] | None = None) -> str:
    """The whole page as Markdown.

    Args:
        parsers: of the commands to describe; all of them if None.
    """
    chosen = [maker.make_parser() for maker in MAKERS] if parsers is None else parsers
    parts = [HEAD]
    for parser in chosen:
        parts.append(_command(parser))
        if parser.prog == "avl-run":
            said = {f"{one.name} {one.takes}".strip(): one.help for one in SAID.values()}
            parts += [TALK, _table("command", said)]
    return "\n".join(parts)


def _command(parser: CommandParser) -> str:
    actions = [one for group in parser._action_groups for one in group._group_actions]
    words = [f"[{_word(one)}]" if one.nargs == "?" else _word(one) for one in _places(actions)]
    lines = [f"## {parser.prog}\n", f"{parser.description}\n"]
    if parser.notes:
        lines.append(f"{parser.notes}\n")
    lines.append(f"    {' '.join([parser.prog, *words, '[options]'])}\n")
    lines.append(f"For example:\n\n    {parser.example}\n")
    lines += [NOTES[parser.prog]] if parser.prog in NOTES else []
    for group in parser._action_groups:
        rows = dict(_rows(parser, group._group_actions))
        if rows:
            if group.description:
                lines.append(f"{group.description}\n")
            lines.append(_table("argument" if next(iter(rows))[0] != "-" else "option", rows))
    return "\n".join(lines)


def _places(actions: Sequence[argparse.Action]) -> list[argparse.Action]:
    return [one for one in actions if not one.option_strings]


def _word(action: argparse.Action) -> str:
    """What stands for an argument's value."""
    if action.choices is not None and action.metavar is None:
        return "|".join(str(one) for one in action.choices)
    return str(action.metavar or action.dest.upper())


def _rows(parser: CommandParser, actions: Sequence[argparse.Action]) -> Iterator[tuple[str, str]]:
    """The spelling of each argument, and what its help says, where there is some to be shown."""
    formatter = parser.formatter_class(prog=parser.prog)
    for action in actions:
        shown = action.help is not argparse.SUPPRESS
        if not shown or isinstance(action, (argparse._HelpAction, argparse._VersionAction)):
            continue
        names = ", ".join(action.option_strings)
        valued = not action.option_strings or action.nargs != 0
        spelling = " ".join([*([names] if names else []), *([_word(action)] if valued else [])])
        yield spelling, formatter._expand_help(action)


def _table(head: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {head} | |", "|---|---|"]
    for spelling, meaning in rows.items():
        lines.append(f"| `{_cell(spelling)}` | {_plain(meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A bar would end a cell of a Markdown table, also inside of code."""
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    """Text in which Markdown sees no tag."""
    return _cell(text).replace("<", "&lt;")

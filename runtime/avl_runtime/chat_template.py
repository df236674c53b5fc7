"""Chat templates: conversations to prompt strings, rendered as Hugging Face renders them.

A template comes with a checkpoint and is not trusted: it runs in Jinja's sandbox and sees plain
strings, numbers and lists only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from avl_plugins.errors import AvlError
from avl_runtime.vision import Kind

PROBE = "avl-probe-6f1d"  # a text no user and no template writes


class TemplateError(AvlError):
    """A chat template is damaged or refuses a conversation."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A finished exchange: what the user sent and what the model answered.

    `media` are the kinds of what came with the prompt, in order; `reply` is the decoded answer;
    `reply_ended` tells whether its tokens end with an end token.
    """

    prompt: str
    media: tuple[Kind, ...]
    reply: str
    reply_ended: bool


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja source.
        tokens: `bos_token`, `eos_token` and so on, as the template may name them.
        placeholders: the strings that stand for an image and a video.

    Raises:
        TemplateError: the template cannot be compiled.
    """

    def __init__(
        self, source: str, tokens: Mapping[str, str], placeholders: Mapping[Kind, str]
    ) -> None:
        self._tokens = dict(tokens)
        self._placeholders = dict(placeholders)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"expected a chat template in Jinja, found an error: {_line(error)}; export again"
            ) from None
        self._parts = self._takes_parts()

    def render(self, history: Sequence[Turn], prompt: str, media: Sequence[Kind]) -> str:
        """The conversation up to where the answer to `prompt` begins.

        Raises:
            TemplateError: the template refuses the conversation or loses an image or a video.
        """
        messages: list[dict[str, Any]] = []
        for turn in history:
            messages.append(self._message("user", turn.prompt, turn.media))
            messages.append(self._message("assistant", turn.reply, ()))
        messages.append(self._message("user", prompt, media))
        text = self._render(messages)
        sent = [kind for turn in history for kind in turn.media] + list(media)
        for kind, placeholder in self._placeholders.items():
            expected, found = sent.count(kind), text.count(placeholder)
            if found != expected:
                raise TemplateError(
                    f"expected {expected} {kind} placeholders ({placeholder}) from the chat "
                    f"template, found {found}; this model does not take {kind}s that way"
                )
        return text

    def render_next(self, history: Sequence[Turn], prompt: str, media: Sequence[Kind]) -> str:
        """What comes between the last answer's text and the answer to `prompt`.

        Raises:
            TemplateError: as in `render`, or the template writes earlier turns differently once
                a new one follows.
        """
        last = history[-1]
        marked = [*history[:-1], Turn(last.prompt, last.media, PROBE, last.reply_ended)]
        before, *after = self.render(marked, prompt, media).split(PROBE)
        if len(after) != 1 or not before.startswith(
            self.render(history[:-1], last.prompt, last.media).rstrip()
        ):
            raise TemplateError(
                "expected a chat template that leaves earlier turns as they are, found one that "
                "rewrites them; start a new chat for every question"
            )
        return after[0]

    def _takes_parts(self) -> bool:
        """Whether content is a list of parts; older templates take one string."""
        try:
            text = self._render([{"role": "user", "content": [{"type": "text", "text": PROBE}]}])
        except TemplateError:
            return False
        return PROBE in text and f"'{PROBE}'" not in text

    def _message(self, role: str, text: str, media: Sequence[Kind]) -> dict[str, Any]:
        if not self._parts:
            lines = "".join(f"{self._placeholders[kind]}\n" for kind in media)
            return {"role": role, "content": lines + text}
        parts: list[dict[str, str]] = [{"type": kind} for kind in media]
        return {"role": role, "content": [*parts, {"type": "text", "text": text}]}

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._tokens,
            )
        # A template is a program: it may also divide by zero or add a number to a text.
        except Exception as error:
            raise TemplateError(
                f"expected the chat template to take this conversation, found: {_line(error)}"
            ) from None


class _Generation(jinja2.ext.Extension):
    """Renders what `{% generation %}` encloses; Hugging Face marks answers for training so."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as a plain set

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Chat templates: conversations to prompt strings, rendered as Hugging Face renders them.

A template comes with a checkpoint and is not trusted: it runs in Jinja's sandbox and sees plain
strings, numbers and lists only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from avl_plugins.errors import AvlError
from avl_runtime.prompts.calls import CallForm, ToolCall, written_as
from avl_runtime.prompts.messages import Message, Part, Place, Text, said_by
from avl_runtime.prompts.template_environment import environment
from avl_runtime.vision import Kind

PROBE = "avl-probe-6f1d"  # a text no user and no template writes


class TemplateError(AvlError):
    """A chat template is damaged or refuses a conversation."""


class RewrittenError(TemplateError):
    """A chat template writes what has been said differently once more is said."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A finished exchange: what the user sent and what the model answered.

    Attributes:
        prompt: the text, behind `media`; or parts, which say where they go.
        media: kinds of what came with the prompt, in order.
        reply: the text of the answer.
        reply_ended: whether its tokens end with an end token.
        reply_special: whether special tokens in the reply are meant.
    """

    prompt: str | tuple[Part, ...]
    media: tuple[Kind, ...]
    reply: str
    reply_ended: bool
    reply_special: bool = False

    @property
    def said(self) -> Message:
        """What the user sent."""
        parts = self.prompt
        if isinstance(parts, str):
            parts = (*(Place(kind) for kind in self.media), Text(parts))
        return Message("user", parts, tuple((kind, None) for kind in self.media))

    @property
    def answered(self) -> Message:
        """What the model answered."""
        return said_by("assistant", self.reply, special=self.reply_special)


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
            self._template = environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"expected a chat template in Jinja, found an error: {_line(error)}; export again"
            ) from None
        self._parts = self._takes(parts=True)

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The conversation up to where the next answer begins.

        Args:
            tools: functions that the model may call, as OpenAI's protocol describes them.

        Raises:
            TemplateError: the template refuses the conversation or loses an image, a video, a
                text, a call or a function of it.
        """
        self._check_texts(messages)
        text = self._render([self._form(message) for message in messages], tools)
        self._check_calls(messages, tools, text)
        sent = [kind for message in messages for kind in message.kinds]
        for kind, placeholder in self._placeholders.items():
            expected, found = sent.count(kind), text.count(placeholder)
            if found != expected:
                texts = (part for message in messages for part in message.parts)
                if any(isinstance(part, Text) and part.placeholders for part in texts):
                    raise TemplateError(
                        f"expected {expected} {kind} placeholders ({placeholder}) in the prompt, "
                        f"found {found}; with placeholders=True it says where each {kind} goes"
                    )
                raise TemplateError(
                    f"expected {expected} {kind} placeholders ({placeholder}) from the chat "
                    f"template, found {found}; this model does not take {kind}s that way"
                )
        return text

    def render_next(self, messages: Sequence[Message]) -> str:
        """What comes between the last answer's text and the answer to the last message.

        Args:
            messages: the last two are an answer and what the user says to it.

        Raises:
            RewrittenError: the template writes what is in front of the last message differently
                once that follows.
            TemplateError: as in `render`.
        """
        *earlier, answer, said = messages
        whole = self.render(messages)
        before, *after = self.render([*earlier, said_by("assistant", PROBE), said]).split(PROBE)
        reply = "".join(part.text for part in answer.parts if isinstance(part, Text))
        if (
            len(after) != 1
            or len(whole) < len(before) + len(after[0])
            or not before.startswith(self.render(earlier).rstrip())
            or not whole.startswith(before)
            or not whole.endswith(after[0])
            or whole[len(before) : len(whole) - len(after[0])].strip() != reply.strip()
        ):
            raise RewrittenError(
                "expected a chat template that leaves earlier turns as they are, found one that "
                "rewrites them; start a new chat for every question"
            )
        return after[0]

    def around(self, kind: Kind, special: Callable[[str], bool]) -> str:
        """A placeholder with the special tokens that the template writes around it.

        Args:
            special: whether a text is special tokens and nothing else.
        """
        placeholder = self._placeholders[kind]
        parts = (Text(PROBE), Place(kind), Text(PROBE))
        try:
            found = self._render([self._form(Message("user", parts))]).split(PROBE)
        except TemplateError:
            return placeholder
        written = found[1].strip() if len(found) == 3 else ""
        return written if placeholder in written and special(written) else placeholder

    @property
    def call_form(self) -> CallForm | None:
        """How calls of functions are written; None where the template has no place for them."""
        return self._calls and self._calls[0]

    def check_system(self) -> None:
        """Refuse a system prompt where the template has no place for one.

        Raises:
            TemplateError: it has none.
        """
        if self._system is None:
            raise TemplateError(
                "expected a chat template with a place for a system prompt, found one that "
                "refuses or ignores it; put the text into the first question"
            )

    @functools.cached_property
    def _system(self) -> bool | None:
        """Whether a system prompt's content is a list of parts; None if there is no place."""
        return self._sort_of("system", [], [said_by("user", "x")])

    @functools.cached_property
    def _assistant(self) -> bool:
        """Whether an answer's content is a list of parts."""
        said = said_by("user", "x")
        found = self._sort_of("assistant", [said], [said])
        return self._parts if found is None else found

    @functools.cached_property
    def _calls(self) -> tuple[CallForm, bool] | None:
        """How calls are written, and whether what a tool says is a list of parts; None if not."""
        call = ToolCall("call00000", f"{PROBE}f", {"x": PROBE})  # Mistral wants nine characters
        called = Message("assistant", (), calls=(call,))
        tool = {"name": call.name, "description": "x", "parameters": {"type": "object"}}
        for parts in (False, True):
            told = Message("tool", (Text(f"{PROBE}t"),), answers=call.id)
            forms = [self._form(said_by("user", "x")), self._form(called), _told(told, parts)]
            try:
                text = self._render(forms, [{"type": "function", "function": tool}])
            except TemplateError:
                continue
            form = written_as(text, call)
            shown = text.count(call.name) > 1 and f"{PROBE}t" in text and f"'{PROBE}t'" not in text
            if form is not None and shown:
                return form, parts
        return None

    def _check_calls(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str
    ) -> None:
        """Refuse what the template would leave out of functions, calls and their answers."""
        answers = [message for message in messages if message.role == "tool"]
        calls = [call for message in messages for call in message.calls]
        if not tools and not calls and not answers:
            return
        names = [tool["function"]["name"] for tool in tools] + [call.name for call in calls]
        told = [
            part.text.strip() for one in answers for part in one.parts if isinstance(part, Text)
        ]
        if self._calls is None or not all(part in text for part in (*names, *told)):
            raise TemplateError(
                "tools: expected a chat template that writes functions, calls and their answers, "
                "found one that does not; ask without tools, or another model"
            )

    def _sort_of(
        self, role: str, before: Sequence[Message], behind: Sequence[Message]
    ) -> bool | None:
        """Whether the content of a message is a list of parts; None if it is nothing at all."""
        sorts = (self._parts, not self._parts)  # first as the user's
        return next((sort for sort in sorts if self._takes(sort, role, before, behind)), None)

    def _takes(
        self,
        parts: bool,
        role: str = "user",
        before: Sequence[Message] = (),
        behind: Sequence[Message] = (),
    ) -> bool:
        """Whether content may be a list of parts, or one string as in older templates."""
        content = [{"type": "text", "text": PROBE}] if parts else PROBE
        front, back = ([self._form(one) for one in some] for some in (before, behind))
        try:
            text = self._render([*front, {"role": role, "content": content}, *back])
        except TemplateError:
            return False
        return PROBE in text and f"'{PROBE}'" not in text

    def _check_texts(self, messages: Sequence[Message]) -> None:
        """Refuse what the template would leave out of a message without a word."""
        if any(message.role == "system" for message in messages):
            self.check_system()
        probed: list[Message] = []
        probes: list[str] = []
        for message in messages:
            parts = list(message.parts)
            texts = sum(isinstance(part, Text) for part in parts)
            if texts > 1 and message.role != "assistant":
                for at, part in enumerate(parts):
                    if isinstance(part, Text) and part.text.strip():
                        probes.append(f"{PROBE}-{len(probes)}-")
                        parts[at] = Text(probes[-1])
            probed.append(dataclasses.replace(message, parts=tuple(parts), sources=()))
        if probes:
            text = self._render([self._form(message) for message in probed])
            if not all(probe in text for probe in probes):
                raise TemplateError(
                    "expected a chat template that writes all texts of a message, found one that "
                    "leaves some out; put them into one part"
                )

    def _form(self, message: Message) -> dict[str, Any]:
        """A message as the template takes it."""
        if message.role == "tool":
            return _told(message, self._calls is not None and self._calls[1])
        parts = self._parts
        if message.role == "system":
            parts = self._system is not False
        elif message.role == "assistant":
            parts = self._assistant
        if not parts:
            texts = [
                part.text if isinstance(part, Text) else f"{self._placeholders[part.kind]}\n"
                for part in message.parts
            ]
            return {"role": message.role, "content": "".join(texts)} | _called(message)
        content = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": part.kind}
            for part in message.parts
        ]
        return {"role": message.role, "content": content} | _called(message)

    def _render(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        try:
            return self._template.render(
                messages=messages,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=True,
                **self._tokens,
            )
        # A template is a program: it may also divide by zero or add a number to a text.
        except Exception as error:
            raise TemplateError(
                f"expected the chat template to take this conversation, found: {_line(error)}"
            ) from None


def _called(message: Message) -> dict[str, Any]:
    """The calls of a message as templates take them."""
    return {"tool_calls": [call.to_dict() for call in message.calls]} if message.calls else {}


def _told(message: Message, parts: bool) -> dict[str, Any]:
    """What a tool says, as templates take it."""
    texts = [part.text for part in message.parts if isinstance(part, Text)]
    content = [{"type": "text", "text": text} for text in texts]
    return {
        "role": "tool",
        "content": content if parts else "".join(texts),
        "tool_call_id": message.answers,
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

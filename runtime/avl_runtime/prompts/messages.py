"""Conversations as callers write them: a text, a list of parts, or a list of messages.

Parts and messages are those of transformers' chat templates. A part is a mapping: {"type": "text",
"text": ...}, {"type": "image", "image": ...} or {"type": "video", "video": ...}, where `url`,
`path` and, for pictures, `base64` may stand for the last key; without any the next of `images` or
`videos` is meant. {"type": "image_url", "image_url": {"url": ...}} and the like for videos are
taken too, as clients of OpenAI's protocol send them. A message is {"role": "system", "user" or
"assistant", "content": a text or a list of parts}. One of the assistant may have `tool_calls`, as
[{"id": ..., "function": {"name": ..., "arguments": a mapping}}], which messages of the role "tool"
answer by `tool_call_id`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from avl_plugins.errors import AvlError, quoted
from avl_runtime.prompts.calls import ToolCall
from avl_runtime.prompts.option_values import flag
from avl_runtime.prompts.text import check_text
from avl_runtime.vision import Kind
from avl_runtime.vision.load.images import Frame, ImageLike
from avl_runtime.vision.load.videos import Video, VideoLike

Said = str | Sequence[Mapping[str, Any]]

ROLES: Final = ("system", "user", "assistant", "tool")
SOURCES: Final[dict[Kind, tuple[str, ...]]] = {
    "image": ("image", "url", "path", "base64"),
    "video": ("video", "url", "path"),
}
ADDRESSED: Final[dict[str, Kind]] = {"image_url": "image", "video_url": "video"}  # as OpenAI has it
ONE_SOURCE: Final = (
    str,
    bytes,
    bytearray,
    memoryview,
    os.PathLike,
    Image.Image,
    np.ndarray,
    Frame,
    Video,
)


class PromptError(AvlError):
    """A prompt is empty, is no text, or comes with other pictures than it speaks of."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a message.

    Attributes:
        placeholders: whether placeholder strings in it mark where pictures and videos go.
        special: whether special tokens in it are meant; else they are ordinary text.
    """

    text: str
    placeholders: bool = False
    special: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture or a video goes."""

    kind: Kind


Part = Text | Place


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """What one side says.

    Attributes:
        role: system, user, assistant or tool.
        parts: texts and places, in order.
        sources: pictures and videos as they were given, in the order of their places; those of a
            text with placeholders are pictures first.
        calls: of functions, by the assistant.
        answers: the id of the call that a tool answers.
    """

    role: str
    parts: tuple[Part, ...]
    sources: tuple[tuple[Kind, Any], ...] = ()
    calls: tuple[ToolCall, ...] = ()
    answers: str | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What comes with the message."""
        return tuple(kind for kind, _ in self.sources)

    def to_dict(self) -> dict[str, Any]:
        """The message as callers write it, its content a list of parts."""
        waiting = iter(self.sources)
        parts: list[dict[str, Any]] = []
        for part in self.parts:
            if isinstance(part, Place):
                kind, source = next(waiting)
                parts.append({"type": kind, kind: source})
                continue
            parts.append({"type": "text", "text": part.text})
            if part.special:
                parts[-1]["special_tokens"] = True
            if part.placeholders:
                parts[-1]["placeholders"] = True
                parts[-1] |= {
                    f"{kind}s": [source for sent, source in self.sources if sent == kind]
                    for kind in SOURCES
                }
        found: dict[str, Any] = {"role": self.role, "content": parts}
        if self.calls:
            found["tool_calls"] = [call.to_dict() for call in self.calls]
        return found if self.answers is None else found | {"tool_call_id": self.answers}


def said_by(role: str, text: str, *, special: bool = False) -> Message:
    """A message of text alone."""
    return Message(role, (Text(text, special=special),))


def conversation(
    said: Said,
    images: Sequence[ImageLike] | None = (),
    videos: Sequence[VideoLike] | None = (),
    system: str | None = None,
    placeholders: bool = False,
) -> list[Message]:
    """The messages that end with what the user says last.

    Args:
        said: a text, behind `images` and `videos`; the parts of one message; or messages.
        system: a text in front of all, as a message of its own.
        placeholders: a text's placeholder strings mark where `images` and `videos` go.

    Raises:
        TextError: a text is none that UTF-8 has.
        PromptError: what is said is empty, is no text and no list of parts or messages, or does
            not speak of as many pictures and videos as are given.
    """
    placeholders = flag("placeholders", placeholders)
    given: dict[Kind, list[Any]] = {
        "image": list(_listed(images, "images")),
        "video": list(_listed(videos, "videos")),
    }
    if isinstance(said, str):
        messages = [_user(said, given, placeholders)]
    else:
        if placeholders:
            raise PromptError(
                "placeholders: expected a prompt of one text, found a list; its parts say where "
                "pictures go"
            )
        messages = list(read_messages(said, given))
    if not messages or messages[-1].role not in ("user", "tool"):
        raise PromptError(
            "expected a conversation that ends with a message of the user or a tool, found "
            f"{'none' if not messages else 'one of the ' + messages[-1].role}; ask something"
        )
    if not any(isinstance(part, Place) or part.text.strip() for part in messages[-1].parts) or (
        isinstance(said, str) and not said.strip()
    ):
        raise PromptError("expected a prompt, found an empty one; ask something")
    if system is not None:
        if messages[0].role == "system":
            raise PromptError(
                "expected one system prompt, found one in the messages and one beside them; "
                "leave one of them out"
            )
        messages.insert(0, system_message(system))
    return messages


def system_message(text: str) -> Message:
    """A system prompt as a message.

    Raises:
        PromptError: it is no text, or an empty one.
    """
    if not isinstance(text, str) or not text.strip():
        raise PromptError(
            f"system: expected a text, found {_named(text)}; leave it out for a conversation "
            "without one"
        )
    return said_by("system", _checked(text))


def read_messages(
    said: Sequence[Mapping[str, Any]], given: dict[Kind, list[Any]] | None = None
) -> Iterator[Message]:
    """Messages, or the parts of one message of the user, as callers write them.

    Args:
        given: what parts without a picture or video of their own take, in order.

    Raises:
        PromptError: a message or a part cannot be read, or not all of `given` is taken.
    """
    if not isinstance(said, Sequence) or isinstance(said, (str, bytes)):
        raise PromptError(
            f"expected a prompt as a text, parts or messages, found {_named(said)}; write a text"
        )
    waiting: dict[Kind, list[Any]] = {"image": [], "video": []} if given is None else given
    for entry in said:
        if not isinstance(entry, Mapping):
            raise PromptError(
                f"expected parts or messages as mappings, found {_named(entry)} among them; "
                'write {"type": "text", "text": …}'
            )
    messages = [entry for entry in said if "role" in entry]
    if not messages:
        yield _message({"role": "user", "content": said}, waiting)
    elif len(messages) < len(said):
        raise PromptError(
            "expected parts or messages, found both in one list; give every message a role"
        )
    else:
        for entry in messages:
            yield _message(entry, waiting)
    for kind, left in waiting.items():
        if left:
            raise PromptError(
                f'expected a part {{"type": "{kind}"}} for each of the {kind}s, found {len(left)} '
                f"{kind}s more than parts without one of their own; add the parts"
            )


def _user(text: str, given: dict[Kind, list[Any]], placeholders: bool) -> Message:
    sources = tuple((kind, source) for kind, sources in given.items() for source in sources)
    said = Text(_checked(text), placeholders=placeholders)
    places = () if placeholders else tuple(Place(kind) for kind, _ in sources)
    return Message("user", (*places, said), sources)


def _message(entry: Mapping[str, Any], waiting: dict[Kind, list[Any]]) -> Message:
    role, content = entry.get("role"), entry.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(
            f"expected the role system, user, assistant or tool, found {_named(role)}; "
            "give every message one of them"
        )
    calls = _calls(entry.get("tool_calls")) if role == "assistant" else ()
    answers = _checked(entry.get("tool_call_id"), "tool_call_id") if role == "tool" else None
    if isinstance(content, str):
        return Message(role, (Text(_checked(content)),), (), calls, answers)
    content = () if content is None and calls else content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(
            f"expected the content of a message as a text or parts, found {_named(content)}; "
            "write a text"
        )
    parts: list[Part] = []
    sources: list[tuple[Kind, Any]] = []
    for part in content:
        found, shown = _part(part, role, waiting)
        parts.append(found)
        sources += shown
    return Message(role, tuple(parts), tuple(sources), calls, answers)


def _calls(listed: object) -> tuple[ToolCall, ...]:
    if listed is not None and not isinstance(listed, Sequence):
        raise PromptError(f"expected tool_calls as a list, found {_named(listed)}; write one")
    calls = []
    for one in listed or ():
        function = one.get("function") if isinstance(one, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
            raise PromptError(
                'expected calls as {"id": …, "function": {"name": …, "arguments": a mapping}}, '
                f"found {_named(one)}; write them so"
            )
        name = _checked(function.get("name"), "call's name")
        calls.append(ToolCall(_checked(one.get("id"), "call's id"), name, function["arguments"]))
    return tuple(calls)


def _part(
    part: object, role: str, waiting: dict[Kind, list[Any]]
) -> tuple[Part, list[tuple[Kind, Any]]]:
    """A part, and the pictures or videos that it brings."""
    sort = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and isinstance(sort, str) and sort in ADDRESSED:
        address = part.get(sort)
        sort = ADDRESSED[sort]
        part = {"url": address.get("url") if isinstance(address, Mapping) else address}
    known = isinstance(sort, str) and sort in ("text", *SOURCES)
    if not isinstance(part, Mapping) or not known:
        raise PromptError(
            "expected parts of the types text, image and video, found "
            f'{_named(part if sort is None else sort)}; write {{"type": "text", "text": …}}'
        )
    if sort == "text":
        marked = role == "user" and part.get("placeholders") is True
        special = role == "assistant" and part.get("special_tokens") is True
        text = Text(_checked(part.get("text")), marked, special)
        brought = [
            (kind, one)
            for kind in SOURCES
            if marked
            for one in _listed(part.get(f"{kind}s"), f"{kind}s")
        ]
        return text, brought
    if role != "user":
        raise PromptError(
            f"expected pictures and videos from the user, found one of the {role}; "
            "put it into a message of the user"
        )
    kind: Kind = "image" if sort == "image" else "video"
    source = next((part[key] for key in SOURCES[kind] if part.get(key) is not None), None)
    if source is None:
        if not waiting[kind]:
            raise PromptError(
                f'expected a part {{"type": "{kind}", "{kind}": …}}, found no {kind} in it and '
                f"none left of {kind}s; add the {kind}"
            )
        source = waiting[kind].pop(0)
    return Place(kind), [(kind, source)]


def _listed(sources: Sequence[Any] | None, name: str) -> Sequence[Any]:
    """A path or an array is a sequence too, and would be taken apart."""
    if sources is None:
        return ()
    if isinstance(sources, ONE_SOURCE) or not isinstance(sources, Sequence):
        raise PromptError(
            f"expected a list of {name}, found {type(sources).__name__}; write {name}=[…]"
        )
    return sources


def _checked(text: object, what: str = "prompt") -> str:
    check_text(text, what)
    return str(text)


def _named(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    return "none" if value is None else type(value).__name__

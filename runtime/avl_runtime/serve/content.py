"""Messages of a chat, of texts and pictures, to what `LVLM` takes.

Nothing of what a client sent gets there as it is: the runtime takes paths and addresses for
pictures, which no client may name. Pictures are bytes that `data:` addresses hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from avl_plugins.errors import quoted
from avl_runtime.serve import values
from avl_runtime.serve.errors import refused
from avl_runtime.serve.limits import Limits

ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What an answer of ours, sent back as it came, holds beside its text.
ANSWERED: Final = ("refusal", "annotations", "audio", "tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture is to be had: `url` as the client wrote it, `name` the field it stands in."""

    url: str
    name: str


@dataclass(frozen=True, slots=True)
class Said:
    """A message: its role, and texts and pictures in order."""

    role: str
    parts: tuple[str | Picture, ...]


def messages(value: object, limits: Limits) -> tuple[Said, ...]:
    """What `messages` of a body says.

    Raises:
        ApiError: it is not what OpenAI's protocol has, holds more than is allowed, or sorts of
            content that are not served.
    """
    name = "messages"
    found = tuple(
        _message(one, f"{name}[{at}]", limits)
        for at, one in enumerate(values.items(value, name, 1, limits.parts))
    )
    parts = [part for said in found for part in said.parts]
    shown = len(pictures(found))
    characters = sum(len(part) for part in parts if isinstance(part, str))
    if characters > limits.text:
        raise refused(
            f"{name}: expected texts of at most {limits.text} characters together, found "
            f"{characters}; shorten them",
            name,
        )
    if shown > limits.images:
        raise refused(
            f"{name}: expected at most {limits.images} pictures, found {shown}; send fewer", name
        )
    if len(parts) > limits.parts:
        raise refused(
            f"{name}: expected at most {limits.parts} parts, found {len(parts)}; join some", name
        )
    return found


def pictures(said: Sequence[Said]) -> list[Picture]:
    """All pictures of messages, in order."""
    return [part for one in said for part in one.parts if isinstance(part, Picture)]


def _message(value: object, name: str, limits: Limits) -> Said:
    given = values.an_object(value, name, ("role", "content", "name", *ANSWERED))
    role = ROLES.get(given["role"]) if isinstance(given.get("role"), str) else None
    if role is None:
        raise values.wrong(f"{name}.role", f"one of {', '.join(ROLES)}", given.get("role"))
    for key in ("name", *ANSWERED):
        if given.get(key):  # an empty list of them says nothing
            raise refused(
                f"{name}.{key}: expected none, found {quoted(given[key])}; this server takes texts "
                "and pictures alone",
                f"{name}.{key}",
            )
    content = given.get("content")
    if isinstance(content, str):
        return Said(role, (values.text(content, f"{name}.content", limits.text),))
    listed = values.items(content, f"{name}.content", 1, limits.parts)
    parts = tuple(
        _part(one, f"{name}.content[{at}]", role, limits) for at, one in enumerate(listed)
    )
    return Said(role, parts)


def _part(value: object, name: str, role: str, limits: Limits) -> str | Picture:
    sort = value.get("type") if isinstance(value, dict) else None
    if sort == "text":
        given = values.an_object(value, name, ("type", "text"))
        return values.text(given.get("text"), f"{name}.text", limits.text)
    if sort == "image_url":
        if role != "user":
            raise refused(
                f"{name}: expected pictures in messages of the user, found one of the {role}; move "
                "it",
                name,
            )
        given = values.an_object(value, name, ("type", "image_url"))
        return _picture(given.get("image_url"), f"{name}.image_url")
    raise values.wrong(f"{name}.type", "text or image_url", sort)


def _picture(value: object, name: str) -> Picture:
    given = values.an_object(value, name, ("url", "detail"))
    if given.get("detail", "auto") != "auto":
        raise values.wrong(
            f"{name}.detail", "auto, as the model sees pictures one way", given["detail"]
        )
    url: Any = given.get("url")
    if not isinstance(url, str):
        raise values.wrong(f"{name}.url", "a data: address", url)
    return Picture(url, f"{name}.url")

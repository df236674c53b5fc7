"""What a line asks: in OpenAI's batch form, or in the short form of avl-eval's data."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from avl_plugins.errors import AvlError, quoted

CHAT: Final = "/v1/chat/completions"
URLS: Final = (CHAT, "/v1/responses")
LONG: Final = ("custom_id", "method", "url", "body")
SHORT: Final = ("custom_id", "images", "prompt")
NOTED: Final = ("answers", "metric")  # of avl-eval, which rates by them
LONGEST_ID: Final = 512  # characters
# How the server names what the short form calls images and prompt.
SENT: Final = re.compile(r"^messages(\[0\]\.content(\[(?P<part>\d+)\][.\w]*)?)?(?![.\w])")
Object = dict[str, Any]


class LineError(AvlError):
    """A line is no request."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        url: the route of avl-serve that answers it.
        body: what is sent there; pictures may be names of files.
        shown: of the short form, how many pictures it has; None of the long one.
    """

    url: str
    body: Object
    shown: int | None = None

    def in_its_words(self, error: Object) -> Object:
        """An error object of the server that names the fields that the line has.

        Args:
            error: as `ApiError.body`.
        """
        if self.shown is None:
            return error
        found = error["error"]
        named = {
            key: SENT.sub(self._own, found[key], count=1)
            for key in ("message", "param")
            if isinstance(found[key], str)
        }
        return {"error": found | named}

    def _own(self, sent: re.Match[str]) -> str:
        """The line's field that was sent as a part of the only message."""
        if sent["part"] is not None:
            return f"images[{sent['part']}]" if int(sent["part"]) < (self.shown or 0) else "prompt"
        return "prompt" if "expected texts" in sent.string else "images"


@dataclass(frozen=True, slots=True)
class Piece:
    """A text of a message, or where a picture is to be had.

    Attributes:
        role: who says it.
        value: the text, or the address or path as it was written.
        name: the field, for messages; empty for texts.
        holder, key: of a picture, the object in which `value` stands.
    """

    role: str
    value: str
    name: str = ""
    holder: Object | None = None
    key: str = ""


def loosely(line: bytes) -> Object:
    """The object of a line as far as there is one: enough to name and to order it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def id_of(found: Mapping[str, Any], number: int) -> str:
    """What a request is called; one without a name of its own is called after its line."""
    given = found.get("custom_id")
    return given if _is_id(given) else f"line-{number}"


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_ID


def asked_of(found: Object, model: str) -> Asked:
    """The request of a line's object.

    Args:
        model: for bodies that name none.

    Raises:
        LineError: it is none.
    """
    if found.get("custom_id") is not None and not _is_id(found["custom_id"]):
        raise LineError(
            f"custom_id: expected a text of 1 to {LONGEST_ID} characters, found "
            f"{quoted(found['custom_id'])}; name the request otherwise, or leave it out"
        )
    asked = _short(found) if "prompt" in found and "body" not in found else _long(found)
    if asked.body.get("model") is None:
        asked.body["model"] = model
    if asked.body.get("stream"):
        raise LineError(
            "stream: expected false, as an answer is one line, found true; leave it out"
        )
    return asked


def _long(found: Object) -> Asked:
    _only(found, LONG)
    if found.get("method") != "POST":
        raise LineError(f"method: expected POST, found {quoted(found.get('method'))}")
    if found.get("url") not in URLS:
        raise LineError(
            f"url: expected {' or '.join(URLS)}, found {quoted(found.get('url'))}; choose one"
        )
    if not isinstance(found.get("body"), dict):
        raise LineError(f"body: expected an object, found {quoted(found.get('body'))}")
    return Asked(found["url"], found["body"])


def _short(found: Object) -> Asked:
    images = found.get("images", [])
    if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise LineError(f"images: expected a list of paths or addresses, found {quoted(images)}")
    if "messages" in found:
        raise LineError("messages: expected none beside prompt, found some; leave one out")
    parts: list[Object] = [{"type": "image_url", "image_url": {"url": one}} for one in images]
    parts.append({"type": "text", "text": found["prompt"]})
    fields = {name: one for name, one in found.items() if name not in (*SHORT, *NOTED)}
    return Asked(CHAT, {"messages": [{"role": "user", "content": parts}], **fields}, len(images))


def _only(found: Object, known: Collection[str]) -> None:
    for name in found:
        if name not in known:
            raise LineError(
                f"expected the names {', '.join(known)}, or prompt and images, found "
                f"{quoted(name)}; leave it out"
            )


def pieces(body: Mapping[str, Any]) -> Iterator[Piece]:
    """The texts and pictures of a body in order; what is no message is passed over."""
    if isinstance(body.get("instructions"), str):
        yield Piece("system", body["instructions"])
    for field in ("messages", "input"):
        given = body.get(field)
        if isinstance(given, str):
            yield Piece("user", given)
        for at, message in enumerate(given if isinstance(given, list) else []):
            if isinstance(message, dict):
                yield from _said(message, f"{field}[{at}].content")


def _said(message: Object, name: str) -> Iterator[Piece]:
    role, content = str(message.get("role")), message.get("content")
    if isinstance(content, str):
        yield Piece(role, content)
    for at, part in enumerate(content if isinstance(content, list) else []):
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("text"), str):
            yield Piece(role, part["text"])
        # Of chat requests the address is one object deeper.
        inner, place = part.get("image_url"), f"{name}[{at}].image_url"
        holder, key = (inner, "url") if isinstance(inner, dict) else (part, "image_url")
        value = holder.get(key)
        if isinstance(value, str):
            yield Piece(role, value, place + (".url" if holder is inner else ""), holder, key)


def outline(found: Mapping[str, Any]) -> Iterator[Piece]:
    """The pieces of a line, by which it is ordered."""
    if isinstance(found.get("body"), dict):
        yield from pieces(found["body"])
        return
    images = found.get("images")
    for one in images if isinstance(images, list) else []:
        if isinstance(one, str):
            yield Piece("user", one, "images", {}, "")
    if isinstance(found.get("prompt"), str):
        yield Piece("user", found["prompt"])

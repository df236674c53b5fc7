"""Messages of a chat, of texts and pictures, to what `LVLM` takes.

Nothing of what a client sent gets there as it is: the runtime takes paths and addresses for
pictures, which no client may name. Pictures are bytes that `data:` addresses hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from avl_plugins.errors import quoted
from avl_runtime.prompts.calls import ToolCall
from avl_runtime.serve.asked import values
from avl_runtime.serve.asked.tools import call_item, calls_of
from avl_runtime.serve.errors import refused
from avl_runtime.serve.limits import Limits

ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What an answer of ours, sent back as it came, holds beside its text.
ANSWERED: Final = ("refusal", "annotations", "audio", "tool_calls", "function_call", "phase")
LONGEST_ID: Final = 256
LOW: Final = "low"
DETAILS: Final = ("auto", "high", "original", LOW)  # all but the last are as the model has it


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture is to be had.

    Attributes:
        url: as the client wrote it.
        name: the field it stands in.
        low: whether few details are enough.
    """

    url: str
    name: str
    low: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """A message: its role, and texts and pictures in order.

    Attributes:
        calls: of functions, by the assistant.
        answers: the id of the call that a tool answers.
        named: the function that answers, where the client says it.
    """

    role: str
    parts: tuple[str | Picture, ...]
    calls: tuple[ToolCall, ...] = ()
    answers: str | None = None
    named: str | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one of OpenAI's two protocols names things.

    Attributes:
        field: that holds messages.
        noted: names that a message may have beside its role and content, and that say nothing.
        texts: types of parts that are texts.
        picture: type of parts that are pictures.
        nested: whether the address of a picture is inside of an object.
        roles: of messages, and what they are here.
    """

    field: str
    noted: tuple[str, ...]
    texts: tuple[str, ...]
    picture: str
    nested: bool
    roles: Mapping[str, str]


CHAT: Final = Dialect("messages", (), ("text",), "image_url", True, ROLES | {"tool": "tool"})
RESPONSES: Final = Dialect(
    "input", ("type", "id", "status"), ("input_text", "output_text"), "input_image", False, ROLES
)


def messages(value: object, limits: Limits, dialect: Dialect = CHAT) -> tuple[Said, ...]:
    """What the messages of a body say.

    Raises:
        ApiError: it is not what OpenAI's protocol has, holds more than is allowed, or sorts of
            content that are not served.
    """
    name = dialect.field
    found: list[Said] = []
    expected = "a list" if dialect.nested else "a text or a list"
    for at, one in enumerate(values.items(value, name, 1, limits.parts, expected)):
        where = f"{name}[{at}]"
        said = None if dialect.nested else _item(one, where, limits)
        if said is None:
            found.append(_message(one, where, limits, dialect))
        elif said.calls and found and found[-1].role == "assistant":
            found[-1] = replace(found[-1], calls=(*found[-1].calls, *said.calls))
        else:
            found.append(said)
    check(found, limits, name)
    _check_answers(found, name)
    return tuple(found)


def _item(value: object, name: str, limits: Limits) -> Said | None:
    """A call or an answer to one, which /v1/responses has beside messages; None of a message.

    Raises:
        ApiError: it is another item, or not as these are.
    """
    sort = value.get("type") if isinstance(value, dict) else None
    if sort == "function_call":
        empty = ("namespace", "caller", "async", "async_")  # in what openai's client sends back
        noted = ("type", "id", "status", "parsed_arguments", *empty)
        given = values.an_object(value, name, ("call_id", "name", "arguments", *noted))
        for key in empty:
            if key in given:
                raise values.wrong(f"{name}.{key}", "none", given[key])
        return Said("assistant", (), (call_item(given, name),))
    if sort == "function_call_output":
        given = values.an_object(value, name, ("type", "id", "status", "call_id", "output"))
        number = values.text(given.get("call_id"), f"{name}.call_id", LONGEST_ID)
        output = values.text(given.get("output"), f"{name}.output", limits.text)
        return Said("tool", (output,), (), number)
    if sort not in (None, "message"):
        expected = "one of message, function_call, function_call_output"
        raise values.wrong(f"{name}.type", expected, sort)
    return None


def _check_answers(found: Sequence[Said], name: str) -> None:
    """Refuse what tools say to calls that were not made, or not to them."""
    made: dict[str, str] = {}
    for at, one in enumerate(found):
        made |= {call.id: call.name for call in one.calls}
        if one.answers is not None and one.answers not in made:
            field = "tool_call_id" if name == CHAT.field else "call_id"
            where = f"{name}[{at}].{field}"
            raise values.wrong(where, "the id of a call before it", one.answers)
        if one.answers is not None and one.named not in (None, made[one.answers]):
            expected = f"{made[one.answers]}, which its call named"
            raise values.wrong(f"{name}[{at}].name", expected, one.named)


def check(found: Sequence[Said], limits: Limits, name: str) -> None:
    """Refuse messages that are too many or too long together.

    Raises:
        ApiError: they are.
    """
    parts = [part for said in found for part in said.parts]
    shown = len(pictures(found))
    characters = sum(len(part) for part in parts if isinstance(part, str))
    calls = [call for said in found for call in said.calls]
    characters += sum(len(json.dumps(call.arguments)) for call in calls)
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


def pictures(said: Sequence[Said]) -> list[Picture]:
    """All pictures of messages, in order."""
    return [part for one in said for part in one.parts if isinstance(part, Picture)]


def _message(value: object, name: str, limits: Limits, dialect: Dialect) -> Said:
    known = ("role", "content", "name", *dialect.noted, *ANSWERED)
    told = value.get("role") if isinstance(value, dict) else None
    roles = dialect.roles
    if isinstance(value, dict) and not (isinstance(told, str) and told in roles):
        raise values.wrong(f"{name}.role", f"one of {', '.join(roles)}", told)
    if told == "tool":
        known = ("role", "content", "tool_call_id", "name")
    given = values.an_object(value, name, known)
    role = roles[given["role"]]
    calls: tuple[ToolCall, ...] = ()
    if role == "assistant" and "tool" in roles and "tool_calls" in given:
        calls = calls_of(given.pop("tool_calls"), f"{name}.tool_calls")
    answers = named = None
    if role == "tool":
        answers = values.text(given.get("tool_call_id"), f"{name}.tool_call_id", LONGEST_ID)
        named = given.pop("name", None)
    for key in ("name", *ANSWERED):
        if given.get(key):  # an empty list of them says nothing
            raise refused(
                f"{name}.{key}: expected none, found {quoted(given[key])}; messages hold texts "
                "and pictures alone",
                f"{name}.{key}",
            )
    content = given.get("content")
    if isinstance(content, str):
        text = values.text(content, f"{name}.content", limits.text)
        return Said(role, (text,), calls, answers, named)
    if content is None and calls:
        return Said(role, (), calls)
    listed = values.items(content, f"{name}.content", 1, limits.parts, "a text or a list")
    parts = tuple(
        _part(one, f"{name}.content[{at}]", role, limits, dialect) for at, one in enumerate(listed)
    )
    return Said(role, parts, calls, answers, named)


def _part(value: object, name: str, role: str, limits: Limits, dialect: Dialect) -> str | Picture:
    sort = value.get("type") if isinstance(value, dict) else None
    if isinstance(sort, str) and sort in dialect.texts:
        noted = ("annotations", "logprobs") if sort == "output_text" else ()
        given = values.an_object(value, name, ("type", "text", *noted))
        for key in noted:
            if given.get(key):
                raise values.wrong(f"{name}.{key}", "none", given[key])
        return values.text(given.get("text"), f"{name}.text", limits.text)
    if sort == dialect.picture:
        if role != "user":
            raise refused(
                f"{name}: expected pictures in messages of the user, found one of the {role}; move "
                "it",
                name,
            )
        if not dialect.nested:
            return _picture(value, name, "image_url", ("type",))
        given = values.an_object(value, name, ("type", "image_url"))
        return _picture(given.get("image_url"), f"{name}.image_url", "url", ())
    raise values.wrong(f"{name}.type", " or ".join((*dialect.texts, dialect.picture)), sort)


def _picture(value: object, name: str, key: str, beside: tuple[str, ...]) -> Picture:
    given = values.an_object(value, name, (key, "detail", *beside))
    detail = given.get("detail", "auto")
    if not isinstance(detail, str) or detail not in DETAILS:
        raise values.wrong(f"{name}.detail", f"one of {', '.join(DETAILS)}", detail)
    url: Any = given.get(key)
    if not isinstance(url, str):
        raise values.wrong(f"{name}.{key}", "a data: address", url)
    if not url.isascii():  # else it has two or four bytes a character, and so have its copies
        raise refused(
            f"{name}.{key}: expected an address of ASCII characters, found others; write data in "
            "base64",
            f"{name}.{key}",
        )
    return Picture(url, f"{name}.{key}", detail == LOW)

"""The commands of a conversation, each with a line of help."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from avl_plugins.errors import AvlError, quoted, shown
from avl_plugins.policies import parse
from avl_runtime.cli.session import Session
from avl_runtime.cli.talk.pasted import pasted_path
from avl_runtime.cli.talk.sources import Shown, Sources, counted
from avl_runtime.cli.talk.transcript import read_messages, write_messages
from avl_runtime.vision.load.sources import SourceError, local_path


class Talk(Protocol):
    """The conversation that commands act on, see `loop.Talk`."""

    session: Session
    shown: Shown
    sources: Sources
    ended: bool

    def tell(self, line: str) -> None: ...

    def agrees(self, question: str) -> bool: ...


class CommandError(AvlError):
    """A command of the conversation is unknown, or lacks something."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its name, what follows it, a line of help, and what it does."""

    name: str
    takes: str
    help: str
    run: Callable[[Talk, str], None]


def run_command(talk: Talk, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        AvlError: there is no such command, or it cannot be done.
    """
    name, _, rest = line.partition(" ")
    name = "/quit" if name == "/exit" else name
    command = COMMANDS.get(name)
    if command is not None:
        command.run(talk, rest.strip())
        return
    refuse_bare_file(line)
    near = difflib.get_close_matches(name, list(COMMANDS), 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "/help lists them"
    raise CommandError(f"expected a command, found {quoted(name)}; {hint}")


def refuse_bare_file(line: str) -> None:
    """Refuse a line that is a file's whole name, as it is pasted when a file is dropped.

    Raises:
        CommandError: it names what exists, behind a slash or in quotes.
    """
    if line.startswith(("/", "'", '"')) and _exists(Path(pasted_path(line))):
        expected = "a command" if line.startswith("/") else "a question"
        raise CommandError(
            f"expected {expected}, found {quoted(line, 60)}, a file; /image or /video in front of "
            f"a file shows it, as in /image {shown(line)}"
        )


def _image(talk: Talk, rest: str) -> None:
    _media(talk, "image", rest)


def _video(talk: Talk, rest: str) -> None:
    _media(talk, "video", rest)


def _media(talk: Talk, kind: str, rest: str) -> None:
    new = talk.sources.take(kind, _wanted(f"/{kind}", rest))
    # Counting tokens refuses what the model does not take, before it waits for a question.
    for line in talk.sources.told(new, talk.shown + new, talk.session.model.processor):
        talk.tell(line)
    talk.shown += new


def _clear(talk: Talk, rest: str) -> None:
    _nothing("/clear", rest)
    talk.session.chat.clear()
    talk.shown = Shown()
    talk.tell("the conversation begins anew")


def _undo(talk: Talk, rest: str) -> None:
    _nothing("/undo", rest)
    asked = [one for one in talk.session.chat.messages if one["role"] == "user"]
    talk.session.chat.undo()
    parts = asked[-1]["content"]
    text = " ".join(part["text"] for part in parts if part["type"] == "text")
    kinds = [part["type"] for part in parts]
    media = counted(kinds.count("image"), kinds.count("video"))
    talk.tell(f"took back {quoted(text, 60)}{media and f' with {media}'}, and its answer")


def _policy(talk: Talk, rest: str) -> None:
    if rest:
        talk.session.chat.set_policy(parse(rest))
    talk.tell(f"policy: {talk.session.chat.policy}")


def _system(talk: Talk, rest: str) -> None:
    if rest:
        talk.session.chat.set_system(None if rest in ('""', "''") else rest)
    said = talk.session.chat.messages[:1]
    text = said[0]["content"][0]["text"] if said and said[0]["role"] == "system" else None
    talk.tell("no system prompt" if text is None else f"system prompt: {text}")


def _save(talk: Talk, rest: str) -> None:
    path = _path("/save", rest)
    messages = talk.session.chat.messages
    if not messages:
        raise CommandError("/save: expected a conversation, found none yet; ask something first")
    if _exists(path) and path.is_dir():
        raise CommandError(
            f"{shown(path)}: expected to write it, found: a folder; name a file in it"
        )
    if _exists(path) and not talk.agrees(f"{shown(path)} exists. Replace it?"):
        talk.tell("nothing was saved")
        return
    write_messages(path, messages, talk.sources)
    talk.tell(f"saved {len(messages)} messages as {shown(path)}")


def _load(talk: Talk, rest: str) -> None:
    path = _path("/load", rest)
    messages = read_messages(path, talk.sources)
    session = talk.session
    chat = session.model.chat(policy=session.chat.policy, messages=messages)
    if session.chat.messages and not talk.agrees("This ends the conversation. Go on?"):
        talk.tell("nothing was loaded")
        return
    session.chat = chat
    talk.tell(f"{len(messages)} messages of {shown(path)}; the conversation goes on from there")


def _help(talk: Talk, rest: str) -> None:
    rows = [(f"{one.name} {one.takes}".rstrip(), one.help) for one in COMMANDS.values()]
    rows.append(('"""', "begin and end a message of several lines"))
    rows.append(("Ctrl-C", "stop an answer, or drop what is typed; twice where nothing is, leave"))
    width = max(len(left) for left, _ in rows)
    for left, right in rows:
        talk.tell(f"{left:<{width}}  {right}")


def _quit(talk: Talk, rest: str) -> None:
    _nothing("/quit", rest)
    talk.ended = True


def _wanted(name: str, rest: str) -> str:
    if not rest:
        command = COMMANDS[name]
        raise CommandError(f"expected {name} {command.takes}, found {name} alone: {command.help}")
    return rest


def _path(name: str, rest: str) -> Path:
    try:
        return local_path(pasted_path(_wanted(name, rest)))
    except SourceError as error:
        raise CommandError(f"{name}: {error}") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name; whoever opens it says so
        return False


def _nothing(name: str, rest: str) -> None:
    if rest:
        raise CommandError(f"expected {name} alone, found {quoted(rest)} behind it; leave it out")


COMMANDS = {
    one.name: one
    for one in (
        Command("/image", "FILE|URL", "show a picture, or several, with the next question", _image),
        Command("/video", "FILE", "show a video, or several, with the next question", _video),
        Command("/clear", "", "forget all that was said and shown", _clear),
        Command("/undo", "", "take back the last question and its answer", _undo),
        Command("/policy", "[POLICY]", "tell the policy, or go on under another one", _policy),
        Command("/system", "[TEXT]", 'tell the system prompt, or set it; "" is none', _system),
        Command("/save", "FILE", "write the conversation to a JSON file", _save),
        Command("/load", "FILE", "go on from a conversation in a JSON file", _load),
        Command("/help", "", "list the commands", _help),
        Command("/quit", "", "leave, as /exit and Ctrl-D do", _quit),
    )
}

"""What a chat remembers: who said what, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from avl_runtime.prompts.chat_template import Turn
from avl_runtime.prompts.heard import Heard
from avl_runtime.prompts.messages import Message, PromptError, Text
from avl_runtime.prompts.processor import Processor
from avl_runtime.vision import Kind


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """What the user said and what the model answered.

    Attributes:
        media: what came with it, in the order of the tokens.
        reply: the answer as it was told.
        ended: whether the answer's tokens end with an end token.
        special: whether special tokens were told.
    """

    heard: Heard
    media: tuple[Kind, ...]
    reply: str
    ended: bool
    special: bool

    @property
    def turn(self) -> Turn:
        """The same without pictures and videos."""
        message = self.heard.message
        return Turn(message.parts, message.kinds, self.reply, self.ended, self.special)


def recalled(said: Sequence[Message], processor: Processor) -> tuple[Exchange, ...]:
    """Earlier messages, pictures and videos loaded, as exchanges.

    Raises:
        PromptError: user and assistant do not take turns, or the assistant is not the last.
        AvlError: a picture or a video cannot be used.
    """
    roles = [message.role for message in said]
    if roles != ["user", "assistant"] * (len(said) // 2):
        raise PromptError(
            "expected messages of user and assistant in turn, the last one the assistant's, "
            f"found {', '.join(roles[:8])}; put what is to be asked into send()"
        )
    exchanges = []
    for asked, answer in zip(said[::2], said[1::2], strict=True):
        texts = [part for part in answer.parts if isinstance(part, Text)]
        reply = "".join(text.text for text in texts)
        special = any(text.special for text in texts)
        # No cache holds an end token of theirs: the whole conversation will be read.
        exchanges.append(Exchange(processor.hear(asked), asked.kinds, reply, False, special))
    return tuple(exchanges)


def placed(exchanges: Sequence[Exchange], kinds: Sequence[Kind]) -> tuple[Exchange, ...]:
    """`exchanges` with what came with each: `kinds` in the order of the tokens of all.

    A template may turn pictures and videos of one message around.
    """
    begin, found = 0, []
    for one in exchanges:
        end = begin + len(one.media)
        found.append(replace(one, media=tuple(kinds[begin:end])))
        begin = end
    return tuple(found)

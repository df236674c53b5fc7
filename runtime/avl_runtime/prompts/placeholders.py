"""The strings that stand for pictures and videos in a prompt, and what takes their place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from avl_runtime.prompts.messages import Message, Place, PromptError, Text
from avl_runtime.prompts.plain_text import PlainText
from avl_runtime.vision import Kind, Media


class Placeholders:
    """Puts placeholders into prompts without a template, and tokens in their place.

    Args:
        words: the strings.
        plain: marks what only looks like them.
    """

    def __init__(self, words: Mapping[Kind, str], plain: PlainText) -> None:
        self._words = dict(words)
        self._plain = plain

    def raw(self, message: Message) -> str:
        """A message as it stands, with a placeholder and a line break for each picture.

        Raises:
            PromptError: a text has other placeholders than pictures and videos come with it.
        """
        texts = [part for part in message.parts if isinstance(part, Text)]
        if len(texts) != 1 or isinstance(message.parts[-1], Place):
            return "".join(
                self._plain.mark(part.text, self._words.values())
                if isinstance(part, Text)
                else f"{self._words[part.kind]}\n"
                for part in message.parts
            )
        front, text = "", texts[0].text
        for kind, placeholder in self._words.items():
            placed, sent = text.count(placeholder), message.kinds.count(kind)
            if not sent and not texts[0].placeholders:
                text = self._plain.mark(text, [placeholder])
            elif placed not in (0, sent):
                raise PromptError(
                    f"expected {sent} {kind} placeholders ({placeholder}) or none in the prompt, "
                    f"found {placed}"
                )
            front += "" if placed else f"{placeholder}\n" * sent
        return front + text

    def question(self, said: Sequence[Message]) -> str:
        """The text of the user's last message that has some, without placeholders."""
        for message in reversed(said):
            if message.role == "user":
                text = " ".join(part.text for part in message.parts if isinstance(part, Text))
                for word in self._words.values():
                    text = text.replace(word, " ")
                if text.strip():
                    return text.strip()
        return ""

    def filled(
        self, text: str, media: Sequence[Media], earlier: Sequence[Kind] = ()
    ) -> tuple[str, tuple[Media, ...]]:
        """`text` with all placeholders replaced, and `media` in the order of their places.

        Args:
            earlier: what the conversation has had before the text.
        """
        kinds = {placeholder: kind for kind, placeholder in self._words.items()}
        waiting = {kind: [part for part in media if part.kind == kind] for kind in kinds.values()}
        placed: list[Media] = []

        def replacement(found: re.Match[str]) -> str:
            kind = kinds[found[0]]
            number = [*earlier, *(one.kind for one in placed)].count(kind)
            placed.append(waiting[kind].pop(0))
            return placed[-1].numbered(number)

        filled = re.sub("|".join(map(re.escape, kinds)), replacement, text)
        return filled, tuple(placed)

"""Texts that look like special tokens, encoded as the ordinary text they are.

HTML has `<s>` and `</s>`, and what was read from a picture may hold `<image>`. A template writes
special tokens as text too, so that after it nobody can tell one from the other. Hence each of them
that a user writes becomes a mark before the template sees it, and becomes itself again in front of
a second tokenizer, whose special tokens bear other names. Nobody can guess marks or names.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from avl_plugins.errors import quoted
from avl_runtime.prompts.calls import ToolCall
from avl_runtime.prompts.messages import Message, Part, PromptError, Text

Ids = list[int]


class PlainText:
    """Tells special tokens that a template writes from those that a user writes.

    Args:
        tokenizer: the package's.
        visual: placeholders and tokens of pictures and videos, whatever kind of token they are.
    """

    def __init__(self, tokenizer: Tokenizer, visual: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token.content: number for number, token in added.items()}
        special = [token.content for token in added.values() if token.special]
        self._reserved = tuple(dict.fromkeys([*special, *visual]))
        self._pattern = _any_of(self._reserved)
        secret = secrets.token_hex(8)
        # Letters and digits only: templates that trim, split or escape text leave them alone.
        self._marks = {token: f"m{secret}n{n}z" for n, token in enumerate(self._reserved)}
        self._names = {
            token: f"t{secret}n{number}z"
            for number, token in enumerate(self._reserved)
            if token in self._added
        }
        self._border = f"b{secret}z"  # between two texts that only together look like a token
        self._mark = re.compile(f"m{secret}n([0-9]+)z|{self._border}")

    def marked(self, message: Message, meant: Sequence[str]) -> Message:
        """`message` with marks where its texts look like special tokens.

        Args:
            meant: what stays in texts whose placeholders count: these, and nothing of them alone.
        """
        if message.calls:
            calls = tuple(
                ToolCall(one.id, *self.mark_all([one.name, one.arguments])) for one in message.calls
            )
            message = dataclasses.replace(message, calls=calls)
        texts = [part for part in message.parts if isinstance(part, Text)]
        pattern = _any_of((*self._reserved, *meant))
        if pattern.search("".join(text.text for text in texts)) is None:
            return message
        pieces = iter(self._across(texts, pattern, meant))
        parts: list[Part] = [
            dataclasses.replace(part, text=next(pieces)) if isinstance(part, Text) else part
            for part in message.parts
        ]
        return dataclasses.replace(message, parts=tuple(parts))

    def mark(self, text: str, words: Iterable[str] | None = None) -> str:
        """`text` with marks where it looks like special tokens, or like those in `words`."""
        pattern = self._pattern if words is None else _any_of(words)
        return pattern.sub(lambda found: self._marks[found[0]], text)

    def mark_all(self, value: Any) -> Any:
        """JSON with marks in all its texts and names."""
        if isinstance(value, str):
            return self.mark(value)
        if isinstance(value, Mapping):
            return {self.mark_all(key): self.mark_all(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark_all(one) for one in value]
        return value

    def only(self, text: str) -> bool:
        """Whether `text` is special tokens and nothing else."""
        return not self._pattern.sub("", text)

    def encode(self, text: str, *, with_bos: bool) -> Ids:
        """Ids of a rendered text with marks; all its other special tokens are meant.

        Raises:
            PromptError: the tokenizer cannot encode a marked text as ordinary text.
        """
        meant = self._tokenizer.encode(text, add_special_tokens=with_bos)
        written = {number: token for token, number in self._added.items() if token in self._names}
        # Normalizers make tokens of other characters too: of full-width ones, or of capitals. A
        # token may take spaces around it. An unknown character's id is none of a text.
        places = zip(meant.ids, meant.offsets, strict=True)
        strays = {
            number
            for number, (begin, stop) in places
            if number in written and begin < stop and written[number] not in text[begin:stop]
        }
        if self._mark.search(text) is None and not strays - self._unknown:
            return list(meant.ids)
        renamed, end = "", 0
        ids: Ids = []
        for number, (begin, stop) in zip(meant.ids, meant.offsets, strict=True):
            token = written.get(number, "")
            if not token or begin == stop:  # no such token, or one that the tokenizer adds
                continue
            start = text.find(token, begin, stop)
            if start < 0:
                continue
            renamed += text[end:start] + self._names[token]
            end = start + len(token)
            ids.append(number)
        plain = self._mark.sub(self._unmarked, renamed + text[end:])
        found = self._second.encode(plain, add_special_tokens=with_bos)
        again = [
            number
            for number, (begin, stop) in zip(found.ids, found.offsets, strict=True)
            if number in written and self._names[written[number]] in plain[begin:stop]
        ]
        if again != ids:
            looks = [token for token in self._reserved if self._marks[token] in text]
            looks += [written[number] for number in strays]
            raise PromptError(
                f"expected a prompt of plain text, found the special token {quoted(looks[0])}, "
                "which this tokenizer cannot take as ordinary text; leave it out"
            )
        return list(found.ids)

    def _across(
        self, texts: Sequence[Text], pattern: re.Pattern[str], meant: Sequence[str]
    ) -> list[str]:
        """Each text with marks; what begins in one and ends in another is broken at their border.

        A template may write texts side by side, whatever lies between them.
        """
        whole = "".join(text.text for text in texts)
        edits: list[tuple[int, int, str]] = []
        borders = [0]
        for text in texts:
            borders.append(borders[-1] + len(text.text))
        for found in pattern.finditer(whole):
            # Borders are in order; the text of a place is the last that begins before it.
            after = bisect_right(borders, found.start())
            inside = borders[after : bisect_left(borders, found.end())]
            if inside:
                edits += [(at, at, self._border) for at in inside]
                continue
            text = texts[after - 1]
            if not text.special and not (text.placeholders and found[0] in meant):
                edits.append((found.start(), found.end(), self.mark(found[0])))
        marked, at, following = [], 0, 0
        for end in borders[1:]:
            pieces = []
            # A border belongs to the text that it ends.
            while following < len(edits) and edits[following][1] <= end:
                start, stop, new = edits[following]
                pieces += [whole[at:start], new]
                at, following = stop, following + 1
            marked.append("".join([*pieces, whole[at:end]]))
            at = end
        return marked

    def _unmarked(self, found: re.Match[str]) -> str:
        return "" if found[1] is None else self._reserved[int(found[1])]

    @functools.cached_property
    def _unknown(self) -> set[int]:
        """The id of characters that the tokenizer does not know, if it has one."""
        model = json.loads(self._tokenizer.to_str())["model"]
        return {self._added.get(model.get("unk_token"), -1), model.get("unk_id", -1)}

    @functools.cached_property
    def _second(self) -> Tokenizer:
        """The tokenizer with its reserved tokens under other names and the same ids."""
        tree = json.loads(self._tokenizer.to_str())
        for token in tree["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        _rename(tree["model"], self._names)
        second = Tokenizer.from_str(json.dumps(tree))
        for token, name in self._names.items():
            if second.token_to_id(name) != self._added[token]:
                raise PromptError(
                    f"expected a prompt of plain text, found special tokens in it ({quoted(token)} "
                    "is one of this tokenizer's), which it cannot take as ordinary text; leave "
                    "them out"
                )
        return second


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of `words` at a place, as tokenizers do."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename pieces of a tokenizer's model, so that no ordinary text gives them."""
    vocabulary = model.get("vocab")

    def name(piece: str) -> str:
        return names.get(piece, piece)

    if isinstance(vocabulary, dict):
        model["vocab"] = {name(piece): number for piece, number in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: pieces and scores
        model["vocab"] = [[name(piece), score] for piece, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = name(model["unk_token"])
    merges = []
    for merge in model.get("merges") or ():
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if not {left, right, left + right} & names.keys():
            merges.append(merge)
    if "merges" in model:
        model["merges"] = merges

"""Marks across texts that lie side by side, against all borders tried one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from avl_runtime.prompts.messages import Text
from avl_runtime.prompts.plain_text import PlainText

TOKENIZER = Tokenizer(models.WordLevel({"x": 0}, "x"))
TOKENIZER.add_special_tokens([AddedToken("<s>"), AddedToken("<<s>>")])
PLAIN = PlainText(TOKENIZER, ["<i>"])
PATTERN = re.compile("<<s>>|<s>|<i>")
TEXTS = st.lists(
    st.builds(
        Text,
        st.lists(st.sampled_from(["<s>", "<<s>>", "<i>", *"<s>i"]), max_size=3).map("".join),
        special=st.booleans(),
        placeholders=st.booleans(),
    ),
    max_size=6,
)


def one_by_one(texts: Sequence[Text], meant: Sequence[str]) -> list[str]:
    """Each text with marks, where each match is looked for in each text."""
    whole, borders = "".join(text.text for text in texts), [0]
    for text in texts:
        borders.append(borders[-1] + len(text.text))
    edits = []
    for found in PATTERN.finditer(whole):
        inside = [at for at in borders if found.start() < at < found.end()]
        edits += [(at, at, PLAIN._border) for at in inside]
        text = texts[max(n for n, at in enumerate(borders[:-1]) if at <= found.start())]
        if not inside and not text.special and not (text.placeholders and found[0] in meant):
            edits.append((found.start(), found.end(), PLAIN.mark(found[0])))
    marked = []
    for begin, end in pairwise(borders):
        piece, at = "", begin
        for start, stop, new in edits:
            if begin <= start and stop <= end and (start < stop or start > begin):
                piece, at = piece + whole[at:start] + new, stop
        marked.append(piece + whole[at:end])
    return marked


@given(TEXTS, st.sampled_from([(), ("<i>",)]))
def test_marks_are_those_of_trying_all_borders(texts: list[Text], meant: tuple[str, ...]) -> None:
    assert PLAIN._across(texts, PATTERN, meant) == one_by_one(texts, meant)

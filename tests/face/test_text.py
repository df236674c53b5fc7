"""Streaming of whole characters, and stop strings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from avl_runtime.prompts.text import StopMatcher, StreamDecoder, TextError
from face.support import MODEL, sentencepiece_tokenizer

TOKENIZERS = {
    "bytes": Tokenizer.from_file(str(MODEL / "tokenizer.json")),
    "prefix": sentencepiece_tokenizer(legacy=True),
    "metaspace": sentencepiece_tokenizer(legacy=False),
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    " aé日本👩‍🚀🇩🇪the\n", max_size=40
)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=120, deadline=None)
@given(text=TEXTS)
def test_pieces_add_up_and_hold_whole_characters(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    told = pieces(tokenizer, ids)
    assert "".join(told) == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in told)


@settings(max_examples=120, deadline=None)
@given(ids=st.lists(st.integers(0, 385), max_size=30))
def test_any_ids_of_a_byte_level_tokenizer(ids: list[int]) -> None:
    tokenizer = TOKENIZERS["bytes"]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_comes_as_soon_as_it_is_certain(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("the 日本 👩", add_special_tokens=False).ids
    told = pieces(tokenizer, ids)
    assert told[-1] == "" and told[0] != ""
    assert sum(piece == "" for piece in told[:-1]) <= 3 * 2 + 3  # bytes inside three characters


def test_unfinished_character_is_flushed() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.encode("é", add_special_tokens=False).ids
    assert len(ids) == 2
    assert pieces(tokenizer, ids[:1]) == ["", "\ufffd"]


@pytest.mark.parametrize("kind", ["prefix", "metaspace"])
def test_bytes_of_an_unfinished_character_take_nothing_back(kind: str) -> None:
    """A decoder with byte fallback makes U+FFFD of all bytes of a run that breaks off."""
    tokenizer = TOKENIZERS[kind]
    data = "ßé漢字".encode()
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]
    for count in range(len(ids) + 1):
        whole = data[:count].decode(errors="ignore")
        left = count - len(whole.encode())
        assert "".join(pieces(tokenizer, ids[:count])) == whole + "\ufffd" * left
    told = pieces(tokenizer, [*ids[:8], *tokenizer.encode("a", add_special_tokens=False).ids])
    assert "".join(told) == "ßé漢\ufffd a"


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abx", max_size=40),
    stops=st.lists(st.text("abx", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_stop_strings_over_any_division(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, shown, rest = StopMatcher(stops), "", text
    for cut in cuts * 40:
        shown += matcher.push(rest[:cut])
        rest = rest[cut:]
        assert text.startswith(shown)
    shown += matcher.flush()
    # The first stop string to be complete counts; of those complete at once the earliest begins.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert matcher.stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert not any(stop in shown for stop in stops)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["\n\n"])
    assert [matcher.push(piece) for piece in ("one\n", "two\n", "\nthree", "four")] == [
        "one",
        "\ntwo",
        "",
        "",
    ]
    assert matcher.stopped and matcher.flush() == ""


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(TextError, match="expected stop strings"):
        StopMatcher(["a", ""])

"""What users gave stands in messages short and on one line."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from avl_plugins.errors import quoted, shown

VALUES = st.one_of(
    st.text(max_size=300),
    st.text(max_size=9).map(lambda text: text * 5000),
    st.binary(max_size=300),
    st.lists(st.text(max_size=60), max_size=60),
    st.dictionaries(st.text(max_size=60), st.integers(), max_size=60),
    st.integers(0, 1000).map(lambda power: 7**power),
    st.floats(),
    st.none(),
    st.text("ab/\n", max_size=300).map(Path),
)


@given(value=VALUES, limit=st.integers(8, 120))
def test_any_value_is_short_printable_and_on_one_line(value: object, limit: int) -> None:
    for text in (shown(value, limit), quoted(value, limit)):
        assert len(text) <= limit
        assert text.isprintable()


def test_short_values_stand_as_they_are() -> None:
    assert shown("my cat.png") == shown(Path("my cat.png")) == "my cat.png"
    assert quoted("my cat.png") == quoted(Path("my cat.png")) == "'my cat.png'"
    assert quoted(["a", 1, None]) == "['a', 1, None]" and quoted(0.5) == "0.5"
    assert shown("a\nb\udcff") == "a\\nb\\udcff"


def test_of_long_values_both_ends_are_kept() -> None:
    text = "begin" + "x" * 10_000 + "end.png"
    assert shown(text).startswith("begin") and shown(text).endswith("end.png")
    assert quoted(text).startswith("'begin") and quoted(text).endswith("end.png'")
    assert "…" in shown(text) and "…" in quoted(text)

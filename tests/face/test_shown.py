"""What users gave stands in messages short and on one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_export import options as export_options
from avl_export.cli import default_out
from avl_export.plan.plan import make_plan
from avl_plugins.errors import AvlError, quoted, shown
from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.cli.output import check_picture
from avl_runtime.evaluate.cases import read_cases, task_cases
from avl_runtime.generate.options import Options
from avl_runtime.package.package import load_package
from avl_runtime.prompts.messages import conversation
from avl_runtime.prompts.text import StopMatcher
from avl_runtime.vision.load.images import Frame, load_image
from avl_runtime.vision.load.videos import load_video

VALUES = st.one_of(
    st.text(max_size=300),
    st.text(max_size=9).map(lambda text: text * 5000),
    st.binary(max_size=300),
    st.lists(st.text(max_size=60), max_size=60),
    st.dictionaries(st.text(max_size=60), st.integers(), max_size=60),
    st.integers(0, 9000).map(lambda power: 7**power),
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


def test_no_word_of_an_error_is_longer_than_200_characters() -> None:
    message = str(AvlError(f"{'/folder' * 90}/a.png: expected one, found {'x' * 5000}"))
    assert max(map(len, message.split())) == 200 and "a.png: expected one, found" in message
    assert str(AvlError("found 'a path of an ordinary length'")).endswith("length'")


FACES: tuple[Callable[[Any], object], ...] = (
    parse,
    lambda value: parse(f"avl:{value}"),
    lambda value: parse(f"avl:keep={value}"),
    lambda value: parse(f"avl:{value}=1,{value}=2"),
    lambda value: parse(f"random:of={value}"),
    lambda value: make_plan(export_options.Options(model=value, out=default_out(value))),
    load_package,
    LVLM.load,
    lambda value: LVLM.load(Path("none.avl"), backend=value),
    lambda value: check_picture(Path(value)),
    lambda value: check_picture(Path(f"{value}.png")),
    lambda value: read_cases(Path(value)),
    lambda value: list(task_cases(value, 1)),
    load_image,
    lambda value: load_image(Path(value)),
    lambda value: load_image(Frame(f"{value}.gif", 1)),
    lambda value: load_image(f"data:image/png;base64,{value}"),
    lambda value: load_image(f"data:image/png,{value}"),
    lambda value: load_image(f"http://127.0.0.1:1/{value}"),
    lambda value: load_image(f"{value}://a.png"),
    lambda value: load_image(f"file://{value}/a.png"),
    lambda value: load_image(value.encode()),
    load_video,
    lambda value: load_video(f"https://{value}"),
    lambda value: load_video(f"data:video/mp4;base64,{value}"),
    lambda value: load_video(value.encode()),
    lambda value: load_video([value]).pick([0]),
    lambda value: conversation(value.encode()),
    lambda value: conversation([{"type": value}]),
    lambda value: conversation([{"type": "image", value: value}]),
    lambda value: conversation([{"role": value, "content": "a"}]),
    lambda value: conversation([{"role": "user", "content": {value: value}}]),
    lambda value: conversation("a", images=value),
    lambda value: Options.of({value: 1}),
    lambda value: Options.of({"options": value}),
    lambda value: Options.of({"temperature": value}),
    lambda value: Options.of({"suppress_tokens": [value]}),
    lambda value: Options.of({"logit_bias": {value: value}}),
    lambda value: StopMatcher([value, b""]),
)


@pytest.mark.parametrize("face", FACES, ids=map(str, range(len(FACES))))
def test_public_faces_quote_little_of_long_values(face: Callable[[Any], object]) -> None:
    for joint in ("", " ", "/", "+", ",", "\n"):
        value = joint.join(f"w{number}" for number in range(10_000))
        with pytest.raises(AvlError) as caught:
            face(value)
        message = str(caught.value)
        assert "\n" not in message
        assert sum(value[at : at + 9] in message for at in range(len(value) - 8)) <= 200
        assert len(message) < 600

"""Prompts, images and conversations against transformers' processor of avl-tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from avl_runtime.package.package import Package, PackageError, Tokens
from avl_runtime.prompts.chat_template import ChatTemplate, TemplateError, Turn
from avl_runtime.prompts.processor import Processor, PromptError
from face.support import (
    CHATML_TEMPLATE,
    LLAVA_TEMPLATE,
    MODEL,
    manifest,
    sentencepiece_tokenizer,
    tiny_processor,
)
from face.test_preprocess import picture

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
OURS = tiny_processor()
THEIRS = AutoProcessor.from_pretrained(MODEL)
MULTILINE = "How many\nred squares? — 日本 é  USER: "


def message(role: str, text: str, images: int = 0) -> dict[str, Any]:
    pictures: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    return {"role": role, "content": [*pictures, {"type": "text", "text": text}]}


def their_ids(messages: list[dict[str, Any]], images: list[Any]) -> list[int]:
    text = THEIRS.apply_chat_template(messages, add_generation_prompt=True)
    ids = THEIRS(text=text, images=images or None)["input_ids"]
    return [int(token) for token in ids[0]]


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("prompt", ["Describe the image.", MULTILINE])
def test_one_turn_equals_transformers(prompt: str, images: int) -> None:
    modes = ("RGB", "RGBA", "L")
    pictures = [picture((90 + 70 * n, 300 - 60 * n), modes[n]) for n in range(images)]
    found = OURS.encode(prompt, pictures)
    wanted = their_ids([message("user", prompt, images)], pictures)
    assert found.input_ids.dtype == np.int64 and found.input_ids.tolist() == wanted
    assert found.image_mask.sum() == 144 * images
    assert (found.input_ids[found.image_mask] == 3).all()
    values = [media.inputs["pixel_values"] for media in found.media]
    assert [value.shape for value in values] == [(1, 3, 168, 168)] * images
    assert len({media.digest for media in found.media}) == images
    if images:
        theirs = THEIRS.image_processor(pictures, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(
            np.concatenate(values), np.stack(list(theirs)), rtol=0, atol=1e-6
        )


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_prompt_equals_transformers(prompt: str) -> None:
    if prompt.strip():
        assert OURS.encode(prompt).input_ids.tolist() == their_ids([message("user", prompt)], [])


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("turns", [1, 2])
def test_cached_and_new_tokens_are_the_whole_conversation(turns: int, ended: bool) -> None:
    cached: list[int] = []
    history: list[Turn] = []
    messages: list[dict[str, Any]] = []
    pictures: list[Any] = []
    for number in range(turns):
        new = [picture((200 + number, 180))] if number == 0 else []
        prompt = OURS.continue_chat(history, f"How many red squares? {number}", new)
        cached += prompt.input_ids.tolist()
        # What the model says begins with a space; its text is handed on without.
        said = " a large red circle, top left" + ("</s>" if ended else "")
        cached += OURS.tokenizer.encode(said, add_special_tokens=False).ids
        history.append(
            Turn(
                f"How many red squares? {number}",
                ("image",) * len(new),
                "a large red circle, top left",
                ended,
            )
        )
        messages.append(message("user", f"How many red squares? {number}", len(new)))
        messages.append(message("assistant", "a large red circle, top left"))
        pictures += new
    late = [picture((100, 100)), picture((400, 170), "L")]
    added = OURS.continue_chat(history, "And now?", late)
    messages.append(message("user", "And now?", 2))
    assert cached + added.input_ids.tolist() == their_ids(messages, [*pictures, *late])
    assert added.image_mask.sum() == 288 and len(added.media) == 2


def test_conversation_under_llavas_template_and_tokenizer() -> None:
    for legacy in (True, False):
        tokenizer = sentencepiece_tokenizer(legacy=legacy)
        ours = Processor(manifest(LLAVA_TEMPLATE, Tokens(1, (2,), None)), tokenizer)
        text = "USER: <image>\nthe one? ASSISTANT:".replace("<image>", "<image>" * 144)
        first = ours.encode("the one?", [picture((50, 50))])
        assert first.input_ids.tolist() == tokenizer.encode(text).ids
        # This template writes no end token; what follows a reply is encoded as behind it.
        history = [Turn("the one?", ("image",), "a nose", False)]
        whole = tokenizer.encode(text + " a nose USER: the other? ASSISTANT:").ids
        cached = tokenizer.encode(text + " a nose").ids
        assert cached + ours.continue_chat(history, "the other?").input_ids.tolist() == whole
        history = [Turn("the one?", ("image",), "a nose", True)]
        added = ours.continue_chat(history, "the other?").input_ids.tolist()
        behind = tokenizer.encode("</s> USER: the other? ASSISTANT:", add_special_tokens=False)
        assert added == behind.ids[1:]


@pytest.mark.parametrize("template", [LLAVA_TEMPLATE, "tiny"])
def test_rendering_equals_transformers(template: str) -> None:
    source = THEIRS.chat_template if template == "tiny" else template
    ours = ChatTemplate(source, TOKENS, {"image": "<image>"})
    history = [Turn("one", ("image", "image"), "first", True), Turn("two", (), "second", False)]
    messages = [message("user", "one", 2), message("assistant", "first"), message("user", "two")]
    messages += [message("assistant", "second"), message("user", "three", 1)]
    (wanted,), _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **TOKENS
    )
    said = [one for turn in history for one in (turn.said, turn.answered)]
    assert ours.render([*said, Turn("three", ("image",), "", False).said]) == wanted


def test_templates_of_plain_strings_and_their_own_bos() -> None:
    ours = tiny_processor(CHATML_TEMPLATE)
    ids = ours.encode("the one?", [picture((50, 50))]).input_ids
    text = "<s><|im_start|>user\n" + "<image>" * 144 + "\nthe one?</s>\n<|im_start|>assistant\n"
    assert ids.tolist() == ours.tokenizer.encode(text, add_special_tokens=False).ids
    assert (ids == 1).sum() == 1
    added = ours.continue_chat([Turn("the one?", ("image",), "it", True)], "why?").input_ids
    tail = "\n<|im_start|>user\nwhy?</s>\n<|im_start|>assistant\n"
    assert added.tolist() == ours.tokenizer.encode(tail, add_special_tokens=False).ids


def test_without_a_template_the_prompt_is_raw() -> None:
    ours = tiny_processor(None)

    def ids(text: str) -> list[int]:
        return list(ours.tokenizer.encode(text).ids)

    image = picture((50, 50))
    shown = "<image>" * 144
    assert ours.encode("count", [image]).input_ids.tolist() == ids(f"{shown}\ncount")
    placed = ours.encode("USER: <image> count ASSISTANT:", [image]).input_ids.tolist()
    assert placed == ids(f"USER: {shown} count ASSISTANT:")
    assert ours.encode("<s>count").input_ids.tolist() == ids("count")
    with pytest.raises(PromptError, match="expected 1 image placeholders"):
        ours.encode("<image><image>", [image])
    with pytest.raises(PromptError, match="chat template"):
        ours.continue_chat([Turn("count", ("image",), "three", True)], "why?")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_prompts_that_are_refused(prompt: str) -> None:
    for refused in (
        lambda: OURS.encode(prompt),
        lambda: OURS.continue_chat([Turn("a", (), "b", True)], prompt),
    ):
        with pytest.raises(PromptError, match="expected a prompt") as caught:
            refused()
        assert "\n" not in str(caught.value)


REWRITING = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% elif loop.last %}"
    "{{ m.content }}{% endif %}{% endfor %}"
)
COUNTING = "{{ messages | length }}" + CHATML_TEMPLATE


@pytest.mark.parametrize("template", [REWRITING, COUNTING])
def test_templates_that_rewrite_earlier_turns_are_refused(template: str) -> None:
    ours = tiny_processor(template)
    ours.encode("hello")
    with pytest.raises(TemplateError, match="rewrites") as caught:
        ours.continue_chat([Turn("hello", (), "yes", True)], "why?")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ raise_exception('no\nway') }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_templates_that_fail_or_reach_out(template: str) -> None:
    with pytest.raises(TemplateError) as caught:
        tiny_processor(template).encode("hello")
    assert "\n" not in str(caught.value)


def test_template_without_images() -> None:
    ours = tiny_processor("{% for m in messages %}{{ m.content[0].text }}{% endfor %}")
    with pytest.raises(TemplateError, match="image placeholders"):
        ours.encode("hello", [picture((40, 40))])


def test_damaged_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(PromptError, match="expected a tokenizer"):
        Processor.from_package(Package(tmp_path, manifest(tokenizer=b"{}")))
    with pytest.raises(PackageError, match="bytes"):
        Processor.from_package(Package(tmp_path, manifest(tokenizer=b"{} ")))
    with pytest.raises(PromptError, match="token 9999"):
        Processor(
            manifest(image_token=9999),
            Tokenizer.from_file(str(MODEL / "tokenizer.json")),
        )


@pytest.mark.parametrize("images", ["cat.png", b"cat", Path("cat.png"), picture((9, 9))])
def test_one_image_is_no_list(images: Any) -> None:
    with pytest.raises(PromptError, match="list of images"):
        OURS.encode("What?", images)


def test_decode_leaves_special_tokens_out() -> None:
    ids = OURS.tokenizer.encode("the red circle</s>").ids
    assert ids[0] == 1 and ids[-1] == 2
    assert OURS.decode(ids) == "the red circle"


def test_view_is_what_the_model_sees() -> None:
    view = OURS.view(picture((400, 200)))
    assert view.size == (168, 168) and view.mode == "RGB"

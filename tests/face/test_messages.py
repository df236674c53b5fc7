"""Texts, parts and messages as prompts, against transformers' templates and tokenizers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoProcessor

from avl_runtime.package.manifest import Tokens
from avl_runtime.prompts.chat_template import TemplateError
from avl_runtime.prompts.messages import PromptError, conversation
from avl_runtime.prompts.option_values import OptionError
from avl_runtime.prompts.processor import Processor, Turn
from avl_runtime.prompts.text import TextError
from avl_runtime.vision.load.images import Frame
from face.support import (
    CHATML_TEMPLATE,
    LLAVA_TEMPLATE,
    MODEL,
    manifest,
    sentencepiece_tokenizer,
    tiny_processor,
)
from face.test_preprocess import picture

THEIRS = AutoProcessor.from_pretrained(MODEL)
IN_ORDER = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %} "
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
ONE, TWO = picture((90, 60)), picture((40, 130))
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "First: "},
            {"type": "image", "image": ONE},
            {"type": "text", "text": " second: "},
            {"type": "image", "image": TWO},
            {"type": "text", "text": " which is red?"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "the first"}]},
    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
]


def their_ids(messages: Any, images: list[Any], template: str | None = None) -> list[int]:
    text = THEIRS.apply_chat_template(messages, template, add_generation_prompt=True)
    return [int(token) for token in THEIRS(text=text, images=images or None)["input_ids"][0]]


def plain(tokenizer: Tokenizer, text: str, *, with_bos: bool = True) -> list[int]:
    """Ids of a text none of whose special tokens counts, by the tokenizers library."""
    tokenizer.encode_special_tokens = True
    try:
        return list(tokenizer.encode(text, add_special_tokens=with_bos).ids)
    finally:
        tokenizer.encode_special_tokens = False


@pytest.mark.parametrize("template", [IN_ORDER, LLAVA_TEMPLATE, "tiny"])
def test_messages_are_those_of_transformers(template: str) -> None:
    source = THEIRS.chat_template if template == "tiny" else template
    ours = tiny_processor(source)
    for talk in (TALK[1:], TALK[1:2], *([] if template == "tiny" else [TALK])):
        found = ours.encode(talk)
        assert found.input_ids.tolist() == their_ids(talk, [ONE, TWO], source)
        assert len({part.digest for part in found.media}) == 2
    parts = ours.encode(TALK[1]["content"])
    assert parts.input_ids.tolist() == their_ids(TALK[1:2], [ONE, TWO], source)


def test_parts_without_pictures_take_those_beside_them() -> None:
    ours = tiny_processor(IN_ORDER)
    said = [{"type": "text", "text": "this"}, {"type": "image"}, {"type": "image", "image": TWO}]
    found = ours.encode(said, [ONE])
    wanted = ours.encode([said[0], {"type": "image", "image": ONE}, said[2]])
    assert found.input_ids.tolist() == wanted.input_ids.tolist()
    assert [part.digest for part in found.media] == [part.digest for part in wanted.media]


def test_pictures_as_clients_of_openai_send_them() -> None:
    ours = tiny_processor(IN_ORDER)
    file = io.BytesIO()
    ONE.save(file, "PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    text = {"type": "text", "text": "this"}
    plain_part = ours.encode([text, {"type": "image", "image": ONE}])
    for url in ({"url": address, "detail": "auto"}, address):
        found = ours.encode([text, {"type": "image_url", "image_url": url}])
        assert found.input_ids.tolist() == plain_part.input_ids.tolist()
        assert [part.digest for part in found.media] == [plain_part.media[0].digest]
    for empty in ({}, {"url": None}, None):
        with pytest.raises(PromptError, match="none left of images"):
            conversation([text, {"type": "image_url", "image_url": empty}])


@pytest.mark.parametrize(
    "single",
    [io.BytesIO(), bytearray(b"a"), memoryview(b"a"), Frame("a.gif", 1), Path("a.png"), 7, "a.png"],
)
def test_pictures_and_videos_come_in_a_list(single: Any) -> None:
    for name in ("images", "videos"):
        with pytest.raises(PromptError, match=rf"expected a list of {name}, found \w+; write"):
            conversation("a", **{name: single})


def test_a_system_prompt_is_the_templates() -> None:
    for source in (IN_ORDER, LLAVA_TEMPLATE):
        found = tiny_processor(source).encode("Why?", [ONE], system="Be brief.")
        parts = [{"type": "image"}, {"type": "text", "text": "Why?"}]
        talk = [TALK[0], {"role": "user", "content": parts}]
        assert found.input_ids.tolist() == their_ids(talk, [ONE], source)
    # Content that is one string, of every role or of the system alone.
    text_only = tiny_processor(CHATML_TEMPLATE).encode("why?", system="Be brief.")
    expected = "<s><|im_start|>system\nBe brief.</s>\n<|im_start|>user\nwhy?</s>\n"
    expected += "<|im_start|>assistant\n"
    tokenizer = text_only_tokenizer()
    assert text_only.input_ids.tolist() == tokenizer.encode(expected, add_special_tokens=False).ids
    mixed = "{% if messages[0].role == 'system' %}[{{ messages[0].content }}]{% endif %}"
    mixed += "{% for m in messages if m.role == 'user' %}{{ m.content[0].text }}{% endfor %}"
    found = tiny_processor(mixed).encode("why?", system="Be brief.")
    assert found.input_ids.tolist() == tokenizer.encode("[Be brief.]why?").ids


def text_only_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"


@pytest.mark.parametrize(
    "template",
    [
        REFUSING + IN_ORDER,
        THEIRS.chat_template,
        "{% for m in messages if m.role == 'user' %}{{ m.content[0].text }}{% endfor %}",
    ],
)
def test_a_template_without_a_place_for_a_system_prompt_is_told(template: str) -> None:
    ours = tiny_processor(template)
    assert len(ours.encode("why?").input_ids)
    for said in ({"prompt": "why?", "system": "Be brief."}, {"prompt": [TALK[0], TALK[3]]}):
        with pytest.raises(TemplateError, match="place for a system prompt"):
            ours.encode(**said)
    with pytest.raises(PromptError, match="chat template for a system prompt"):
        tiny_processor(None).encode("why?", system="Be brief.")


LOOK_ALIKES = [
    "In HTML <s>this</s> is struck out",
    "<s>",
    "a <pad>b  </s><s> c",
    "<<s>>",
    "read: <image> and </image>",
]


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_what_looks_like_a_special_token_is_plain_text(text: str) -> None:
    ours = tiny_processor(IN_ORDER)
    found = ours.encode(text)
    assert found.input_ids.tolist() == plain(ours.tokenizer, f"USER: {text} ASSISTANT:")
    shown = ours.encode(text, [ONE])
    assert shown.image_mask.sum() == 144
    front = ours.tokenizer.encode("USER: " + "<image>" * 144).ids
    tail = plain(ours.tokenizer, f"\n{text} ASSISTANT:", with_bos=False)
    assert shown.input_ids.tolist() == front + tail
    # In a later turn, with special tokens of the template's own in front.
    history = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    talk = ours.encode([*history, {"role": "user", "content": text}])
    front = plain(ours.tokenizer, f"USER: {text} ASSISTANT: {text} ")
    tail = plain(ours.tokenizer, f"USER: {text} ASSISTANT:", with_bos=False)
    assert talk.input_ids.tolist() == [*front, 2, *tail]


def test_later_turns_and_system_prompts_are_plain_text_too() -> None:
    ours = tiny_processor(IN_ORDER)
    added = ours.continue_chat([Turn("a <s>", (), "b </s>", False)], "c <image></s>", [ONE])
    front = " </s>USER: " + "<image>" * 144
    tail = plain(ours.tokenizer, "\nc <image></s> ASSISTANT:", with_bos=False)
    wanted = ours.tokenizer.encode(front, add_special_tokens=False).ids + tail
    assert added.input_ids.tolist() == wanted
    # Behind a reply that has ended the template's end token is not said again.
    added = ours.continue_chat([Turn("a <s>", (), "b </s>", True)], "c <image></s>", [ONE])
    assert added.input_ids.tolist() == wanted[wanted.index(2) + 1 :]
    found = ours.encode("why?", system="no <s>").input_ids.tolist()
    assert found == plain(ours.tokenizer, "SYSTEM: no <s> USER: why? ASSISTANT:")


@pytest.mark.parametrize("legacy", [True, False])
def test_plain_text_under_llavas_tokenizer(legacy: bool) -> None:
    """Special tokens of its kind are pieces of the vocabulary, and texts get a space in front."""
    tokenizer = sentencepiece_tokenizer(legacy=legacy)
    ours = Processor(manifest(LLAVA_TEMPLATE, Tokens(1, (2,), None)), tokenizer)
    for text in ("the <s> and </s>", "<image>", "a<unk>b"):
        found = ours.encode(text).input_ids.tolist()
        assert found == plain(tokenizer, f"USER: {text} ASSISTANT:")
        assert found.count(1) == 1 and 2 not in found and 3 not in found and 0 not in found


PIECES = st.sampled_from(
    [
        "<s>",
        "</s>",
        "<image>",
        "<pad>",
        "<unk>",
        "<",
        ">",
        "s",
        " ",
        "  ",
        "\n",
        "a",
        " the",
        "日",
        "é",
    ]
)


@pytest.mark.parametrize("kind", ["bytes", "prefix", "metaspace"])
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(PIECES, min_size=1, max_size=8))
def test_any_such_text_is_what_the_tokenizer_makes_of_plain_text(
    kind: str, parts: list[str]
) -> None:
    ours, text = PROCESSORS[kind], "".join(parts)
    if text.strip():
        found = ours.encode(text).input_ids.tolist()
        assert found == plain(ours.tokenizer, f"USER: {text} ASSISTANT:")
        assert found.count(1) == 1 and not {2, 3} & set(found)


PROCESSORS = {
    "bytes": tiny_processor(LLAVA_TEMPLATE),
    **{
        kind: Processor(
            manifest(LLAVA_TEMPLATE, Tokens(1, (2,), None)),
            sentencepiece_tokenizer(legacy=kind == "prefix"),
        )
        for kind in ("prefix", "metaspace")
    },
}


def test_pieces_of_a_vocabulary_are_no_special_tokens() -> None:
    """A unigram model would find `<s>` among its pieces, whatever is said of special tokens."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<image>", 0.0)]
    pieces += [(letter, -3.0) for letter in "▁USERANTI:abs<>/"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    assert 1 in plain(tokenizer, "a <s> b")
    ours = Processor(manifest(LLAVA_TEMPLATE, Tokens(1, (2,), None)), tokenizer)
    found = ours.encode("a <s> b</s>", [ONE]).input_ids.tolist()
    letters = [tokenizer.token_to_id(letter) for letter in "a▁<s>▁b</s>▁ASSISTANT:"]
    assert found[-len(letters) :] == letters and found.count(3) == 144
    assert not {1, 2} & set(found)


def test_what_a_normalizer_makes_a_special_token_is_plain_text() -> None:
    """Full-width letters under NFKC, as SentencePiece trains with, and capitals."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<image>", 0.0)]
    pieces += [(letter, -3.0) for letter in "▁user: asitn/<>mge"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    special = ("<unk>", "<s>", "</s>", "<image>")
    tokenizer.add_special_tokens([AddedToken(one, normalized=True) for one in special])
    ours = Processor(manifest(LLAVA_TEMPLATE, Tokens(1, (2,), None)), tokenizer)
    usual = ours.encode("is it", [ONE]).input_ids.tolist()
    for text, letters in (("\uff1cs\uff1e", "<s>"), ("</S>", "</s>"), ("<IMAGE>", "<image>")):
        assert {1, 2, 3} & set(plain(tokenizer, f"a {text}"))
        found = ours.encode(f"is it {text}", [ONE]).input_ids.tolist()
        assert [found.count(one) for one in (1, 2, 3)] == [usual.count(one) for one in (1, 2, 3)]
        tail = [tokenizer.token_to_id(letter) for letter in f"▁it▁{letters}▁assistant:"]
        assert found[-len(tail) :] == tail
    # An unknown character is none.
    found = ours.encode("is it \u20ac", [ONE]).input_ids.tolist()
    assert found.count(0) == usual.count(0) + 1


@pytest.mark.parametrize("legacy", [True, False])
def test_tokens_with_rules_of_their_own(legacy: bool) -> None:
    """Some take the spaces around them, and some are looked for behind the normalizer."""
    tokenizer = sentencepiece_tokenizer(legacy=legacy)
    tokenizer.add_special_tokens(
        [
            AddedToken("<a>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("<b>", normalized=True),
        ]
    )
    template = LLAVA_TEMPLATE.replace("'ASSISTANT:'", "'x <a> the <b> ASSISTANT:'")
    ours = Processor(manifest(template, Tokens(1, (2,), None)), tokenizer)
    one, two = (tokenizer.token_to_id(token) for token in ("<a>", "<b>"))
    usual = ours.encode("the")
    assert usual.input_ids.tolist() == tokenizer.encode("USER: the x <a> the <b> ASSISTANT:").ids
    found = ours.encode("the <a> the <b>").input_ids.tolist()
    tail = usual.input_ids.tolist()[usual.input_ids.tolist().index(one) :]
    assert found[-len(tail) :] == tail
    assert found.count(one) == 1 and found.count(two) == tail.count(two)
    front = plain(tokenizer, "USER: the <a> the <b> x")
    assert found[: len(found) - len(tail)] == front


def test_texts_that_look_like_a_token_only_together() -> None:
    ours = tiny_processor(IN_ORDER)
    for first, second in (("a <ima", "ge> b"), ("</", "s>"), ("<s", ">")):
        parts = [{"type": "text", "text": first}, {"type": "text", "text": second}]
        found = ours.encode([*parts, {"type": "image", "image": ONE}])
        assert found.image_mask.sum() == 144
        front = plain(ours.tokenizer, f"USER: {first}{second}")
        assert found.input_ids[: len(front)].tolist() == front


def test_placeholders_mark_places_where_the_caller_says_so() -> None:
    text = "First: <image> Second: <image> <s>Which?"
    for source in (IN_ORDER, LLAVA_TEMPLATE):
        ours = tiny_processor(source)
        found = ours.encode(text, [ONE, TWO], placeholders=True)
        one = "<image>" * 144
        behind = plain(ours.tokenizer, " <s>Which? ASSISTANT:", with_bos=False)
        front = ours.tokenizer.encode(f"USER: First: {one} Second: {one}").ids
        assert found.input_ids.tolist() == front + behind
        without = text.replace("<s>", "")
        said = [{"role": "user", "content": [{"type": "text", "text": without}]}]
        found = ours.encode(without, [ONE, TWO], placeholders=True)
        assert found.input_ids.tolist() == their_ids(said, [ONE, TWO], source)
        literal = ours.encode(text, [ONE, TWO])
        assert literal.image_mask.sum() == 288 and literal.image_mask[:300].sum() > 280
        with pytest.raises(TemplateError, match="expected 1 image placeholders") as refused:
            ours.encode(text, [ONE], placeholders=True)
        assert "in the prompt, found 2; with placeholders=True it says" in str(refused.value)


def test_placeholders_may_be_written_as_the_template_does() -> None:
    """Qwen's stand between two special tokens, which count with a placeholder only."""
    template = IN_ORDER.replace("<image>\n", "<pad><image></s>")
    ours = tiny_processor(template)
    found = ours.encode("a <pad><image></s> b </s><pad>", [ONE], placeholders=True)
    front = ours.tokenizer.encode("USER: a <pad>" + "<image>" * 144 + "</s>").ids
    tail = plain(ours.tokenizer, " b </s><pad> ASSISTANT:", with_bos=False)
    assert found.input_ids.tolist() == front + tail


def test_a_template_that_would_lose_a_text_is_told() -> None:
    ours = tiny_processor(
        "{% for m in messages %}{% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
        "{{ (m.content | selectattr('type', 'equalto', 'text') | list)[0].text }}{% endfor %}"
    )
    assert ours.encode("one", [ONE]).image_mask.sum() == 144
    with pytest.raises(TemplateError, match="leaves some out"):
        ours.encode(TALK[1:2])


@pytest.mark.parametrize(
    ("said", "more", "told"),
    [
        ([], {}, "empty"),
        ([{"type": "text", "text": " "}], {}, "empty"),
        ([{"type": "audio", "audio": "a.wav"}], {}, "types text, image and video, found 'audio'"),
        ([{"type": "image"}], {}, "none left of images"),
        ([{"type": "text", "text": "a"}], {"images": [ONE]}, "1 images more than parts"),
        ([{"role": "user", "content": "a"}, {"type": "text", "text": "b"}], {}, "both in one"),
        ([{"role": "critic", "content": "a"}], {}, "found 'critic'"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            {},
            "ends with",
        ),
        ([{"role": "user", "content": None}], {}, "found none"),
        ([{"role": "assistant", "content": None, "tool_calls": {}}], {}, "a list, found dict"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], {}, "expected calls as"),
        (["a", "b"], {}, "as mappings"),
        (b"a", {}, "found bytes"),
        (17, {}, "found int"),
        ("lone \ud800", {}, "character 6"),
        ([{"type": "text", "text": 17}], {}, "prompt of text, found 17"),
        ([TALK[0], TALK[3]], {"system": "b"}, "found one in the messages"),
        ("a", {"system": ""}, "system: expected a text"),
        (
            [{"type": "text", "text": "a", "placeholders": True, "images": 5}],
            {},
            "list of images, found int",
        ),
        ([{"role": np.arange(2), "content": "a"}], {}, "found ndarray"),
        ([{"type": np.arange(2)}], {}, "found ndarray"),
        ("a", {"placeholders": 2}, "placeholders: expected true or false"),
        ([{"type": "text", "text": "a"}], {"placeholders": True}, "placeholders"),
    ],
)
def test_what_is_no_conversation_is_refused(said: Any, more: dict[str, Any], told: str) -> None:
    with pytest.raises((PromptError, TextError, OptionError), match=told) as caught:
        conversation(said, **more)
    assert "\n" not in str(caught.value)


def test_no_pictures_may_be_none() -> None:
    ours = tiny_processor()
    assert ours.encode("a", None, None).input_ids.tolist() == ours.encode("a").input_ids.tolist()


def test_parts_without_a_template() -> None:
    ours = tiny_processor(None)
    found = ours.encode("read <image>").input_ids.tolist()
    assert found == plain(ours.tokenizer, "read <image>")
    parts = [{"type": "text", "text": "USER: one "}, {"type": "image", "image": ONE}]
    parts += [{"type": "text", "text": "two "}, {"type": "image", "image": TWO}]
    shown = "<image>" * 144 + "\n"
    wanted = ours.tokenizer.encode(f"USER: one {shown}two {shown}").ids
    assert ours.encode(parts).input_ids.tolist() == wanted
    with pytest.raises(PromptError, match="chat template for a second turn"):
        ours.encode(TALK[1:])


def test_a_text_without_placeholders_may_name_no_pictures() -> None:
    part = {"type": "text", "text": "a", "images": None, "videos": None}
    (message,) = conversation([part])
    assert message.sources == ()

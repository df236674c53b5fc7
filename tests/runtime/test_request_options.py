"""What requests may ask for, on a loaded model: seeds, log probabilities, None, wrong values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avl_plugins.errors import AvlError
from avl_runtime import LVLM, Options
from avl_runtime.tasks import samples

(ONE,) = samples("caption", "held-out", 1)


def drawn(tiny: LVLM, **options: object) -> tuple[tuple[int, ...], int | None]:
    result = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=24, **options)
    return result.token_ids, result.stats.seed


def test_draws_without_a_seed_differ_and_their_seed_repeats_them(tiny: LVLM) -> None:
    found = {drawn(tiny, temperature=3.0) for _ in range(4)}
    assert len({tokens for tokens, _ in found}) > 1
    for tokens, seed in found:
        assert seed is not None
        assert drawn(tiny, temperature=3.0, seed=seed) == (tokens, seed)


def test_rows_of_a_batch_draw_by_themselves(tiny: LVLM) -> None:
    asked = [ONE.prompt] * 3, [[ONE.image]] * 3
    results = tiny.generate_batch(*asked, max_new_tokens=24, temperature=3.0)
    assert len({one.stats.seed for one in results}) == 3
    assert len({one.token_ids for one in results}) > 1
    same = tiny.generate_batch(*asked, max_new_tokens=24, temperature=3.0, seed=5)
    assert len({one.token_ids for one in same}) == 1
    assert same[0].token_ids == drawn(tiny, temperature=3.0, seed=5)[0]


def test_a_greedy_reply_has_no_seed_but_the_one_asked_for(tiny: LVLM) -> None:
    assert drawn(tiny)[1] is None and drawn(tiny, seed=3)[1] == 3


def test_log_probabilities_are_those_of_the_logits(tiny: LVLM) -> None:
    result = tiny.generate(
        ONE.prompt,
        [ONE.image],
        max_new_tokens=8,
        logprobs=3,
        return_logits=True,
        temperature=2.0,
        seed=1,
        repetition_penalty=1.3,
    )
    assert result.logprobs is not None and result.logits is not None
    assert tuple(one.token_id for one in result.logprobs) == result.token_ids
    for one, logits in zip(result.logprobs, result.logits.astype(np.float64), strict=True):
        wanted = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert one.logprob == pytest.approx(wanted[one.token_id], abs=1e-9)
        assert [top.token_id for top in one.top] == np.argsort(-wanted, kind="stable")[:3].tolist()
        assert [top.logprob for top in one.top] == sorted(
            (top.logprob for top in one.top), reverse=True
        )
        for told in (one, *one.top):
            assert told.text == tiny.processor.tokenizer.decode([told.token_id], False)
    assert tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=2).logprobs is None
    (bare, *_) = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=2, logprobs=0).logprobs or ()
    assert bare.top == () and bare.logprob <= 0


def test_none_stands_for_nothing_and_for_the_default(tiny: LVLM) -> None:
    usual = tiny.generate("What?", max_new_tokens=6)
    none = {name: None for name in Options.__dataclass_fields__ if name != "max_new_tokens"}
    for found in (
        tiny.generate("What?", images=None, videos=None, max_new_tokens=6, **none),
        tiny.generate("What?", options=Options(max_new_tokens=6)),
        tiny.generate("What?", options=Options(max_new_tokens=2), max_new_tokens=6),
        tiny.chat().send("What?", images=None, videos=None, max_new_tokens=6),
        tiny.generate_batch(["What?"], max_new_tokens=6)[0],
        tiny.generate_batch(["What?"], images=[None], videos=None, max_new_tokens=6)[0],
    ):
        assert found.token_ids == usual.token_ids
    assert len(tiny.generate("What?", max_new_tokens=None).token_ids) <= 64


def test_one_text_to_stop_at(tiny: LVLM) -> None:
    text = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=12).text
    cut = text.split()[1]
    for stop in (cut, [cut]):
        result = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=12, stop=stop)
        assert result.finish_reason == "stop" and result.text == text[: text.index(cut)]


def test_a_bias_and_bans_change_the_reply(tiny: LVLM) -> None:
    first = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=4).token_ids[0]
    for options in (
        {"logit_bias": {first: -100}},
        {"suppress_tokens": [first]},
        {"begin_suppress_tokens": [first]},
        {"bad_words_ids": [[first]]},
    ):
        asked = dict(options, max_new_tokens=4, logprobs=0)
        assert tiny.generate(ONE.prompt, [ONE.image], **asked).token_ids[0] != first
    end = tiny.package.manifest.tokens.eos[0]
    usual = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=60).token_ids
    longer = tiny.generate(
        ONE.prompt, [ONE.image], max_new_tokens=60, min_new_tokens=len(usual) + 2
    ).token_ids
    assert usual[-1] == end and end not in longer[: len(usual) + 1]


def test_a_greedy_chat_penalizes_all_turns(tiny: LVLM) -> None:
    """The penalty's prompt is the whole conversation, as where it is read anew each turn."""
    chat = tiny.chat()
    first = chat.send("What?", max_new_tokens=5)
    banned = set(first.token_ids) - set(tiny.package.manifest.tokens.eos)
    second = chat.send("Why?", max_new_tokens=5, no_repeat_ngram_size=1)
    assert banned and not banned & set(second.token_ids)


BIG = 1 << 40
WRONG: list[tuple[Callable[[LVLM], object], str]] = [
    (lambda m: m.generate("What?", max_new_tokens=4.5), "max_new_tokens"),
    (lambda m: m.generate("What?", max_tokens=4), "did you mean max_new_tokens"),
    (lambda m: m.generate("What?", suppress_tokens=[BIG]), "suppress_tokens"),
    (lambda m: m.generate("What?", logit_bias={BIG: 1.0}), "logit_bias"),
    (lambda m: m.generate("What?", options={}), "Options"),
    (lambda m: m.stream("What?", temperature=True), "temperature"),
    (lambda m: m.chat().send("What?", top_q=1), "did you mean top_"),
    (lambda m: m.generate(None), "prompt"),  # type: ignore[arg-type]
    (lambda m: m.generate(b"What?"), "prompt"),  # type: ignore[arg-type]
    (lambda m: m.generate("d\udce9crire"), "UTF-8"),
    (lambda m: m.chat().send("\ud800"), "UTF-8"),
    (lambda m: m.generate_batch(["ok", "\udfff"]), "UTF-8"),
    (lambda m: m.generate_batch("What?"), "list of prompts"),
    (lambda m: m.generate_batch(None), "list of prompts"),
    (lambda m: m.generate_batch(["What?"], images=5), "images: expected a list for each prompt"),
    (lambda m: m.generate_batch(["What?"], videos="a.mp4"), "videos: expected a list for each"),
    (lambda m: m.generate("What?", policy=5), "expected a policy"),
    (lambda m: m.chat(policy=5), "expected a policy"),
    (lambda m: m.chat().set_policy(None), "expected a policy"),  # type: ignore[arg-type]
    (lambda m: m.chat().set_policy(["avl"]), "expected a policy"),  # type: ignore[arg-type]
    (lambda m: m.chat(messages=np.arange(2)), "expected a prompt as a text"),  # type: ignore[arg-type]
    (lambda m: m.generate("What?", placeholders="no"), "placeholders: expected true or false"),
    (lambda m: m.generate("What?", return_logits=np.arange(2)), "return_logits: expected true"),
    (lambda m: m.chat().send("What?", return_placements=2), "return_placements: expected true"),
    (lambda m: m.generate("What?", suppress_tokens=np.array(3)), "a list of token ids"),
]


@pytest.mark.parametrize(("ask", "part"), WRONG)
def test_wrong_requests_are_one_line(tiny: LVLM, ask: Callable[[LVLM], object], part: str) -> None:
    with pytest.raises(AvlError) as caught:
        ask(tiny)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two"])
def test_threads_are_a_whole_number_of_at_least_one(tiny_package: Path, threads: object) -> None:
    with pytest.raises(AvlError, match="threads: expected a whole number of at least 1"):
        LVLM.load(tiny_package, threads=threads)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1025, 10**10, 10**4500], ids=["1025", "10**10", "long"])
def test_threads_have_an_end(tiny_package: Path, threads: int) -> None:
    with pytest.raises(AvlError, match="threads: expected a whole number of at most 1024"):
        LVLM.load(tiny_package, threads=threads)


@pytest.mark.parametrize(
    "value", [None, 5, b"tiny.avl", np.arange(2), ["tiny.avl"], "\ud800", "\0"]
)
@pytest.mark.parametrize("name", ["folder", "backend", "park", "verify", "policy"])
def test_what_cannot_be_loaded_is_one_line(tiny_package: Path, name: str, value: object) -> None:
    if name == "policy" and value is None:
        return  # the package's default
    with pytest.raises(AvlError) as caught:
        LVLM.load(**{"folder": tiny_package, "backend": "ort-cpu", name: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_extreme_values_are_taken_without_a_warning(tiny: LVLM) -> None:
    """The least and the largest numbers that the options allow are no NaN on their way."""
    greedy = tiny.generate("What?", max_new_tokens=4).token_ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in (
            {"temperature": 5e-324},
            {"temperature": 1e-300, "top_p": 0.5},
            {"repetition_penalty": 1e308, "temperature": 0.5},
            {"repetition_penalty": 5e-324, "temperature": 1e308},
            {"logit_bias": {5: 1e308}, "repetition_penalty": 1e-9, "temperature": 1.0},
            {"logit_bias": {5: -1e308, 6: 1e308}},
        ):
            found = tiny.generate("What?", max_new_tokens=4, **options).token_ids
            if "temperature" in options and len(options) == 1:
                assert found == greedy
            if "logit_bias" in options:
                assert found[0] == (6 if len(options) == 1 else 5)

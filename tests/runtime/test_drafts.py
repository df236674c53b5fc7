"""Drafts change no token: prompt lookup against brute force, dense replies, and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.errors import PolicyError
from avl_plugins.graph_io import LOGITS, LOGITS_FROM
from avl_plugins.logits import Logits
from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.generate.drafts import LENGTHS, LONGEST, NO_TEXT, SHORTEST, PromptLookup
from avl_runtime.generate.prefill import finished
from avl_runtime.package.package import Package
from avl_runtime.prompts.option_values import OptionError
from avl_runtime.requests import Scheduler
from avl_runtime.tasks import sample
from support.random_llava import draw_images, write_checkpoint
from support.reference import encode, load_reference

tokens_of_few = st.lists(st.sampled_from([NO_TEXT, 0, 1, 2]), max_size=40)


def by_hand(tokens: list[int], most: int) -> list[int]:
    """What shall be drafted, found by looking everywhere."""
    for size in range(LONGEST, SHORTEST - 1, -1):
        tail = tokens[-size:]
        if len(tail) < size or NO_TEXT in tail:
            continue
        for place in range(len(tokens) - 1, size - 1, -1):
            if tokens[place - size : place] == tail:
                known = list(tokens)
                for at in range(place, place + most):
                    if known[at] == NO_TEXT:
                        break
                    known.append(known[at])
                return known[len(tokens) :]
    return []


@settings(max_examples=300, deadline=None)
@given(tokens_of_few, st.integers(0, 12), st.integers(0, 40))
def test_what_is_drafted_is_what_followed_the_last_time(
    tokens: list[int], most: int, first: int
) -> None:
    lookup = PromptLookup(12)
    lookup.add(tokens[:first])
    for token in tokens[first:]:
        lookup.say(token)
    found = lookup.draft(most)
    assert lookup.follow(most) == by_hand(tokens, most)
    assert found == by_hand(tokens, len(found)) and len(found) <= min(most, 12)


def test_nothing_is_drafted_before_it_would_have_been_right() -> None:
    lookup = PromptLookup(8)
    lookup.add([7, 1, 2, 9, 7, 3, 4, 8])
    lengths = []
    for token in (7, 1, 2, 9, 7, 3, 4, 8, 7, 1, 2, 9, 7, 3, 4, 8):
        lookup.say(token)
        lengths.append(len(lookup.draft(15)))
    assert lengths[:3] == [0, 0, 0]
    assert min(lengths[3:]) > 0 and lengths[-1] == 7 and set(lengths) <= {0, *LENGTHS}
    for token in (5, 6) * 3:  # nothing of this was ever said
        lookup.say(token)
        assert lookup.draft(0) == []
    assert lookup.follow(3) == [5, 6, 5]


def test_what_was_wrong_is_not_drafted_again() -> None:
    """Two tokens that are the same say nothing where what follows them is drawn at random."""
    random, lookup, drafted = np.random.default_rng(1), PromptLookup(15), 0
    for token in random.integers(0, 8, 4000).tolist():
        lookup.say(token)
        drafted += bool(lookup.draft(15))
    assert drafted < 40
    lookup.count(7, 3)
    lookup.count(2, 2)
    assert (lookup.drafted, lookup.accepted) == (9, 5)


def test_where_a_wrong_draft_is_run_again_fewer_are_tried() -> None:
    lengths = []
    for repeats in (False, True):
        lookup = PromptLookup(8, repeats)
        lookup.add([7, 1, 2, 9, 7, 3, 4, 8])
        lengths.append([])
        for token in (7, 1, 2, 9, 7, 3, 4, 8) * 4:
            lookup.say(token)
            lengths[-1].append(len(lookup.draft(15)))
    assert all(fewer <= more for more, fewer in zip(*lengths, strict=True))
    assert sum(lengths[1]) < sum(lengths[0]) and lengths[1][-1] == 7


ROUNDS = ("Describe the image.", "Read the text.", "Describe the image.")


def talked(model: LVLM, policy: str, **options: Any) -> list[Any]:
    """A conversation that repeats itself."""
    one = sample("caption", "held-out", 44)
    chat = model.chat(policy=policy)
    found = []
    for number, text in enumerate(ROUNDS):
        images = [] if number else [one.image]
        found.append(chat.send(text, images=images, max_new_tokens=40, **options))
    return found


@pytest.mark.parametrize(
    "policy", ["dense", "fastv", "avl", "avl:refresh=9,core=0.2", "random", "akvq"]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.8, "seed": 5, "top_k": 20}, {"repetition_penalty": 1.3, "stop": "ring"}],
    ids=["greedy", "sampled", "ruled"],
)
def test_a_conversation_is_as_without_drafts(
    tiny: LVLM, policy: str, options: dict[str, Any]
) -> None:
    """Replies, what they end by, and, as later turns show, the rows that are kept."""
    plain = talked(tiny, policy, return_logits=True, **options)
    drafted = talked(tiny, policy, return_logits=True, prompt_lookup=7, **options)
    for one, other in zip(plain, drafted, strict=True):
        assert (one.token_ids, one.text) == (other.token_ids, other.text)
        assert one.finish_reason == other.finish_reason
        assert one.stats.new_tokens == other.stats.new_tokens and one.stats.drafts == ()
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4, rtol=0)
    stats = drafted[-1].stats
    (source,) = stats.drafts
    assert (source.drafted, source.accepted) == (stats.drafted, stats.accepted)
    if not options:
        assert 0 < stats.accepted <= stats.drafted


@pytest.mark.parametrize("seed", [3, 11])
def test_random_models_say_what_transformers_says(
    seed: int, tmp_path: Path, package_of: Any
) -> None:
    checkpoint = tmp_path / "model"
    write_checkpoint(checkpoint, seed)
    (image,) = draw_images(seed, 1, 64)
    text = "What is in the picture? What is in the picture?"
    inputs = encode(checkpoint, text, [image])
    with torch.inference_mode():
        said = load_reference(checkpoint).generate(**inputs, max_new_tokens=48, do_sample=False)
    wanted = said[0, inputs["input_ids"].shape[1] :].tolist()
    model = LVLM.load(package_of(checkpoint), policy="dense")
    found = model.generate(text, [image], max_new_tokens=48, temperature=0, prompt_lookup=15)
    assert list(found.token_ids) == wanted
    assert found.stats.drafted > 0


def test_a_batch_of_all_kinds_gives_what_each_gives_alone(tiny: LVLM) -> None:
    """Requests with drafts and without, under several policies, that end at different times."""
    one = sample("ocr", "held-out", 47)
    text = "there is a red ring at top left. there is a red ring at top left. " * 2
    cases: list[tuple[str, dict[str, Any]]] = [
        ("dense", {"prompt_lookup": 7}),
        ("avl", {}),
        ("avl:refresh=8", {"prompt_lookup": 15}),
        ("dense", {"prompt_lookup": 3, "temperature": 0.7, "seed": 2}),
        ("avl:text=0.5,text_min=4", {}),
    ]
    scheduler = Scheduler(tiny)
    asked = [
        scheduler.add(
            text + sample("caption", "held-out", 50 + number).prompt,
            [one.image],
            policy=policy,
            max_new_tokens=12 + 7 * number,
            **options,
        )
        for number, (policy, options) in enumerate(cases)
    ]
    texts = dict.fromkeys(range(len(asked)), "")
    while scheduler.requests:
        for request in scheduler.step():
            texts[asked.index(request)] += request.fresh
    for number, (policy, options) in enumerate(cases):
        plain = {name: value for name, value in options.items() if name != "prompt_lookup"}
        alone = tiny.generate(
            text + sample("caption", "held-out", 50 + number).prompt,
            [one.image],
            policy=policy,
            max_new_tokens=12 + 7 * number,
            **plain,
        )
        result = asked[number].result
        assert (result.token_ids, result.text) == (alone.token_ids, alone.text)
        assert texts[number] == result.text
    assert sum(request.result.stats.drafted for request in asked) > 0


def test_rows_have_the_logits_that_steps_give(tiny: LVLM) -> None:
    one = sample("caption", "held-out", 44)
    loaded = tiny.loaded
    prompt = loaded.processor.encode(one.prompt, [one.image])
    reply = list(tiny.generate(one.prompt, [one.image], max_new_tokens=18).token_ids)[:16]
    stepped = loaded.sequence(parse("dense"))
    finished(loaded.prefill(stepped, prompt))
    decoder = loaded.decoder()
    decoder.join([stepped], 32)
    wanted = np.stack([decoder.run([token])[0].copy() for token in reply])
    for which in (Logits.ALL, Logits.LARGEST):
        at_once = loaded.sequence(parse("dense"))
        finished(loaded.prefill(at_once, prompt))
        checking = loaded.decoder()
        checking.join([at_once], 32)
        (check,) = checking.check([(at_once, reply)], which, 32)
        found = check.logits
        assert found.shape == wanted.shape
        assert (found.argmax(1) == wanted.argmax(1)).all()
        known = np.isfinite(found)
        assert known.all() or which is Logits.LARGEST
        np.testing.assert_allclose(found[known], wanted[known], atol=1e-4, rtol=0)
        with pytest.raises(ValueError, match="with 1 to 16 tokens each"):
            checking.check([(at_once, list(range(17)))], which, 32)


def test_what_cannot_be_checked_is_refused(tiny: LVLM) -> None:
    with pytest.raises(OptionError, match=r"drops no text.*found avl:.*text=0.5"):
        tiny.generate("Hello", policy="avl:text=0.5", prompt_lookup=4)
    with pytest.raises(OptionError, match="prompt_lookup: expected a whole number of at most 15"):
        tiny.generate("Hello", prompt_lookup=16)


def test_older_packages_answer_and_refuse_drafts(
    tiny: LVLM, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their last graph has no input that says which rows have logits."""
    read = Package.read

    def older(self: Package, path: str) -> bytes:
        data = read(self, path)
        if not path.startswith("decoder."):
            return data
        model = onnx.load_model_from_string(data)
        inputs = [value for value in model.graph.input if value.name != LOGITS_FROM]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        for value in model.graph.output:
            if value.name == LOGITS:
                value.type.tensor_type.shape.dim[1].dim_value = 1
        return bytes(model.SerializeToString())

    monkeypatch.setattr(Package, "read", older)
    with LVLM.load(tiny_package) as model:
        asked = ("Describe the image.", ["samples/scene.png"])
        found = model.generate(*asked, max_new_tokens=8)
        assert found.token_ids == tiny.generate(*asked, max_new_tokens=8).token_ids
        with pytest.raises(OptionError, match=r"ort-cpu and a package that give the last one's"):
            model.generate(*asked, prompt_lookup=4)
        with pytest.raises(PolicyError, match=r"avl:exact,n=4: expected graphs that give logits"):
            model.generate(*asked, policy="avl:exact,n=4")

"""Image tokens chosen before the decoder, in requests of avl-tiny: batches, chats, what is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from avl_plugins.cpu import choosing, sharing
from avl_plugins.errors import PolicyError
from avl_plugins.policies import (
    ATTENTION,
    Action,
    Dense,
    Divide,
    Policy,
    Ranking,
    Select,
    Uniform,
    View,
    When,
    parse,
)
from avl_runtime import LVLM
from avl_runtime.machine.resources import cores
from avl_runtime.show.heatmap import shares
from avl_runtime.tasks import sample
from oracle.hf_oracle import Oracle
from oracle.reading import Shown, read
from oracle.rules_of import rules_of
from support.reference import encode, load_reference

PICTURE = 144  # tokens of one, 12 x 12
ASKED = [sample("caption", "held-out", number) for number in range(3)]
POLICIES = (
    "divprune:tokens=16",
    "mmtok:tokens=16",
    "cdpruner:keep=0.2",
    "dart:tokens=20",
    "pool:keep=0.25",
    "uniform:tokens=36",
    "random:of=embedded,tokens=16",
    "divprune:tokens=16,gamma=0.5",
    "divprune:tokens=40+fastv:keep=0.5+avl:keep=0.4",
)


def ask(
    model: LVLM, spec: Any, images: list[Any], prompt: str = ASKED[0].prompt, **more: Any
) -> Any:
    return model.generate(
        prompt, images, policy=spec, max_new_tokens=6, temperature=0, return_placements=True, **more
    )


@pytest.mark.parametrize("spec", POLICIES)
def test_every_layer_holds_what_was_chosen_and_no_more(tiny: LVLM, spec: str) -> None:
    layers = tiny.package.manifest.dims.num_layers
    given = parse(spec).actions()[0].given(np.zeros((3, PICTURE), np.int64), False)
    for images in ([ASKED[0].image], [one.image for one in ASKED]):
        found = ask(tiny, spec, images)
        placed = found.placements[0]
        kept = (placed.core | placed.parked).reshape(layers, len(images), PICTURE).sum(2)
        assert found.stats.visual_tokens == PICTURE * len(images)
        assert found.stats.visual_tokens_read == given * len(images)
        if "+" not in spec:
            assert (kept == given).all()
            assert found.stats.kv_bytes < found.stats.kv_bytes_dense / 2
            assert shares(found.placements, found.visuals, 0, 5).core == pytest.approx(
                given / PICTURE
            )
        else:
            assert kept[:2].sum() == 2 * 16 * len(images)  # A-VL's share of what was given
            assert kept.sum() == layers * 16 * len(images)


@pytest.mark.parametrize("spec", POLICIES)
def test_a_batch_is_each_alone(tiny: LVLM, spec: str) -> None:
    prompts, images = [one.prompt for one in ASKED], [[one.image] for one in ASKED]
    alone = [ask(tiny, spec, shown, prompt) for prompt, shown in zip(prompts, images, strict=True)]
    together = tiny.generate_batch(
        prompts, images, policy=spec, max_new_tokens=6, temperature=0, return_placements=True
    )
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_array_equal(one.placements[0].core, other.placements[0].core)


def test_without_a_picture_nothing_happens(tiny: LVLM) -> None:
    for spec in ("mmtok", "divprune+avl"):
        found, dense = (ask(tiny, one, []) for one in (spec, "dense"))
        assert found.token_ids == dense.token_ids
        assert found.stats.visual_tokens_read == 0


def test_one_token_left_and_all_left(tiny: LVLM) -> None:
    for name in ("divprune", "mmtok", "cdpruner", "dart", "uniform", "pool"):
        assert ask(tiny, f"{name}:tokens=1", [ASKED[0].image]).stats.visual_tokens_read == 1
        whole = ask(tiny, f"{name}:keep=1", [ASKED[0].image], return_logits=True)
        dense = ask(tiny, "dense", [ASKED[0].image], return_logits=True)
        np.testing.assert_array_equal(whole.logits, dense.logits)


def test_pooled_rows_are_means_in_the_place_of_the_first(tiny: LVLM, tiny_checkpoint: Path) -> None:
    """2 x 2 cells of 12 x 12: torch's own pooling, read by transformers' decoder."""
    reference = load_reference(tiny_checkpoint)
    whole = read(reference, encode(tiny_checkpoint, ASKED[1].prompt, [ASKED[1].image]))
    grid = whole.embeds[whole.visual].reshape(12, 12, -1).permute(2, 0, 1)
    means = torch.nn.functional.avg_pool2d(grid, 2).permute(1, 2, 0).reshape(36, -1)
    places = torch.arange(144).reshape(12, 12)[::2, ::2].reshape(-1)
    keep = ~whole.visual
    keep[torch.nonzero(whole.visual)[places, 0]] = True
    embeds = whole.embeds.clone()
    embeds[keep & whole.visual] = means
    none = whole.deepstack[:, :36]
    shown = Shown(embeds[keep], whole.visual[keep], whole.positions[:, keep], none)
    got = ask(tiny, "pool:keep=0.25", [ASKED[1].image], ASKED[1].prompt, return_logits=True)
    oracle = Oracle(reference, rules_of(Dense()))
    with torch.inference_mode():
        logits = [oracle.turn(shown), *(oracle.step(token) for token in got.token_ids[:-1])]
    np.testing.assert_allclose(got.logits, torch.stack(logits).numpy(), atol=1e-4, rtol=0)


def test_a_chat_goes_on_with_what_was_chosen(tiny: LVLM) -> None:
    """A later picture is chosen from when it comes; the first one's tokens stay as they were."""
    chat = tiny.chat(policy="divprune:tokens=16")
    first = chat.send(ASKED[0].prompt, [ASKED[0].image], max_new_tokens=4, return_placements=True)
    second = chat.send("And here?", [ASKED[1].image], max_new_tokens=4, return_placements=True)
    assert chat._kept.turns, "the second turn was read behind the first"
    before, behind = first.placements[0].core, second.placements[0].core
    np.testing.assert_array_equal(behind[:, :PICTURE], before)
    assert (behind[:, PICTURE:].sum(1) == 16).all()
    assert second.stats.visual_tokens_read == 16


def test_a_chat_chooses_anew_where_what_is_asked_decides(tiny: LVLM) -> None:
    """Then each turn is what one request of all messages would be."""
    image, policy = ASKED[0].image, "mmtok:tokens=16"
    chat = tiny.chat(policy=policy)
    first = chat.send(ASKED[0].prompt, [image], max_new_tokens=8, return_placements=True)
    again = "Read the text. How many objects are red?"
    second = chat.send(again, max_new_tokens=8, return_placements=True, return_logits=True)
    whole = tiny.generate(
        chat.messages[:-1],
        policy=policy,
        max_new_tokens=8,
        temperature=0,
        return_placements=True,
        return_logits=True,
    )
    assert second.token_ids == whole.token_ids
    np.testing.assert_array_equal(second.logits, whole.logits)
    np.testing.assert_array_equal(second.placements[0].core, whole.placements[0].core)
    assert (first.placements[0].core != second.placements[0].core).any()
    chat.undo()
    assert len(chat.messages) == 2


def test_what_is_asked_is_the_text_without_template_and_placeholders(tiny: LVLM) -> None:
    encode_ids = tiny.processor.tokenizer.encode
    prompt = tiny.processor.encode("Is it <image> red?", [ASKED[0].image], placeholders=True)
    assert prompt.asked.split() == ["Is", "it", "red?"]
    prompt = tiny.processor.encode("Is it red?", [ASKED[0].image], system=None)
    expected = encode_ids("Is it red?", add_special_tokens=False).ids
    assert tiny.processor.asked_ids(prompt).tolist() == expected


@dataclass(frozen=True)
class Says(Action):
    """Answers what it was made with."""

    fates: int = 0
    joins: int | None = None
    when: ClassVar[frozenset[When]] = frozenset({When.EMBEDDED})

    @property
    def ranking(self) -> Ranking:
        return ATTENTION

    @property
    def decides(self) -> str:
        return "which image tokens the decoder is given"

    def choose(self, view: View) -> Any:
        found = np.full(view.positions.shape, 2, np.int8)
        found[:3] = self.fates
        return found

    def merged(self, view: View) -> Any:
        into = None if self.joins is None else np.full(view.positions.shape, self.joins)
        return self.choose(view), into


@dataclass(frozen=True)
class OneAction(Policy):
    says: Action = Says()
    name: ClassVar[str] = "one"

    def actions(self) -> tuple[Action, ...]:
        return (self.says,)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (Says(1), "expected ACTIVE or DROPPED"),
        (Says(0, 5), "one that stays"),
        (Says(0, 1000), "one that stays"),
        (Says(0, 0), "for each that stays itself"),
    ],
)
def test_actions_that_answer_what_cannot_be_are_told(tiny: LVLM, says: Says, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        ask(tiny, OneAction(says), [ASKED[0].image])
    assert ask(tiny, OneAction(), [ASKED[0].image]).stats.visual_tokens_read == 3


def test_an_action_before_the_decoder_decides_nothing_later(tiny: LVLM) -> None:
    @dataclass(frozen=True)
    class Both(Says):
        when: ClassVar[frozenset[When]] = frozenset({When.EMBEDDED, When.PROMPT})

    with pytest.raises(PolicyError, match="make two actions of it"):
        ask(tiny, OneAction(Both()), [ASKED[0].image])


def test_actions_before_the_decoder_may_follow_each_other(tiny: LVLM) -> None:
    @dataclass(frozen=True)
    class Then(Select):
        @property
        def decides(self) -> str:
            return "which of them are given after all"

    @dataclass(frozen=True)
    class Two(Policy):
        name: ClassVar[str] = "two"

        def actions(self) -> tuple[Action, ...]:
            halves = Uniform()
            return Select(halves, most=72), Then(halves, most=9), Divide(1.0, 0.5)

    found = ask(tiny, Two(), [ASKED[0].image])
    assert found.stats.visual_tokens_read == 9
    assert (found.placements[0].core.sum(1) == 4).all()


@pytest.mark.usefixtures("kernels")
def test_choices_take_as_many_threads_as_the_model(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int | None] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int | None) -> None:
            taken.append(workers)
            super().__init__(workers)

    for module in (choosing, sharing):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(sharing, "ALONE", 1)
    for threads in (1, 3, None):
        taken.clear()
        model = LVLM.load(tiny_package, "ort-cpu", threads=threads)
        ask(model, "mmtok:tokens=9", [ASKED[0].image])
        assert set(taken) == {threads or cores()} - {1}  # which needs no pool

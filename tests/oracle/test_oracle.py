"""The oracle itself, against Hugging Face where that has an answer and by hand where not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from oracle.hf_oracle import (
    ByAttention,
    Oracle,
    PruneRule,
    Rules,
    Run,
    SplitRule,
    TextRule,
    _attention,
    run,
)
from support.random_llava import IMAGE, draw_images, draw_shape
from support.reference import encode, load_reference

PROMPT = "What is in the picture? Read the text."
STEPS = 10


class Case:
    """A random checkpoint with a prompt and some images."""

    def __init__(self, folder, seed: int, images: int) -> None:
        self.model = load_reference(folder)
        self.inputs = encode(folder, PROMPT, draw_images(seed, images, draw_shape(seed).image_size))
        self.ids, self.pixels = self.inputs["input_ids"][0], self.inputs["pixel_values"]
        self.is_image = (self.ids == IMAGE).numpy()
        self.total = int(self.is_image.sum())

    def run(self, rules: Rules, steps: int = STEPS, **options) -> Run:
        return run(self.model, self.inputs, rules, steps, **options)


@pytest.fixture(scope="module", params=[(0, 1), (4, 2), (8, 3)], ids=["llama", "qwen2", "mistral"])
def case(request, random_checkpoint) -> Case:
    seed, images = request.param
    return Case(random_checkpoint(seed), seed, images)


def test_dense_is_hugging_face_generate(case: Case) -> None:
    generated = case.model.generate(
        input_ids=case.ids[None],
        pixel_values=case.pixels,
        attention_mask=torch.ones_like(case.ids)[None],
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    dense = case.run(Rules())
    assert list(dense.tokens) == generated.sequences[0, len(case.ids) :].tolist()
    np.testing.assert_allclose(dense.logits, torch.cat(generated.logits).numpy(), atol=1e-4)


def test_dense_is_one_plain_forward_pass_over_followed_tokens(case: Case) -> None:
    follow = [30 + 7 * i for i in range(STEPS - 1)]
    with torch.no_grad():
        logits = case.model(
            input_ids=torch.cat([case.ids, torch.tensor(follow)])[None], pixel_values=case.pixels
        ).logits[0, len(case.ids) - 1 :]
    np.testing.assert_allclose(case.run(Rules(), follow=follow).logits, logits.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(prune=PruneRule(2, 1.0)),
        Rules(split=SplitRule(1.0, 1.0, 2)),
        Rules(split=SplitRule(1.0, 0.2, 1), text=TextRule(0.5, 1000)),
    ],
    ids=["fastv", "avl", "ample text budget"],
)
def test_keeping_everything_is_dense_at_first(case: Case, rules: Rules) -> None:
    steps = 1 if rules.split is not None and rules.split.core < 1 else STEPS
    dense = case.run(Rules(), steps)
    np.testing.assert_array_equal(case.run(rules, steps).logits, dense.logits)


def test_refreshing_every_step_sees_the_whole_secondary_set(case: Case) -> None:
    always = case.run(Rules(split=SplitRule(0.5, 0.2, 1)))
    no_split_left = case.run(Rules(split=SplitRule(0.5, 0.5, 3)), follow=always.tokens)
    np.testing.assert_allclose(always.logits, no_split_left.logits, atol=1e-6)


def test_policies_on_the_cache_leave_the_first_token_and_change_the_second(case: Case) -> None:
    dense = case.run(Rules(), 2)
    avl = case.run(Rules(split=SplitRule(0.5, 0.3, 3), text=TextRule(0.3, 2)), 2)
    np.testing.assert_array_equal(avl.logits[0], dense.logits[0])
    assert np.abs(avl.logits[1] - dense.logits[1]).max() > 1e-3


def test_fastv_keeps_the_highest_scores_and_changes_the_first_token(case: Case) -> None:
    fastv = case.run(Rules(prune=PruneRule(2, 0.25)), 1)
    with torch.no_grad():
        full = case.model(
            input_ids=case.ids[None], pixel_values=case.pixels, output_attentions=True
        )
    scores = full.attentions[1][0, :, -1].mean(0).numpy()[case.is_image]
    count = max(1, round(0.25 * case.total))
    best = np.zeros(case.total, bool)
    best[np.argsort(-scores, kind="stable")[:count]] = True
    (places,) = fastv.places
    assert places.core[:2].all()
    assert (places.core[2:] == best).all()
    assert not places.parked.any()
    assert np.abs(fastv.logits[0] - full.logits[0, -1].numpy()).max() > 1e-3


def test_fastv_is_a_shorter_prompt_in_the_upper_layers(case: Case) -> None:
    """The only test that gathers: drop rows for real, with Hugging Face's own layers."""
    rules = Rules(prune=PruneRule(2, 0.5))
    (places,) = (result := case.run(rules, 1)).places
    kept = torch.ones(len(case.ids), dtype=torch.bool)
    kept[torch.from_numpy(case.is_image)] = torch.from_numpy(places.core[2])
    decoder = case.model.model.get_decoder()
    oracle = Oracle(case.model, rules)
    with torch.no_grad():
        oracle.turn(case.inputs)
        hidden, positions = oracle.embeds[None], torch.arange(len(case.ids))[None]
        for index, layer in enumerate(decoder.layers):
            if index == 2:
                hidden, positions = hidden[:, kept], positions[:, kept]
            length = hidden.shape[1]
            hidden = layer(
                hidden,
                attention_mask=torch.full((1, 1, length, length), -1e30).triu(1),
                position_ids=positions,
                position_embeddings=decoder.rotary_emb(hidden, positions),
            )
        logits = case.model.lm_head(decoder.norm(hidden))[0, -1]
    np.testing.assert_allclose(result.logits[0], logits.numpy(), atol=1e-4)


def test_places_follow_the_schedule(case: Case) -> None:
    result = case.run(Rules(split=SplitRule(0.5, 0.3, 3)), 8)
    assert [places.step for places in result.places] == [0, 4, 7]
    secondary, core = max(1, case.total // 2), max(1, math.floor(0.3 * case.total + 1e-9))
    alive = [places.core | places.parked for places in result.places]
    for places in result.places:
        assert (places.core.sum(1) == core).all()
        assert (places.parked.sum(1) == secondary - core).all()
        assert not (places.core & places.parked).any()
    assert all((one == alive[0]).all() for one in alive), "minor tokens never return"
    assert any((places.core != result.places[0].core).any() for places in result.places[1:])


def test_core_and_secondary_are_the_best_of_each_layer(case: Case) -> None:
    (places,) = case.run(Rules(split=SplitRule(0.5, 0.25, 3)), 1).places
    with torch.no_grad():
        attentions = case.model(
            input_ids=case.ids[None], pixel_values=case.pixels, output_attentions=True
        ).attentions
    for layer, attention in enumerate(attentions):
        scores = attention[0, :, -1].mean(0).numpy()[case.is_image]
        core, secondary = places.core[layer], places.core[layer] | places.parked[layer]
        assert scores[core].min() >= scores[~core].max()
        assert scores[secondary].min() >= scores[~secondary].max()


def test_the_prefill_filter_comes_before_the_split(case: Case) -> None:
    result = case.run(
        Rules(prune=PruneRule(2, 0.6), split=SplitRule(0.5, 0.3, 2), text=TextRule(0.5, 4)), 5
    )
    fastv = case.run(Rules(prune=PruneRule(2, 0.6)), 1)
    alive = result.places[0].core | result.places[0].parked
    assert (alive.sum(1) == case.total // 2).all()
    assert (alive <= fastv.places[0].core).all()
    np.testing.assert_array_equal(result.logits[0], fastv.logits[0])


def test_text_is_evicted_to_its_budget_per_head(case: Case) -> None:
    rule = TextRule(0.5, 4)
    result = case.run(Rules(text=rule), STEPS)
    first = int(np.flatnonzero(case.is_image)[0])
    behind = int((~case.is_image[first:]).sum()) + STEPS - 1
    budget = max(round(0.5 * behind), 4)
    assert (result.rows == first + case.total + budget).all()
    assert result.evictions == (behind - budget) * result.rows.size


def test_h2o_by_hand(case: Case) -> None:
    """Evict the text of one prompt with loops over Hugging Face's attention maps."""
    oracle = Oracle(case.model, Rules(text=TextRule(0.4, 3, heavy=0.5)))
    with torch.no_grad():
        oracle.turn(case.inputs)
        attentions = case.model(
            input_ids=case.ids[None], pixel_values=case.pixels, output_attentions=True
        ).attentions
    first = int(np.flatnonzero(case.is_image)[0])
    text = [i for i in range(len(case.ids)) if not case.is_image[i]]
    evictable = [i for i in text if i > first]
    budget = max(round(0.4 * len(evictable)), 3)
    recent = budget - int(budget * 0.5)
    group = oracle.heads // oracle.kv_heads
    for index, attention in enumerate(attentions):
        for head in range(oracle.kv_heads):
            score = {
                key: sum(
                    float(attention[0, head * group + g, row, key]) / group
                    for row in text
                    for g in range(group)
                )
                for key in evictable
            }
            hitters = sorted(evictable[:-recent], key=lambda key: -score[key])
            kept = set(evictable[-recent:]) | set(hitters[: budget - recent])
            alive = set(torch.nonzero(oracle.layers[index].alive[head])[:, 0].tolist())
            assert alive & set(evictable) == kept


def test_a_second_turn_of_dense_is_one_long_prompt(case: Case) -> None:
    tail = torch.tensor([40, 41, 42, 43])
    oracle = Oracle(case.model, Rules())
    with torch.no_grad():
        oracle.turn(case.inputs)
        oracle.step(50)
        logits = oracle.turn({"input_ids": tail[None]})
        whole = torch.cat([case.ids, torch.tensor([50]), tail])
        full = case.model(input_ids=whole[None], pixel_values=case.pixels).logits[0, -1]
    np.testing.assert_allclose(logits.numpy(), full.numpy(), atol=1e-4)


def test_a_second_turn_counts_all_images_and_sees_parked_rows(case: Case) -> None:
    oracle = Oracle(case.model, Rules(split=SplitRule(0.5, 0.25, 2)))
    with torch.no_grad():
        oracle.turn(case.inputs)
        oracle.step(50)
        alive = [layer.alive.clone() for layer in oracle.layers]
        oracle.turn(case.inputs)
    new = slice(len(case.ids) + 1, None)
    for layer, before in zip(oracle.layers, alive, strict=True):
        assert (layer.visible[:, new, : before.shape[1]] == before[:, None]).all()
        assert int(layer.core.sum()) == max(1, int(0.25 * 2 * case.total))
    assert [places.core.shape[1] for places in oracle.places] == [case.total, 2 * case.total]


def test_ties_go_to_the_lower_index_and_gaps_are_relative() -> None:
    ranking = ByAttention()
    assert ranking.top(torch.tensor([0.4, 0.1, 0.2, 0.1]), 2) == [0, 2]
    assert ranking.gap == pytest.approx(0.5)
    assert ranking.top(torch.tensor([0.1, 0.2, 0.1]), 2) == [0, 1]
    assert ranking.gap == 0
    assert ranking.top(torch.tensor([0.1, 0.2]), 5) == [0, 1]


def test_masked_attention_on_numbers_worked_out_by_hand() -> None:
    """Two query heads share one KV head; row 1 of head 1 does not see key 0."""
    query = torch.tensor([[[[1.0], [1.0]], [[2.0], [2.0]]]])
    key = torch.tensor([[[[0.0], [math.log(3.0)]]]])
    value = torch.tensor([[[[4.0], [8.0]]]])
    mask = torch.tensor([[[True, False], [True, True]], [[True, False], [False, True]]])
    seen: dict[int, torch.Tensor] = {}
    module = torch.nn.Module()
    module.layer_idx = 0
    out, _ = _attention(
        module, query, key, value, None, 1.0, oracle_masks=[mask], oracle_attention=seen
    )
    # Head 0, row 1: weights 1/4 and 3/4, so 0.25 * 4 + 0.75 * 8 = 7.
    np.testing.assert_allclose(out[0, :, :, 0].numpy(), [[4.0, 4.0], [7.0, 8.0]], rtol=1e-6)
    np.testing.assert_allclose(seen[0][0, 1].numpy(), [0.25, 0.75], rtol=1e-6)

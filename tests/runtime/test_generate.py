"""What every policy, option and way of calling must hold, on avl-tiny."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from avl_plugins import cpu, policies
from avl_plugins.cpu.refresh import Refresh
from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.execute.host import ort_bound
from avl_runtime.generate import choices
from avl_runtime.generate.options import Options
from avl_runtime.kv import sight
from avl_runtime.kv.append import Appender
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.requests import Request, Scheduler
from avl_runtime.tasks import sample, samples

POLICIES = (
    "dense",
    "fastv",
    "avl",
    "avl:text=0.5,text_min=4",
    "avl+fastv",
    "random",
    "random:of=avl",
)


def ask(model: LVLM, policy: str, task: str = "caption", index: int = 0, **options: object):
    one = sample(task, "held-out", index)
    options = {"max_new_tokens": 24, "return_logits": True, **options}
    return model.generate(one.prompt, [one.image], policy=policy, **options)


@pytest.mark.parametrize(
    "policy",
    [
        "fastv:keep=1",
        "avl:keep=1,core=1",
        "random:keep=1",
        "avl:keep=1,core=1,refresh=1+fastv:keep=1",
    ],
)
def test_keeping_everything_is_bit_identical_to_dense(tiny: LVLM, policy: str) -> None:
    for task in ("caption", "vqa", "ocr"):
        dense, kept = ask(tiny, "dense", task), ask(tiny, policy, task)
        assert kept.token_ids == dense.token_ids
        assert kept.logits.tobytes() == dense.logits.tobytes()
        assert kept.stats.kv_bytes == dense.stats.kv_bytes


@pytest.mark.parametrize("policy", ["avl", "avl:text=0.5,text_min=4", "random:of=avl"])
def test_a_policy_on_the_cache_alone_leaves_the_first_token(tiny: LVLM, policy: str) -> None:
    dense, other = ask(tiny, "dense"), ask(tiny, policy)
    assert other.logits[0].tobytes() == dense.logits[0].tobytes()
    assert not np.array_equal(other.logits[1], dense.logits[1])


def test_the_same_request_gives_the_same_bits(tiny: LVLM) -> None:
    for policy in POLICIES:
        assert ask(tiny, policy).logits.tobytes() == ask(tiny, policy).logits.tobytes()


def finished(model: LVLM, policy: str, steps: int = 30):
    one = sample("caption", "held-out", 3)
    prompt = model.processor.encode(one.prompt, [one.image])
    options = Options(max_new_tokens=steps)
    chosen = policies.parse(policy)
    sequence = model.loaded.sequence(chosen)
    request = Request(model.loaded, prompt, chosen, options, sequence=sequence)
    for _ in Scheduler(model).run(request):
        yield sequence, request
    yield sequence, request


def kv(cache: SegmentCache) -> list[np.ndarray]:
    return [*cache.k_active, *cache.v_active, *cache.k_parked, *cache.v_parked]


@pytest.mark.parametrize("policy", POLICIES)
def test_reported_bytes_are_those_of_the_live_arrays(tiny: LVLM, policy: str) -> None:
    *_, (conversation, request) = finished(tiny, policy)
    gc.collect()
    live = [c for c in gc.get_objects() if isinstance(c, SegmentCache)]
    mine = [c for c in live if any(c is own for own in conversation.caches)]
    arrays = [array for cache in mine for array in kv(cache)]
    assert len(arrays) == 4 * tiny.package.manifest.dims.num_layers
    assert len({a.__array_interface__["data"][0] for a in arrays}) == len(arrays)
    assert request.result.stats.kv_bytes == sum(a.nbytes for a in arrays)
    # No array is a view into something larger that would stay in memory unseen.
    assert all(a.base is None or a.base.nbytes == a.nbytes for a in arrays)


@pytest.mark.parametrize("policy", POLICIES)
def test_replies_do_not_depend_on_room(tiny: LVLM, policy: str, monkeypatch) -> None:
    roomy = ask(tiny, policy)
    monkeypatch.setattr("avl_runtime.kv.cache.room", lambda rows, steps: 1)
    tight = ask(tiny, policy)
    assert tight.token_ids == roomy.token_ids
    assert np.array_equal(tight.logits, roomy.logits)


@pytest.mark.parametrize("policy", ["dense", "avl"])
def test_rows_are_freed_as_they_are_replaced(tiny: LVLM, policy: str, monkeypatch) -> None:
    replaced = {"extend": 0, "append": 0}

    def watched(owner: type, name: str):
        method = getattr(owner, name)

        def watch(*arguments) -> None:
            cache = next(each for each in arguments if isinstance(each, SegmentCache))
            # Before the first chunk there is an empty row, which a failing prompt would need again.
            seen = [weakref.ref(array) for array in cache.k_active + cache.v_active]
            counted, version = max(cache.tops) > 0, cache.version
            method(*arguments)
            if counted and cache.version > version:
                replaced[name] += 1
                assert sum(ref() is not None for ref in seen) == 0

        return watch

    for owner, name in ((SegmentCache, "extend"), (Appender, "append")):
        monkeypatch.setattr(owner, name, watched(owner, name))
    images = [one.image for one in samples("caption", "held-out", 2)]  # more than one chunk of rows
    tiny.generate("Describe the image.", images, policy=policy, max_new_tokens=100)
    assert replaced["extend"] == 0  # a prompt's chunks go where room was made for all
    assert replaced["append"] >= len(tiny.package.manifest.segments)


def test_dense_bytes_are_those_of_a_dense_run(tiny: LVLM) -> None:
    for tokens in (1, 2, 30):
        stats = ask(tiny, "dense", max_new_tokens=tokens).stats
        assert stats.kv_bytes == stats.kv_bytes_dense


def test_avl_holds_half_of_the_image_rows_from_prefill_on(tiny: LVLM) -> None:
    dims = tiny.package.manifest.dims
    row = 2 * dims.num_kv_heads * dims.head_dim * 4
    dense_images = 144 * row
    totals = []
    for conversation, _ in finished(tiny, "avl:keep=0.5"):
        mask = conversation.image_mask
        for cache in conversation.caches:
            for _, positions in sight.images(cache, conversation.seq, mask):
                assert positions.shape[1] * row <= 0.52 * dense_images
            # The bytes behind those rows are gone too: what is left is text and room.
            text = int((~mask).sum())
            assert cache.nbytes <= cache.layers * (0.52 * dense_images + (text + 18) * row)
        totals.append(conversation.nbytes)
    assert len(totals) > 20


def test_a_text_budget_shrinks_the_total(tiny: LVLM) -> None:
    with_text = ask(tiny, "avl", max_new_tokens=48).stats.kv_bytes
    without = ask(tiny, "avl:text=0.6,text_min=4", max_new_tokens=48).stats.kv_bytes
    assert without < with_text
    for conversation, _ in finished(tiny, "avl:text=0.6,text_min=4", 48):
        seen = conversation.text_after_image
        before = int(conversation.image_mask.argmax())
        for cache in conversation.caches:
            text = cache.active_len[:, 0] - cache.image_rows[:, 0] - before
            assert (text == max(round(0.6 * seen), 4)).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_without_compiled_kernels_the_same_is_said(
    tiny: LVLM, tiny_package: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpu.SWITCH, "off")
    plain = ask(LVLM.load(tiny_package), policy, "ocr")
    monkeypatch.delenv(cpu.SWITCH)
    compiled = ask(tiny, policy, "ocr")
    assert compiled.token_ids == plain.token_ids
    np.testing.assert_allclose(compiled.logits, plain.logits, rtol=1e-4, atol=1e-4)


def test_the_step_does_a_refresh_itself(
    tiny: LVLM, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged: list[int] = []
    monkeypatch.setattr(choices, "exchange", lambda *_: exchanged.append(1))
    result = ask(tiny, "avl:text=0.5,text_min=4", return_placements=True)
    cores = [placement.core for placement in result.placements]
    assert any((one != other).any() for one, other in pairwise(cores))
    assert not exchanged
    ask(tiny, "random:of=avl")  # the step ranks by attention, and this draws
    assert exchanged


def test_a_step_that_refreshes_some_layers_is_refused(
    tiny: LVLM, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(Refresh):
        def __exit__(self, *error: object) -> None:
            super().__exit__(*error)
            self.moved[0] = -1

    monkeypatch.setattr(ort_bound, "Refresh", Half)
    with pytest.raises(RuntimeError, match="all of its layers or none"):
        ask(tiny, "avl")


def test_damaged_kernels_are_refused(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "LIBRARY", path)
    with pytest.raises(AvlError, match="compile them with python -m avl_plugins"):
        LVLM.load(tiny_package, backend="ort-cpu")


def test_a_batch_of_different_prompts_equals_single_runs(tiny: LVLM) -> None:
    asked = [sample(task, "held-out", 5 + i) for i, task in enumerate(("caption", "vqa", "ocr"))]
    prompts = [one.prompt for one in asked] + ["Describe the image."]
    images = [[one.image] for one in asked] + [[asked[0].image, asked[1].image]]
    for policy in POLICIES:
        options = {"policy": policy, "max_new_tokens": 12, "return_logits": True}
        batch = tiny.generate_batch(prompts, images, **options)
        for prompt, pictures, result in zip(prompts, images, batch, strict=True):
            single = tiny.generate(prompt, pictures, **options)
            assert result.token_ids == single.token_ids
            assert result.finish_reason == single.finish_reason
            np.testing.assert_allclose(result.logits, single.logits, atol=2e-4)


def test_streamed_pieces_are_the_text(tiny: LVLM) -> None:
    one = sample("ocr", "held-out", 1)
    pieces = list(tiny.stream(one.prompt, [one.image]))
    assert len(pieces) > 5
    assert "".join(pieces) == tiny.generate(one.prompt, [one.image]).text


def test_a_stop_string_cuts_the_text(tiny: LVLM) -> None:
    one = sample("caption", "held-out", 2)
    whole = tiny.generate(one.prompt, [one.image]).text
    stop = whole[10:16]
    result = tiny.generate(one.prompt, [one.image], stop=[stop])
    assert result.finish_reason == "stop"
    assert result.text == whole[: whole.index(stop)]


def test_sampling_follows_the_seed(tiny: LVLM) -> None:
    one = sample("caption", "held-out", 4)

    def draw(seed: int):
        return tiny.generate(one.prompt, [one.image], temperature=3.0, seed=seed).token_ids

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_a_picture_is_encoded_once(tiny: LVLM) -> None:
    pictures = [one.image for one in samples("vqa", "held-out", 2, start=900)]
    before = tiny.loaded.features.encoded
    tiny.generate("Describe the image.", [pictures[0], pictures[1], pictures[0]], max_new_tokens=1)
    tiny.generate("Read the text.", [pictures[1]], max_new_tokens=1)
    assert tiny.loaded.features.encoded == before + 2


def test_text_without_a_picture_runs_under_every_policy(tiny: LVLM) -> None:
    dense = tiny.generate("How many objects are there?", max_new_tokens=4, return_logits=True)
    assert dense.stats.visual_tokens == 0
    for policy in POLICIES:
        result = tiny.generate(
            "How many objects are there?", policy=policy, max_new_tokens=4, return_logits=True
        )
        assert result.logits.tobytes() == dense.logits.tobytes()


def test_placements_follow_the_policy(tiny: LVLM) -> None:
    result = ask(tiny, "avl:keep=0.5,core=0.3,refresh=3", return_placements=True)
    steps = [placement.step for placement in result.placements]
    # A refresh at steps 3, 6, ... holds from the next step on, while there is one.
    assert steps == [0, *range(4, len(result.token_ids) + 1, 3)]
    secondary = result.placements[0].core | result.placements[0].parked
    for placement in result.placements:
        assert placement.core.shape == (6, 144)
        assert (placement.core.sum(1) == 43).all()
        assert (placement.parked.sum(1) == 29).all()
        np.testing.assert_array_equal(placement.core | placement.parked, secondary)
    fastv = ask(tiny, "fastv", return_placements=True).placements
    assert len(fastv) == 1
    assert fastv[0].core.sum(1).tolist() == [144, 144, 72, 72, 72, 72]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.generate("", ["nowhere.png"]), "prompt"),
        (lambda m: m.generate("What?", ["nowhere.png"]), "nowhere.png"),
        (lambda m: m.generate("What?", max_new_tokens=0), "max_new_tokens"),
        (lambda m: m.generate("What?", policy="fastv:layer=3"), "--split 2,3"),
        (lambda m: m.generate("a " * 3000), "2048"),
        (lambda m: m.generate("What?", temperature=-1), "temperature"),
        (lambda m: m.generate_batch(["What?"], []), "list of images"),
        (lambda m: LVLM.load(m.package.folder, backend="abacus"), "abacus"),
        (lambda m: LVLM.load(m.package.folder, backend="tensorrt"), "avl-build"),
        (lambda m: LVLM.load(m.package.folder, policy="avl:core=0.9"), "core"),
    ],
)
def test_a_bad_call_gets_one_line(tiny: LVLM, call, says: str) -> None:
    with pytest.raises(AvlError) as caught:
        call(tiny)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_context_limit_ends_a_reply(tiny: LVLM) -> None:
    limit = tiny.package.manifest.dims.max_positions
    prompt = "a " * (limit - 20)
    length = len(tiny.processor.encode(prompt, []).input_ids)
    assert limit - 20 < length < limit
    result = tiny.generate(prompt, max_new_tokens=400, stop=[])
    assert len(result.token_ids) <= limit - length + 1

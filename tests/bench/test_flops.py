"""Arithmetic of whole requests by formula, against a hand count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.evaluate.cost import (
    Request,
    decode_flops,
    placed_rows,
    prefill_flops,
    request_flops,
)
from avl_runtime.evaluate.measure import flops_share
from avl_runtime.generate.decode import Decoder
from avl_runtime.package.dims import Dims
from avl_runtime.tasks import sample

# d = 8 (2 heads of 4, as many for K and V), m = 10, 4 layers.
DIMS = Dims(8, 10, 4, 2, 2, 4, 50, 512, 1)


def layer(rows: int, pairs: int) -> int:
    """4 n d^2 + 2 pairs d + 3 n d m, where prefill has n^2 pairs."""
    return 4 * rows * 64 + 2 * pairs * 8 + 3 * rows * 80


def flops(policy: str, request: Request) -> tuple[float, list[float]]:
    actions = parse(policy).actions()
    return request_flops(DIMS, actions, request, *placed_rows(DIMS, actions, request.visual))


# 10 visual and 6 text tokens, of which 2 stand before the first picture.
ASKED = Request(prompt=16, visual=10, steps=4, before=2)


def test_dense() -> None:
    prefill, steps = flops("dense", ASKED)
    assert prefill == 4 * layer(16, 256)
    assert steps == [4 * layer(1, 16 + g) for g in (1, 2, 3, 4)]


def test_heads_of_layers_have_sizes_of_their_own() -> None:
    dims = replace(DIMS, head_dim=8, head_dims=(4, 8, 4, 8))
    wide = 2 * (4 * 8 * 16 + 2 * 4 * 16 + 3 * 80)  # of a row that reads three others and itself
    assert decode_flops(dims, [3] * 4) == 2 * layer(1, 4) + wide


def test_fastv() -> None:
    prefill, steps = flops("fastv:layer=2,keep=0.5", ASKED)
    assert prefill == 2 * layer(16, 256) + 2 * layer(11, 121)
    assert steps == [2 * layer(1, 16 + g) + 2 * layer(1, 11 + g) for g in (1, 2, 3, 4)]


def test_avl_reads_more_at_refreshes() -> None:
    prefill, steps = flops("avl:keep=0.5,core=0.2,refresh=3", ASKED)
    assert prefill == 4 * layer(16, 256)
    read = [2, 2, 5, 2]  # core, core, all secondary, core
    assert steps == [4 * layer(1, 6 + g + read[g - 1]) for g in (1, 2, 3, 4)]


def test_a_text_budget_leaves_what_comes_before_pictures() -> None:
    _, steps = flops("avl:keep=1,core=1,text=0.1,text_min=3", ASKED)
    # 4 text tokens behind the picture and those generated, of which 3 stay.
    assert steps == [4 * layer(1, 2 + 3 + 10 + 1)] * 4
    alone = Request(prompt=6, visual=0, steps=2, before=6)
    assert flops("avl:text=0.1,text_min=3", alone) == flops("dense", alone)


def test_grouped_heads_shrink_two_projections() -> None:
    grouped = Dims(8, 10, 1, 2, 1, 4, 50, 512, 1)
    prefill, _ = request_flops(grouped, (), ASKED, [10], [0])
    assert prefill == layer(16, 256) - 16 * 8 * 2 * 4


@pytest.mark.parametrize(
    "policy",
    [
        "dense",
        "fastv:keep=0.3",
        "avl:keep=0.7,core=0.2",
        "avl+fastv",
        "divprune:tokens=30",
        "pool:keep=0.5+fastv:keep=0.5+avl:keep=0.4",
    ],
)
def test_rows_are_placed_as_a_run_places_them(tiny: LVLM, policy: str) -> None:
    asked = sample("caption", "held-out", 0)
    result = tiny.generate(
        asked.prompt, [asked.image], policy=policy, max_new_tokens=1, return_placements=True
    )
    placed, actions = result.placements[0], parse(policy).actions()
    prompt = tiny.processor.encode(asked.prompt, [asked.image])
    request = Request.of(prompt.image_mask, 0, prompt.media).under(actions)
    assert request.visual == result.stats.visual_tokens_read
    active, parked = placed_rows(tiny.package.manifest.dims, actions, request.visual)
    assert placed.core.sum(1).tolist() == active
    assert placed.parked.sum(1).tolist() == parked


def test_a_share_counts_the_rows_that_steps_read(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands before the picture is never evicted, and does not count as evictable."""
    policy = "avl:keep=1,core=1,text=0.3,text_min=2"
    asked = sample("caption", "held-out", 3)
    prompt = tiny.processor.encode(asked.prompt, [asked.image])
    dims, read = tiny.package.manifest.dims, []
    run = Decoder.run

    def noted(decoder: Decoder, *arguments: Any) -> Any:
        (sequence,) = decoder.members
        read.append([int(n) for cache in sequence.caches for n in cache.active_len[:, 0]])
        return run(decoder, *arguments)

    monkeypatch.setattr(Decoder, "run", noted)
    result = tiny.generate(
        asked.prompt, [asked.image], policy=policy, max_new_tokens=20, return_placements=True
    )
    count, steps = len(prompt.input_ids), result.stats.new_tokens - 1
    assert len(read) == steps > 4  # some of which evict
    assert prompt.image_mask.argmax() > 0
    prefill = dims.num_layers * [count]
    dense = prefill_flops(dims, prefill)
    dense += sum(decode_flops(dims, dims.num_layers * [count + g]) for g in range(steps))
    found = prefill_flops(dims, prefill) + sum(decode_flops(dims, rows) for rows in read)
    assert flops_share(dims, prompt, parse(policy), result) == pytest.approx(
        found / dense, rel=1e-12
    )


def test_a_request_of_text_alone_evicts_nothing() -> None:
    assert Request.of(np.zeros(6, np.bool_), 2) == Request(6, 0, 2, 6)
    mask = np.array([0, 0, 1, 1, 0, 1, 0], np.bool_)
    assert Request.of(mask, 3) == Request(7, 3, 3, 2)

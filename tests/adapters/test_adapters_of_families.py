"""Adapters of decoders and towers are merged in every family as PEFT merges them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.made import adapted, train
from adapters.test_merge import assert_merged, planned
from families import (
    test_internvl,
    test_llava_next,
    test_llava_onevision,
    test_qwen2_5_vl,
    test_qwen3_vl,
    test_video_llava,
)
from families.support import Case, write_checkpoint

TOWERS = ("vision_tower", "image_tower", "visual")
FAMILIES = [
    module.CASES[0]
    for module in (
        test_llava_next,
        test_llava_onevision,
        test_video_llava,
        test_internvl,
        test_qwen2_5_vl,
        test_qwen3_vl,
    )
]


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_every_linear_and_the_patches(case: Case, tmp_path: Path) -> None:
    base = tmp_path / "base"
    write_checkpoint(case, base)
    patches = r".*(patch_embedding|patch_embeddings\.projection|patch_embed\.proj)"
    linears = (
        r".*(q_proj|k_proj|qkv|out_proj|fc1|fc2|up_proj|down_proj|linear_\d|linear_fc\d|mlp\.[02])"
    )
    folder = train(base, tmp_path / "adapter", target_modules=f"{patches}|{linears}", r=2)
    plan = planned(base, tmp_path, lora=folder)
    assert_merged(plan, adapted(base, folder))
    assert plan.adapter is not None
    changed = plan.adapter.changes.keys() & plan.store.plain.keys()
    assert any("language_model" in name for name in changed)
    tower = [name for name in changed if any(part in name for part in TOWERS)]
    assert any("patch" in name for name in tower)
    assert len(tower) > 4

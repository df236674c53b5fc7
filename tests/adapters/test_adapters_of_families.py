"""Adapters of decoders and towers are merged in every family as PEFT merges them."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from adapters.made import adapted, base_model, train
from adapters.test_merge import assert_merged
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from families.every import CASES
from families.support import write_checkpoint

DECODERS = ("language_model.layers", "text_model.layers")


@pytest.mark.parametrize("family", CASES)
def test_every_linear_and_the_patches(family: str, tmp_path: Path) -> None:
    """Of decoder, tower and projector; the tower cuts patches by a convolution or a linear."""
    base = tmp_path / "base"
    write_checkpoint(CASES[family], base)
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    modules = [name for name, one in base_model(base).named_modules() if isinstance(one, kinds)]
    trained = [name for name in modules if name != "lm_head"]
    folder = train(base, tmp_path / "adapter", target_modules=trained, r=2)
    plan = make_plan(Options(str(base), tmp_path / "out", lora=folder))
    assert_merged(plan, adapted(base, folder))
    assert plan.adapter is not None
    changed = plan.adapter.changes.keys() & plan.store.plain.keys()
    assert changed == {f"{name}.weight" for name in trained} & plan.store.plain.keys()
    decoder = [name for name in changed if any(part in name for part in DECODERS)]
    text = CASES[family].config.get_text_config()
    sparse = plan.family.decoder.dims.experts is not None  # where attention has the only linears
    assert len(decoder) >= (4 if sparse else 5) * text.num_hidden_layers
    assert any("patch" in name for name in changed)
    assert len(changed) - len(decoder) > 4

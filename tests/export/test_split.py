"""Where decoders are cut: the default fits every model and the package's own policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from avl_export.cli import main
from avl_runtime import LVLM
from export.checkpoints import make_config, write_random

Refused = Callable[..., str]


@pytest.fixture(scope="module", params=[1, 2])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of as few layers as transformers' own tests have."""
    config = make_config(text={"num_hidden_layers": request.param})
    return write_random(tmp_path_factory.mktemp("small") / str(request.param), config)


def plan(model: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[int]:
    assert main(["--model", str(model), "--dry-run", "--json", *arguments]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    found: list[int] = report["split"]
    return found


def test_a_small_decoder_is_exported_by_default(small: Path, tmp_path: Path) -> None:
    """Its logits are transformers'."""
    assert main(["--model", str(small), "--out", str(tmp_path / "out"), "--no-check"]) == 0
    model = LVLM.load(tmp_path / "out", backend="ort-cpu", threads=1)
    layers = model.package.manifest.dims.num_layers
    assert model.package.manifest.splits() == ((1,) if layers == 2 else ())
    found = model.generate("w5 w6 w7", max_new_tokens=1, return_logits=True)
    ids = torch.from_numpy(model.processor.encode("w5 w6 w7").input_ids)[None]
    reference = LlavaForConditionalGeneration.from_pretrained(small, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(input_ids=ids).logits[0, -1].numpy()
    assert found.logits is not None
    np.testing.assert_allclose(found.logits[0], expected, atol=1e-4, rtol=0)


def test_a_cut_that_is_asked_for_must_be_there(small: Path, refused: Refused) -> None:
    line = refused(small, "--split", "2")
    assert "leave --split out" in line
    assert ("no cut in a model of one layer" in line) == (small.name == "1")


def test_the_default_policy_gets_its_cut(master: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(master, capsys=capsys) == [2]
    assert plan(master, "--policy", "fastv", capsys=capsys) == [2]
    assert plan(master, "--policy", "fastv:layer=1", capsys=capsys) == [1, 2]
    assert plan(master, "--policy", "fastv:layer=1", "--split", "1", capsys=capsys) == [1]


def test_a_policy_that_the_package_could_not_serve(master: Path, refused: Refused) -> None:
    assert "--policy: expected layers from 1 to 2" in refused(master, "--policy", "fastv:layer=9")
    line = refused(master, "--policy", "fastv:layer=1", "--split", "2")
    assert "--split: expected layer 1 among them" in line
    line = refused(master, "--policy", "pyramiddrop:layer=1,every=1,stages=2", "--split", "1")
    assert "--split: expected layer 2 among them" in line

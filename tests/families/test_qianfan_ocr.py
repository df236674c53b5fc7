"""Qianfan-OCR: tiles with a thumbnail, a placeholder that is no token, no videos."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from transformers import (
    GotOcr2ImageProcessorPil,
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    QianfanOCRProcessor,
    QianfanOCRVisionConfig,
    Qwen3Config,
)

from avl_export.checkpoint.source import Source
from avl_export.cli import main as avl_export
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from export.checkpoints import join_file, split_file
from families.shared import FamilyTests
from families.support import Case, refused
from families.test_internvl import MEAN, NAMED, PATCH, SHAPE, SPECIAL, STD, TEMPLATE, TILE, TOKENS


def processor(tokenizer: Any) -> QianfanOCRProcessor:
    names = {**NAMED, "context_image_token": "<IMG_CONTEXT>"}
    tokenizer._set_model_specific_special_tokens(names)
    size = {"height": TILE, "width": TILE}
    return QianfanOCRProcessor(
        GotOcr2ImageProcessorPil(size=size, max_patches=6, image_mean=MEAN, image_std=STD),
        tokenizer,
        image_seq_length=TOKENS,
        chat_template=tokenizer.chat_template,
    )


CASES = (
    Case(
        name="qianfan-ocr",
        model=QianfanOCRForConditionalGeneration,
        config=QianfanOCRConfig(
            vision_config=QianfanOCRVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=[TILE, TILE],
                patch_size=[PATCH, PATCH],
                use_qk_norm=True,
                norm_type="rms_norm",
                use_mean_pooling=False,
            ),
            text_config=Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True),
            tie_word_embeddings=True,
            image_token_id=SPECIAL.index("<IMG_CONTEXT>"),
            image_seq_length=TOKENS,
        ),
        special=SPECIAL,
        template=TEMPLATE.replace("<IMG_CONTEXT>", "<image>"),
        processor=processor,
        files={"tokenizer_config.json": {"extra_special_tokens": NAMED}},
    ),
)


# Where transformers saves the tower's parts.
ATTENTION = "vision_model.encoder.layers.1.attn"


class TestQianfanOcr(FamilyTests):
    cases = CASES
    # One tile; wide and tall ones; the most tiles, and a picture smaller than a tile.
    turns = ((), ((64, 61),), ((97, 61), (40, 130)), ((500, 9), (6, 5), (90, 64)))
    asked = ((97, 50),)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config.json": {"downsample_ratio": 0.4}}, "downsample_ratio"),
        ({"tokenizer_config.json": {"extra_special_tokens": []}}, "start_image_token"),
    ],
)
def test_variants_that_are_refused(make: Any, tmp_path: Path, changes: Any, said: str) -> None:
    assert said in refused(make(CASES[0]), tmp_path, changes)


def test_rows_of_joined_tensors_are_read_in_place(make: Any, tmp_path: Path) -> None:
    """Queries, keys and values are a third each of what is stored."""
    folder = make(CASES[0]).folder
    places = make_plan(Options(str(folder), tmp_path / "x.avl")).weights.places
    with safe_open(folder / "model.safetensors", "np") as file:
        stored = {kind: file.get_tensor(f"{ATTENTION}.qkv.{kind}") for kind in ("weight", "bias")}
    for kind, whole in stored.items():
        for part, rows in zip("qkv", np.split(whole, 3), strict=True):
            placed = places[f"model.vision_tower.layers.1.attention.{part}_proj.{kind}"]
            source = Source(placed.key, folder / "model.safetensors", placed.record)
            np.testing.assert_array_equal(source.read_whole(), rows)


def test_rows_that_are_no_three_thirds_are_refused(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(make(CASES[0]).folder, tmp_path / "model")
    header, data = split_file(folder / "model.safetensors")
    header[f"{ATTENTION}.qkv.weight"]["shape"].reverse()
    join_file(folder / "model.safetensors", header, data)
    assert avl_export(["--model", str(folder), "--out", str(tmp_path / "x.avl"), "--dry-run"]) == 1
    assert f"{ATTENTION}.qkv.weight: expected a tensor used as stored" in capsys.readouterr().err

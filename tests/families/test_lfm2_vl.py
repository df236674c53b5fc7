"""LFM2-VL: tiles and patches of any picture, short convolutions between layers of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Lfm2VlProcessor

from avl_export.cli import main as avl_export
from avl_runtime import LVLM
from avl_runtime.vision.load.images import ImageError
from avl_runtime.vision.patched_tiles import PatchedTiles
from families.engines import EngineTests
from families.shared import PROMPT
from families.states import StateTests
from families.support import Case, Made, picture, refused, without_checks
from families.torch_tiles import TorchTiles
from support.traced import traced_once

STATE, ROWS = "conv", "full_attention"
PATCH, MERGE, TILE, SIDE = 4, 2, 40, 5
SIZES: dict[str, Any] = {
    "encoder_patch_size": PATCH,
    "downsample_factor": MERGE,
    "tile_size": TILE,
    "max_tiles": 6,
    "min_image_tokens": 4,
    "max_image_tokens": 16,
}
MARKS = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 7) for column in range(1, 7)]
BEGIN, WHOLE, END = "<|image_start|>", "<|img_thumbnail|>", "<|image_end|>"
SPECIAL = (
    *("<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>", "<image>"),
    *(BEGIN, END, WHOLE, *MARKS),
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def config() -> Lfm2VlConfig:
    """Layers and heads that do not divide evenly; an MLP that is no multiple of its width."""
    text = {
        "model_type": "lfm2",
        "vocab_size": 352,
        "hidden_size": 64,
        "intermediate_size": 100,
        "block_multiple_of": 8,
        "num_hidden_layers": 5,
        "layer_types": [STATE, ROWS, STATE, STATE, ROWS],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "num_patches": SIDE**2,
        "vision_use_head": False,
    }
    return Lfm2VlConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=SPECIAL.index("<image>"),
        projector_hidden_size=48,
        tie_word_embeddings=False,
    )


def processor(tokenizer: Any) -> Any:
    images = TorchTiles(**SIZES)
    return without_checks(Lfm2VlProcessor)(images, tokenizer, chat_template=tokenizer.chat_template)


CASES = (
    Case(
        name="lfm2_vl",
        model=Lfm2VlForConditionalGeneration,
        config=config(),
        special=SPECIAL,
        pad="<|pad|>",
        bos="<|startoftext|>",
        template=TEMPLATE,
        processor=processor,
    ),
)


class TestLfm2Vl(StateTests, EngineTests):
    cases = CASES
    steps: ClassVar[dict[int, int]] = dict.fromkeys((1, 7, 256), 40)
    turns = ((), ((20, 30),), ((97, 61),), ((3, 90), (64, 64)))

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """Patches of all tiles, cell by cell, without what pads them."""
        found = []
        for values, (rows, columns) in zip(
            inputs["pixel_values"].numpy(), inputs["spatial_shapes"].tolist(), strict=True
        ):
            held = values[: rows * columns]
            lines = held.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE, -1)
            found.append(lines.swapaxes(1, 2).reshape(rows * columns, -1))
        return np.concatenate(found)

    def test_states_do_not_grow(self, made: Made) -> None:
        dims = made.model.package.manifest.dims
        assert dims.states is not None and dims.states.heads == 0
        states = 3 * 4 * 2 * dims.states.channels
        for text in ("What?", PROMPT * 3):
            rows = made.model.generate(text, max_new_tokens=2).stats.kv_bytes - states
            assert rows > 0 and rows % (2 * 2 * 2 * dims.head_dim * 4) == 0

    def test_int4(self, made: Made, tmp_path: Path) -> None:
        out = tmp_path / "int4.avl"
        command = ["--model", str(made.folder), "--out", str(out), "--quantize", "int4", "--check"]
        with traced_once(made.graphs):
            assert avl_export(command) == 0
        model = LVLM.load(out, backend="ort-cpu", threads=1)
        assert len(model.generate(PROMPT, [picture((97, 61))], max_new_tokens=4).token_ids) == 4

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(width=st.integers(1, 150), height=st.integers(1, 150))
    def test_pictures_of_any_size(self, made: Made, width: int, height: int) -> None:
        """Tiles, sizes and numbers of tokens are those of transformers."""
        layout = made.model.package.manifest.image.layout
        assert isinstance(layout, PatchedTiles)
        image = Image.new("RGB", (width, height), (90, 0, 200))
        theirs = TorchTiles(**SIZES)([image], return_tensors="pt", return_row_col_info=True)
        wanted = [tuple(one) for one in theirs["spatial_shapes"].tolist()]
        if wanted[-1][0] * wanted[-1][1] > theirs["pixel_attention_mask"].shape[1]:
            with pytest.raises(ImageError, match="less long and narrow, of at most 100 patches"):
                layout.prepare(image, "?")
            return  # transformers' model refuses what its processor makes
        got = layout.prepare(image, "?")
        shapes = layout.shapes(got)
        assert shapes == wanted
        assert got.tokens == sum(rows * columns for rows, columns in shapes) // MERGE**2
        assert got.replacement.count("?") == got.tokens
        tiles = int(theirs["image_rows"][0]) * int(theirs["image_cols"][0])
        assert got.replacement.count("<|img_row_") == (tiles if tiles > 1 else 0)

    def test_a_long_picture_without_the_whole_of_it(self, made: Made) -> None:
        """Tiles fit where the whole, which nobody asks for, would be too long and narrow."""
        image = Image.new("RGB", (1000, 4))
        options: dict[str, Any] = {"return_tensors": "pt", "return_row_col_info": True}
        theirs = TorchTiles(**SIZES, use_thumbnail=False)([image], **options)
        layout = made.model.package.manifest.image.layout
        with pytest.raises(ImageError, match="less long and narrow"):
            layout.prepare(image, "?")
        got = replace(layout, overview=False).prepare(image, "?")
        assert [list(one) for one in layout.shapes(got)] == theirs["spatial_shapes"].tolist()
        self._same_pixels(list(got.runs()), self.pixels(theirs, "image"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"encoder_patch_size": 8}, "encoder_patch_size of 4, as config.json has it, found 8"),
            ({"tile_size": 44}, "tiles of whole cells of 8 pixels"),
            ({"max_tiles": 1}, "limits in order"),
            ({"resample": 0}, "expected resample of"),
            ({"min_image_tokens": "4"}, "expected a whole number from 1 to"),
        ],
    )
    def test_processors_that_the_runtime_is_not(
        self, made: Made, changes: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        assert message in refused(made, tmp_path, {"preprocessor_config.json": changes})

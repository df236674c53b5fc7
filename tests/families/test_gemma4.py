"""Gemma 4: rows that layers share, inputs of layers, heads of two sizes, pictures of any size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma4Config, Gemma4ForConditionalGeneration
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

from avl_export.cli import main as avl_export
from avl_runtime import LVLM
from avl_runtime.execute.protocol import BackendError
from avl_runtime.package.package import PackageError, load_package
from avl_runtime.vision.patches import filled_size
from families.engines import EngineTests
from families.shared import PROMPT, FamilyTests
from families.support import Case, Made, picture, refused, without_checks
from families.windows import TurnTests, WindowTests

SPECIAL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<turn|>",
    "<|turn>",
    "<|image>",
    "<image|>",
    "<|image|>",
    "<|audio|>",
    "<|video|>",
)
NAMES = {"boi": "<|image>", "eoi": "<image|>", "image": "<|image|>"}
TEMPLATE = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<|turn>' + role + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
    "{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '\n\n<|image|>\n\n' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{{ '<turn|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}{%- endif -%}"
)
SLIDING, FULL = "sliding_attention", "full_attention"
SIZE, MERGE, LAYERS = 4, 3, 7
WIDTH = 64


def config(window: int, **text: Any) -> Gemma4Config:
    kinds = [SLIDING, FULL, SLIDING, FULL, SLIDING, SLIDING, FULL]  # the last three share
    return Gemma4Config(
        text_config={
            "vocab_size": 320,
            "vocab_size_per_layer_input": 320,
            "hidden_size": WIDTH,
            "hidden_size_per_layer_input": 32,
            "intermediate_size": 96,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "layer_types": kinds,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "sliding_window": window,
            "final_logit_softcapping": 9.0,
            "max_position_embeddings": 1024,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
            **text,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": SIZE,
            "position_embedding_size": 256,
            "pooling_kernel_size": MERGE,
            "use_clipped_linears": True,
            "standardize": True,
        },
        boi_token_id=SPECIAL.index("<|image>"),
        eoi_token_id=SPECIAL.index("<image|>"),
        image_token_id=SPECIAL.index("<|image|>"),
        audio_token_id=SPECIAL.index("<|audio|>"),
        video_token_id=SPECIAL.index("<|video|>"),
    )


class Settled(Gemma4ForConditionalGeneration):  # type: ignore[misc]
    """With values of its own in the buffers that checkpoints store."""

    def __init__(self, config: Gemma4Config) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(1)
        for name, buffer in self.named_buffers():
            if name.endswith(("layer_scalar", "std_scale")):
                buffer.copy_(0.7 + 0.3 * torch.rand(buffer.shape, generator=generator))
            elif name.endswith("std_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith(("put_min", "put_max")):
                bound = 1 + torch.rand((), generator=generator)
                buffer.copy_(-bound if name.endswith("min") else bound)


def processor(tokenizer: Any) -> Any:
    tokenizer._set_model_specific_special_tokens(
        {f"{n}_token": text for n, text in NAMES.items()}
        | {"audio_token": "<|audio|>", "boa_token": "<|audio|>", "eoa_token": "<|audio|>"}
    )
    return without_checks(Gemma4Processor)(
        None,
        Gemma4ImageProcessorPil(patch_size=SIZE, pooling_kernel_size=MERGE, max_soft_tokens=70),
        tokenizer,
        None,
        chat_template=tokenizer.chat_template,
    )


def case(name: str, window: int, **text: Any) -> Case:
    return Case(
        name=name,
        model=Settled,
        config=config(window, **text),
        special=SPECIAL,
        bos="<bos>",
        eos="<turn|>",
        pad="<pad>",
        template=TEMPLATE,
        processor=processor,
    )


CASES = (case("gemma4", 9),)
SHALLOW = case(
    "gemma4-shallow",
    9,
    num_hidden_layers=4,
    num_kv_shared_layers=2,
    layer_types=[SLIDING, FULL] * 2,
)


class TestGemma4(FamilyTests, WindowTests, TurnTests, EngineTests):
    cases = CASES
    divided = WIDTH**0.5
    chunks = (7, 1000)

    def pixels(self, inputs: Any, kind: str) -> np.ndarray:
        """Cell by cell and channel by channel, padding left out."""
        found = []
        for values, places in zip(
            inputs["pixel_values"], inputs["image_position_ids"], strict=True
        ):
            held = (places >= 0).all(-1).numpy()
            column, row = places.numpy()[held].T
            order = np.lexsort((column, row, column // MERGE, row // MERGE))
            one = values.numpy()[held][order].reshape(len(order), SIZE * SIZE, 3)
            found.append(one.transpose(0, 2, 1).reshape(len(order), -1))
        return np.concatenate(found)

    def test_rows_of_layers_that_share_are_held_once(self, made: Made) -> None:
        loaded = made.model.loaded
        caches = loaded.executor.new_caches()
        assert [cache.numbers for cache in caches] == [(0, 1), (2, 3)]
        dims = loaded.package.manifest.dims
        assert dims.sources == {4: 2, 5: 2, 6: 3}
        assert dims.shared is not None and dims.shared.intermediate_size == 192

    def test_rows_are_as_wide_as_the_heads_of_their_layer(self, made: Made) -> None:
        """Also where they are parked in fewer bits, whose answers are as near as those in 8."""
        images, policy = [picture((97, 61))], "avl:keep=0.8,core=0.2,refresh=3"
        asked = {"policy": policy, "max_new_tokens": 12, "return_logits": True}
        exact = made.model.generate(PROMPT, images, **asked).logits
        assert exact is not None
        for kind, active, parked in (("fp16", 16, 16), ("int8", 8, 8), ("int8-int4", 8, 4)):
            kept = LVLM.load(made.package, backend="ort-cpu", threads=1, kv=kind)
            executor, scales = kept.loaded.executor, 8 * (kind != "fp16")
            first, second = executor.new_caches()
            widths = [one.shape[3] for one in (*first.k_active, *second.v_active)]
            assert widths == [16, 32, 16, 32]
            assert executor.row_bytes == [  # of two heads, a key and a value each
                (2 * (size * active // 4 + scales), 2 * (size * parked // 4 + scales))
                for size in widths
            ]
            found = kept.generate(PROMPT, images, **asked).logits
            assert found is not None
            assert 0 < np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)

    def test_rows_that_windows_let_go_of_are_kept_for_no_other_prompt(
        self, made: Made, tmp_path: Path
    ) -> None:
        kept = [{"prefix_cache": 1 << 20}, {"prefix_cache": "auto", "cache_dir": tmp_path}]
        for options in kept:
            with pytest.raises(BackendError, match="that keep all of their rows, found a window"):
                LVLM.load(made.package, backend="ort-cpu", threads=1, **options)


def test_a_package_that_lacks_its_heads_sizes_is_refused(make: Any, tmp_path: Path) -> None:
    """Those of packages of before, which have none, are filled up to the largest."""
    folder = shutil.copytree(make(CASES[0]).package, tmp_path / "x.avl", symlinks=True)
    manifest = json.loads((folder / "avl.json").read_text())
    del manifest["dims"]["head_dims"]
    (folder / "avl.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=r"expected k_active\.0 \[any, 2, any, 32\] as avl.json"):
        LVLM.load(folder, backend="ort-cpu")


def test_weights_of_four_bits(make: Any, tmp_path: Path, capsys: Any) -> None:
    """In one graph, as all layers share; the table of layers' inputs as the embedding."""
    command = ["--model", str(make(SHALLOW).folder), "--out", str(tmp_path / "x.avl")]
    command += ["--quantize", "int4", "--block-size", "32", "--quantize-also", "embedding"]
    assert avl_export([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    table = next(one for one in plan["components"] if one["name"] == "inputs of layers")
    assert avl_export([*command, "--check"]) == 0
    assert "check against transformers" in capsys.readouterr().out
    manifest = LVLM.load(tmp_path / "x.avl", backend="ort-cpu").package.manifest
    assert manifest.splits() == () and manifest.layer_table is not None
    assert manifest.embedding.dtype == manifest.layer_table.table.dtype == "I4"
    assert manifest.quantization is not None and manifest.quantization.layer_table is not None
    rows, columns = manifest.layer_table.table.shape
    assert table["bytes"] == rows * (columns // 2 + columns // 32 * 4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"shape": [319, 32 * LAYERS]}, "of 224 numbers for each of 320 tokens"),
        ({"shape": [320, 32]}, "of 224 numbers for each of 320 tokens"),
        ({"file": "other.safetensors"}, "in one of the shards"),
    ],
)
def test_a_table_of_other_sizes_is_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    folder = shutil.copytree(make(CASES[0]).package, tmp_path / "x.avl", symlinks=True)
    manifest = json.loads((folder / "avl.json").read_text())
    manifest["layer_table"]["table"] |= changes
    (folder / "avl.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=expected):
        load_package(folder)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([70, 280, 1120]))
def test_pictures_are_as_large_as_transformers_makes_them(
    height: int, width: int, tokens: int
) -> None:
    expected = get_aspect_ratio_preserving_size(height, width, 16, 9 * tokens, 3)
    assert filled_size(height, width, 48, tokens * 48**2) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_bidirectional_attention": "vision"}, "without attention to later tokens"),
        ({"enable_moe_block": True, "num_experts": 4}, "without a mixture of experts"),
        ({"attention_k_eq_v": True, "num_global_key_value_heads": 1}, "one number of heads"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    made = make(CASES[0])
    text = made.case.config.to_dict()["text_config"] | changes
    text.pop("per_layer_config", None)
    assert expected in refused(made, tmp_path, {"config.json": {"text_config": text}})


def test_pictures_longer_than_there_are_positions_for(make: Any, tmp_path: Path) -> None:
    changes = {"preprocessor_config.json": {"max_soft_tokens": 140}}
    line = refused(make(CASES[0]), tmp_path, changes)
    assert "expected positions for the 420 patches of the longest picture, found" in line


@pytest.mark.parametrize("option", ["--split=3", "--policy=fastv:layer=4,keep=0.5"])
def test_no_cut_between_rows_and_who_reads_them(
    make: Any, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--model", str(make(CASES[0]).folder), "--out", str(tmp_path / "x.avl"), "--dry-run"]
    assert avl_export([*out, option]) == 1
    assert "expected no cut between layer 2 and layer 4" in capsys.readouterr().err

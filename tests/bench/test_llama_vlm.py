"""llama.cpp asked about pictures: what its converter is given, and how prompts are put together."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from avl_runtime.bench.peers import gguf_vlm_build as build
from avl_runtime.bench.peers.llama_vlm_peer import around

IMAGE = 9


def checkpoint(folder: Path, kind: str) -> Path:
    folder.mkdir()
    config = {"model_type": kind, "text_config": {}, "vision_config": {"model_type": "x"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_parts_are_named_beside_the_checkpoints_own_files(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "internvl")
    build.write_named(source, tmp_path / "made" / "named")
    config = json.loads((tmp_path / "made" / "named" / "config.json").read_text())
    assert config["text_config"] == {"architectures": ["Qwen3ForCausalLM"]}
    assert config["vision_config"]["architectures"] == ["InternVisionModel"]
    weights = tmp_path / "made" / "named" / "model.safetensors"
    assert weights.is_symlink() and weights.read_bytes() == b"weights"
    assert "architectures" not in (source / "config.json").read_text()


def test_other_models_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "llava")
    with pytest.raises(SystemExit, match=r"expected a checkpoint of idefics3, .* found llava"):
        build.write_named(source, tmp_path / "named")


def test_a_place_without_the_converter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CONVERTER", tmp_path / "none")
    with pytest.raises(SystemExit, match=r"expected llama\.cpp's converter .*; run scripts/peers"):
        build.main(tmp_path, tmp_path, "q4_0")


def test_special_tokens_keep_their_names_and_others_stand_for_bytes(tmp_path: Path) -> None:
    told = {"added_tokens": [{"id": 1, "content": "<image>"}, {"id": 299, "content": "</s>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    written: dict[str, Any] = {}
    writer = SimpleNamespace(
        **{
            f"add_{name}": lambda value, name=name: written.update({name: value})
            for name in (
                *("tokenizer_model", "token_list", "token_scores", "token_types"),
                *("add_bos_token", "add_space_prefix"),
            )
        }
    )
    model = SimpleNamespace(dir_model=tmp_path, hparams={"vocab_size": 300}, gguf_writer=writer)
    build.write_words(model)
    words, kinds = written["token_list"], written["token_types"]
    assert len(words) == len(set(words)) == len(kinds) == len(written["token_scores"]) == 300
    assert words[:3] == ["<0x00>", "<image>", "<0x01>"] and words[257:259] == ["\n", "\n\n"]
    assert [words[1], words[299]] == ["<image>", "</s>"] and kinds[1] == kinds[299] == build.CONTROL
    assert kinds.count(build.BYTE) == 256 and words[256] == "<0xFF>"
    assert kinds.count(build.CONTROL) == 2 + 36 and "<row_6_col_6>" in words


@pytest.mark.parametrize("extra", [0, 2, 5, 50])
def test_prompts_are_as_long_as_avls(extra: int) -> None:
    """`extra` tokens are put around the picture by llama.cpp, which the text leaves out."""
    counts = [extra, 4]
    pictures = SimpleNamespace(
        mtmd_input_chunks_size=len,
        mtmd_input_chunks_get=lambda chunks, number: chunks[number],
        mtmd_input_chunk_get_n_tokens=int,
    )
    ids = [1, 2, *[IMAGE] * 4, 3, 4, 5, 6]
    before, after, count = around(pictures, counts, ids, IMAGE)
    assert before == {0: [1, 2], 2: [1, 2], 5: [1], 50: []}[extra]
    assert after == {0: [3, 4, 5, 6], 2: [5, 6], 5: [], 50: []}[extra]
    assert count == (len(ids) if extra < 50 else 54)

"""What else lies in the folders of adapters, and how their bases are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.made import edit
from adapters.test_choice import adapter, planned, trained
from avl_export.checkpoint.adapters.choice import choose

__all__ = ["adapter", "trained"]

Refused = Callable[..., str]


def say(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | values))


def notes(adapter: Path, base: Path, tmp_path: Path) -> list[str]:
    return [line for line in planned(base, tmp_path, adapter).notes if "beside the adapter" in line]


def test_pickles_of_training_are_no_weights(base: Path, adapter: Path, tmp_path: Path) -> None:
    """As Trainer leaves them; some tools copy the base's configuration too."""
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "non_lora_trainables.bin"):
        (adapter / name).write_bytes(b"pickle")
    shutil.copy(base / "config.json", adapter)
    plan = planned(adapter, tmp_path)
    assert plan.checkpoint.folder == base
    assert f"merged into its base, {base}" in plan.notes[0]


def test_files_that_say_the_same_are_no_news(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "preprocessor_config.json", "generation_config.json"):
        shutil.copy(base / name, adapter)
    # As a tokenizer is saved that has been called with these, by another version.
    say(adapter, "tokenizer.json", padding={"strategy": "BatchLongest"}, truncation={})
    say(adapter, "generation_config.json", transformers_version="4.57.0")
    say(adapter, "preprocessor_config.json", processor_class="LlavaProcessor")
    assert notes(adapter, base, tmp_path) == []


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer.json", {"added_tokens": []}),
        ("tokenizer_config.json", {"eos_token": {"content": "w7"}}),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
        ("chat_template.json", {"chat_template": "{{ messages }}"}),
        ("chat_template.jinja", {"it": "need be no JSON"}),
        ("preprocessor_config.json", {"size": {"shortest_edge": 70}}),
        ("generation_config.json", {"eos_token_id": 7}),
    ],
)
def test_a_file_that_says_otherwise_is_named(
    file: str, values: dict[str, Any], base: Path, adapter: Path, tmp_path: Path
) -> None:
    say(adapter, file, **values)
    (line,) = notes(adapter, base, tmp_path)
    assert f"beside the adapter {file} says otherwise than the base's" in line
    assert "--model" in line


def test_all_of_them_in_one_line(base: Path, adapter: Path, tmp_path: Path) -> None:
    say(adapter, "tokenizer_config.json", bos_token="w5", chat_template="{{ messages }}")
    say(adapter, "generation_config.json", repetition_penalty=1.5)
    (line,) = notes(adapter, base, tmp_path)
    assert "adapter tokenizer_config.json, generation_config.json say otherwise" in line


def test_a_damaged_file_stops_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "generation_config.json").write_text("{")
    (line,) = notes(adapter, base, tmp_path)
    assert "generation_config.json" in line


def test_the_revision_of_a_base_on_the_hub(base: Path, adapter: Path) -> None:
    """As PEFT's AutoPeftModel takes it."""
    edit(adapter, base_model_name_or_path="some/base", revision="v2")
    choice = choose(str(adapter), None)
    assert (choice.model, choice.revision) == ("some/base", "v2")
    assert choice.note is not None
    assert choice.note.endswith("its base, some/base at v2")
    edit(adapter, base_model_name_or_path=str(base))
    assert choose(str(adapter), None).revision is None


def test_named_adapters_lie_deeper(base: Path, adapter: Path, tmp_path: Path) -> None:
    """PEFT saves an adapter that has a name of its own in a folder of that name."""
    shutil.copytree(adapter, tmp_path / "saved" / "style")
    with pytest.raises(Exception, match="found one in style; pass the folder inside"):
        choose(str(base), tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("some/adapter", "'hf download some/adapter'"),
        ("./nope", "no such folder; check the path"),
        ("~nobody/adapter", "no such folder; check the path"),
        ("x" * 5000, "no such folder; check the path"),
        ("a\0b", "a\\x00b: expected an adapter's folder"),
    ],
)
def test_no_such_folder(name: str, part: str, base: Path, refused: Refused) -> None:
    line = refused(base, "--lora", name)
    assert part in line
    assert len(line) < 300


def test_a_file_of_an_adapter(base: Path, adapter: Path, refused: Refused) -> None:
    line = refused(base, "--lora", str(adapter / "adapter_model.safetensors"))
    assert "found a file; pass the folder that holds it" in line


@pytest.mark.parametrize("named", ["~nobody/base", "y" * 3000, "a\0b"])
def test_a_base_that_no_path_can_be(named: str, adapter: Path, refused: Refused) -> None:
    edit(adapter, base_model_name_or_path=named)
    line = refused(adapter)
    assert "name the base with --model" in line
    assert len(line) < 600

"""The chat template is the one that transformers' processor takes, wherever it lies."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.templates import chat_template, template_note
from avl_export.families import FamilyError

FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja")
PLACES = (*FILES, "tokenizer_config.json")
ALL = [some for n in range(1, 5) for some in itertools.combinations(PLACES, n)]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """avl-tiny's files without weights and without a template."""
    for path in tiny_checkpoint.glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def put(folder: Path, file: str, template: Any) -> None:
    """Write a template, or what is in its place, into one of the files."""
    path = folder / file
    if file.endswith(".jinja"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(template)
        return
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, "chat_template": template}))


def by_transformers(folder: Path) -> str:
    processor = AutoProcessor.from_pretrained(folder)
    if processor.chat_template is None:
        return processor.tokenizer.get_chat_template()
    return processor._resolve_chat_template(None)


def ours(folder: Path) -> Checkpoint:
    return Checkpoint("x", folder, {})


@pytest.mark.parametrize("places", ALL, ids=" ".join)
def test_of_several_files_the_one_of_transformers_counts(
    folder: Path, places: tuple[str, ...]
) -> None:
    for place in places:
        put(folder, place, f"template of {place}")
    assert chat_template(ours(folder)) == by_transformers(folder)
    note = template_note(ours(folder))
    if len(places) == 1:
        assert note is None
    else:
        assert note is not None and "\n" not in note
        chosen, aside = note.split("left aside: ")
        assert [place for place in PLACES if place in chosen] == [places[0]]
        assert [place for place in PLACES if place in aside] == list(places[1:])


@pytest.mark.parametrize("place", PLACES[:2])
def test_null_and_equal_templates_are_passed_over(folder: Path, place: str) -> None:
    put(folder, "tokenizer_config.json", "the tokenizer's")
    if place == "processor_config.json":
        put(folder, place, None)
        assert chat_template(ours(folder)) == by_transformers(folder) == "the tokenizer's"
    put(folder, place, "the tokenizer's")
    assert template_note(ours(folder)) is None


NAMED = {"default": "the default", "tool_use": "with tools"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("processor_config.json", NAMED),
        ("tokenizer_config.json", [{"name": n, "template": t} for n, t in NAMED.items()]),
        ("tokenizer_config.json", NAMED),
    ],
)
def test_of_named_templates_the_default_counts(folder: Path, place: str, value: Any) -> None:
    put(folder, place, value)
    assert chat_template(ours(folder)) == by_transformers(folder) == "the default"
    assert "tool_use" in (template_note(ours(folder)) or "")


def test_templates_in_a_folder(folder: Path) -> None:
    more = "additional_chat_templates"
    put(folder, f"{more}/rag.jinja", "with documents")
    put(folder, f"{more}/default.jinja", "one default")
    assert chat_template(ours(folder)) == by_transformers(folder) == "one default"
    put(folder, "chat_template.jinja", "the default")
    assert chat_template(ours(folder)) == by_transformers(folder) == "the default"
    assert "rag" in (template_note(ours(folder)) or "")


def test_templates_none_of_which_is_the_default(folder: Path) -> None:
    """transformers refuses too, once a conversation is to be rendered."""
    put(folder, "tokenizer_config.json", {"rag": "a", "tool_use": "b"})
    with pytest.raises(ValueError, match="default"):
        by_transformers(folder)
    with pytest.raises(FamilyError, match=r"named default, found rag, tool_use; put the one"):
        chat_template(ours(folder))


def test_no_template_at_all(folder: Path) -> None:
    assert chat_template(ours(folder)) is None
    assert "no chat template" in (template_note(ours(folder)) or "")


def test_a_template_that_is_not_on_this_machine_is_not_missed(folder: Path) -> None:
    """A dry run knows nothing of files that an export would fetch."""
    checkpoint = replace(ours(folder), missing=("model.safetensors", "tokenizer.json"))
    assert template_note(checkpoint) is None
    whole = replace(ours(folder), missing=("model.safetensors",))
    assert "no chat template" in (template_note(whole) or "")


def test_a_template_that_is_no_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(FamilyError, match=r"chat_template\.jinja: expected a chat template in UTF"):
        chat_template(ours(folder))

"""Special tokens, their names and prompts are those of transformers' tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from avl_export.checkpoint.checkpoint import Checkpoint, find_checkpoint
from avl_export.checkpoint.tokenizer import packaged_tokenizer
from avl_export.cli import main as avl_export
from avl_export.families import FamilyError, load_family
from avl_export.plan.texts import Texts, read_texts
from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.prompts.processor import Processor
from face.support import manifest, sentencepiece_tokenizer
from support.random_llava import write_checkpoint

NAMES = ("bos", "eos", "unk", "pad", "begin")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %} "
    "{% endfor %}"
    + " ".join(f"{{{{ {name}_token }}}}" for name in NAMES)
    # Its text would want a picture.
    + "{{ image_token is defined }}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "model"
    write_checkpoint(folder, 1)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of its files without weights."""
    return shutil.copytree(made, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))


def edit(folder: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / file
    settings = json.loads(path.read_text()) if path.exists() else {}
    change(settings)
    path.write_text(json.dumps(settings))


def texts_of(folder: Path) -> Texts:
    checkpoint = find_checkpoint(str(folder), dry_run=True)
    return read_texts(checkpoint, load_family(checkpoint, torch.float32))


def ids_of(folder: Path, prompt: str = "What is it?") -> tuple[list[int], list[int]]:
    """A prompt's ids by a package of this folder, and by transformers."""
    texts = texts_of(folder)
    assert texts.tokenizer is not None
    template = (folder / "chat_template.jinja").read_text()
    ours = Processor(manifest(template, texts.tokens), texts.tokenizer.tokenizer)
    said = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    wanted = AutoProcessor.from_pretrained(folder).apply_chat_template(
        said, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return ours.encode(prompt).input_ids.tolist(), wanted["input_ids"][0]


def tokenizer_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "tokenizer_config.json", lambda s: s.update(changes))


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit(folder, "tokenizer_config.json", lambda s: [s.pop(name, None) for name in names])

    return change


def special_tokens_map(folder: Path) -> None:
    """As transformers wrote it before it had added_tokens_decoder: this file wins then."""
    without("added_tokens_decoder")(folder)
    named = {"eos_token": {"content": "<pad>", "lstrip": False}, "unk_token": "</s>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))


def post_processor(value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit(folder, "tokenizer.json", lambda s: s.update(post_processor=value))

    return change


def adds_an_end(folder: Path) -> None:
    def change(settings: dict[str, Any]) -> None:
        end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
        settings["post_processor"]["single"].append(end)
        entry = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
        settings["post_processor"]["special_tokens"]["</s>"] = entry

    edit(folder, "tokenizer.json", change)


def generation_says(**ids: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "generation_config.json", lambda s: s.update(ids))


CHANGES: dict[str, list[Callable[[Path], None]]] = {
    "as it is": [],
    "another end": [tokenizer_config(eos_token="<pad>")],
    "an end as an object": [
        tokenizer_config(eos_token={"__type": "AddedToken", "content": "<pad>", "lstrip": False})
    ],
    "no bos": [without("bos_token")],
    "no bos and none added": [without("bos_token"), post_processor(None)],
    "a bos and none added": [post_processor(None)],
    "add_bos_token": [post_processor(None), tokenizer_config(add_bos_token=True)],
    "add_bos_token false": [tokenizer_config(add_bos_token=False)],
    "an end added": [adds_an_end],
    "unk": [tokenizer_config(unk_token="</s>")],
    "no names": [without("bos_token", "eos_token", "pad_token", "extra_special_tokens")],
    "extra names": [
        tokenizer_config(extra_special_tokens={"image_token": "<image>", "begin_token": "</s>"})
    ],
    "an extra name by itself": [tokenizer_config(begin_token="<pad>")],
    "extra tokens without names": [tokenizer_config(extra_special_tokens=["<pad>", "</s>"])],
    "special_tokens_map": [special_tokens_map],
    "other ids in generation_config": [
        generation_says(bos_token_id=0, eos_token_id=[0, 2], pad_token_id=2)
    ],
    "ids of no token": [
        generation_says(bos_token_id=4000, eos_token_id=[2, 5000], pad_token_id=9999)
    ],
    "negative ids": [generation_says(bos_token_id=-1, pad_token_id=-1)],
}


@pytest.mark.parametrize("starts", [False, True], ids=["", "bos in the template"])
@pytest.mark.parametrize("name", CHANGES)
def test_prompts_have_the_ids_of_transformers(folder: Path, name: str, starts: bool) -> None:
    template = f"{'{{ bos_token }}' * starts}{TEMPLATE}"
    (folder / "chat_template.jinja").write_text(template)
    for change in CHANGES[name]:
        change(folder)
    found, wanted = ids_of(folder)
    assert found == wanted


def test_a_later_turn_is_closed_by_the_tokenizers_end(made: Path, tmp_path: Path) -> None:
    """Also where no token has the id of another stop token."""
    folder = shutil.copytree(made, tmp_path / "model")
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}"
        "{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    generation_says(eos_token_id=[5000, 2, 0])(folder)
    out = tmp_path / "out"
    assert avl_export(["--model", str(folder), "--out", str(out), "--no-check"]) == 0
    chat = LVLM.load(out, backend="ort-cpu", threads=1).chat()
    chat.send("One?", max_new_tokens=3)
    before = chat._kept.sequence.length
    chat.send("Two?", max_new_tokens=1)
    read = chat._kept.sequence.token_ids[before:]
    user = AutoTokenizer.from_pretrained(folder)("user", add_special_tokens=False)["input_ids"]
    assert read[1:3] == [2, user[0]]


def test_a_class_that_builds_another_tokenizer(folder: Path) -> None:
    """LlamaTokenizer puts its own rules for blanks in the place of those of tokenizer.json."""
    config = {"model_type": "video_llava", "text_config": {"model_type": "llama"}}
    (folder / "config.json").write_text(json.dumps(config))
    PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece_tokenizer(legacy=True),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    tokenizer_config(tokenizer_class="LlamaTokenizer", legacy=False)(folder)
    found = packaged_tokenizer(Checkpoint("x", folder, {}))
    wanted = AutoTokenizer.from_pretrained(folder)
    for text in ("USER: the  one", "<image>\nthe one</s> two", "</s>two", " é日", "a\n\nb"):
        assert found.tokenizer.encode(text).ids == wanted(text)["input_ids"], text
        ids = wanted(text)["input_ids"]
        assert found.tokenizer.decode(ids, skip_special_tokens=False) == wanted.decode(ids)
    assert found.note is not None and "LlamaTokenizer" in found.note


def test_tokens_of_other_files_are_known_to_the_package(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer_config(extra_special_tokens=["<box>"])(folder)
    found = packaged_tokenizer(Checkpoint("x", folder, {}))
    text, grown = "What<box>is", AutoTokenizer.from_pretrained(folder)
    assert found.tokenizer.encode(text).ids == grown(text)["input_ids"]
    assert found.tokenizer.encode(text).ids != tokenizer(text)["input_ids"]
    assert found.note is not None and "\n" not in found.note


def test_a_tokenizer_like_the_file_is_packaged_as_the_file(folder: Path) -> None:
    found = packaged_tokenizer(Checkpoint("x", folder, {}))
    assert found.data == (folder / "tokenizer.json").read_bytes() and found.note is None


def test_what_transformers_cannot_load_is_said(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text("[]")
    without("added_tokens_decoder")(folder)
    found = packaged_tokenizer(Checkpoint("x", folder, {}))
    assert "<s>" in found.names["bos_token"] and "image_token" not in found.names
    assert found.note is not None and "transformers cannot load it" in found.note


def test_what_transformers_makes_of_a_file_and_cannot_use_is_said(tmp_path: Path) -> None:
    """Its class for Gemma takes a file's words for its own model, which wants an <unk>."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    own = Tokenizer(WordLevel({"unknown": 0}, unk_token="unknown"))
    own.save(str(tmp_path / "tokenizer.json"))
    found = packaged_tokenizer(Checkpoint("x", tmp_path, {}))
    assert found.data == (tmp_path / "tokenizer.json").read_bytes()
    assert found.note is not None and "transformers cannot load it: Unk token" in found.note


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    edit(folder, "tokenizer.json", lambda s: s.update(model=5))
    with pytest.raises(AvlError, match=r"tokenizer\.json: expected a tokenizer, found"):
        texts_of(folder)


def test_a_damaged_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(FamilyError, match=r"chat_template\.jinja: expected a chat template"):
        texts_of(folder)


def smaller(folder: Path, rows: int) -> None:
    edit(folder, "config.json", lambda s: s["text_config"].update(vocab_size=rows))


def test_tokens_of_every_prompt_that_the_matrix_lacks(folder: Path) -> None:
    """Weights of before a tokenizer grew."""
    smaller(folder, 256)
    with pytest.raises(FamilyError, match=r"tokens below 256.*in all of them"):
        texts_of(folder)


def test_tokens_of_some_prompts_that_the_matrix_lacks(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[0].text }}")
    smaller(folder, 264)
    texts = texts_of(folder)
    assert any("tokens that the model lacks" in note for note in texts.notes)
    assert texts.tokenizer is not None
    held = manifest("{{ messages[0].content[0].text }}", texts.tokens)
    held = replace(held, embedding=replace(held.embedding, shape=(264, 192)))
    processor = Processor(held, texts.tokenizer.tokenizer)
    assert processor.encode("xyz").input_ids.max() < 264
    known = texts.tokenizer.tokenizer
    beyond = next(one for one in known.encode(" picture").tokens if known.token_to_id(one) >= 264)
    with pytest.raises(AvlError) as caught:
        processor.encode("xyz picture")
    assert f"{beyond!r} (token {known.token_to_id(beyond)})" in str(caught.value)


def test_an_added_token_beyond_the_matrix_is_named(folder: Path) -> None:
    tokenizer_config(extra_special_tokens=[AddedToken("<box>").content])(folder)
    smaller(folder, len(AutoTokenizer.from_pretrained(folder)) - 1)
    (note,) = texts_of(folder).notes[-1:]
    assert "1 tokens that the model lacks, as '<box>'" in note


def test_eos_of_the_configuration_stays_what_stops(folder: Path) -> None:
    """`generate` stops at generation_config's tokens, whatever the tokenizer calls its end."""
    tokenizer_config(eos_token="<pad>")(folder)
    generation_says(eos_token_id=[2, -1, 3])(folder)
    tokens = texts_of(folder).tokens
    assert tokens.eos == (2, 3) and ("eos_token", "<pad>") in (tokens.names or ())

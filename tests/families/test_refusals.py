"""Families refuse bad checkpoints in one line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from avl_export.checkpoint.aliases import HUB_IDS, known_files
from avl_export.checkpoint.supported import UNSUPPORTED, FamilyError, check_supported
from avl_export.cli import main
from avl_export.families import SUPPORTED
from export.checkpoints import join_file, make_config, split_file, write_random
from families.every import CASES, TESTS
from families.support import write_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14503\n"
SHARD, INDEX = "model.safetensors", "model.safetensors.index.json"
FAMILIES = tuple(CASES)


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with nothing wrong."""
    folder = tmp_path_factory.mktemp("refusals") / "model"
    if request.param == "llava":
        return write_random(folder, make_config())
    write_checkpoint(CASES[request.param], folder)
    return folder


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    path = folder / name
    content = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: v for key, v in content.items() if v is not None}))


def header(change: Callable[[dict[str, Any], str], object]) -> Callable[[Path], None]:
    """Change the safetensors header; the change is given the key of a linear of the decoder."""

    def damage(folder: Path) -> None:
        entries, data = split_file(folder / SHARD)
        linear = "layers.1.self_attn.q_proj.weight"
        key = next(k for k in entries if linear in k and "tower" not in k)
        change(entries, key)
        join_file(folder / SHARD, entries, data)

    return damage


def shift(entries: dict[str, Any], key: str) -> None:
    begin, end = entries[key]["data_offsets"]
    entries[key]["data_offsets"] = [begin + 4, end + 4]


def cut(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:-64])


def no_processor(folder: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)


def in_text(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        edit(folder, "config.json", text_config=config["text_config"] | changes)

    return damage


def in_tower(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder, "config.json", vision_config=config["vision_config"] | changes)


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def index(shard: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / SHARD).unlink(missing_ok=True)  # beside it no index is read
        edit(folder, INDEX, weight_map={"weight": shard})

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is no JSON": (write("config.json", b"{"), "expected a JSON object"),
    "config is no text": (write("config.json", b"\xff\xfe\0"), "expected a JSON object"),
    "config is a list": (write("config.json", b"[1]"), "expected a JSON object"),
    "another architecture": (lambda f: edit(f, "config.json", model_type="florence2"), "florence2"),
    "no architecture": (lambda f: edit(f, "config.json", model_type=None), "architecture"),
    "another decoder": (in_text(model_type="gpt2"), "gpt2"),
    "a tower that is none": (lambda f: in_tower(f, model_type=[1]), "config.json"),
    "a size that is none": (in_text(hidden_size="wide"), "config.json"),
    "layers without an end": (in_text(num_hidden_layers=10**12), "num_hidden_layers"),
    "a tower without an end": (
        lambda f: in_tower(f, num_hidden_layers=10**12, depth=10**12),
        "at most 4096",
    ),
    "another size": (in_text(intermediate_size=40), "config.json"),
    "more layers": (in_text(num_hidden_layers=9), "expected"),
    "quantized by something": (
        lambda f: edit(f, "config.json", quantization_config={"quant_method": "magic"}),
        "magic",
    ),
    "no weights": (lambda f: (f / SHARD).unlink(), "expected"),
    "truncated": (cut, "cut short"),
    "empty": (write(SHARD, b""), "safetensors header"),
    "a page instead of weights": (write(SHARD, b"<!DOCTYPE html>" * 9), "safetensors header"),
    "only a pickle": (lambda f: (f / SHARD).rename(f / "pytorch_model.bin"), "safe_serialization"),
    "offsets that lie": (header(shift), "expected to start where"),
    "a stranger": (header(lambda h, k: h.update(stranger=h.pop(k))), "stranger"),
    "a weight short": (
        header(lambda h, k: h.update({"x.rotary_emb.inv_freq": h.pop(k)})),
        "layers.1.self_attn.q_proj",
    ),
    "another dtype": (header(lambda h, k: h[k].update(dtype="I32")), "found I32"),
    "another shape": (header(lambda h, k: h[k].update(shape=[1, *h[k]["shape"]])), "shape"),
    "a shard elsewhere": (index("../other.safetensors"), "do not use this checkpoint"),
    "a shard that is gone": (index("gone.safetensors"), "gone.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer is no JSON": (write("tokenizer.json", b"{"), "tokenizer.json"),
    "tokenizer without its image token": (write("tokenizer.json", b"{}"), "tokenizer.json"),
    "no processor": (no_processor, "preprocessor_config.json"),
    "processor is no JSON": (write("preprocessor_config.json", b"nothing"), "preprocessor_config"),
    "weights left to Git LFS": (write(SHARD, POINTER), "run 'git lfs pull'"),
    "a tokenizer left to Git LFS": (write("tokenizer.json", POINTER), "run 'git lfs pull'"),
    "a scale that is none": (
        lambda f: edit(f, "preprocessor_config.json", rescale_factor=[1]),
        "rescale_factor",
    ),
    "a mean that is none": (
        lambda f: edit(f, "preprocessor_config.json", image_mean=[0.5, "", [1]]),
        "image_mean",
    ),
}


# What reads most files is the same for all families: these are shown everything.
SHOWN_ALL = ("llava", "llava_next", "internvl", "qwen3_vl")
OWN = (  # and all are shown what a family looks at by itself
    "another decoder",
    "a tower that is none",
    "a size that is none",
    "a tower without an end",
    "another size",
    "no tokenizer",
    "tokenizer without its image token",
    "no processor",
    "a scale that is none",
    "a mean that is none",
)
PAIRS = [
    (family, name)
    for family in FAMILIES
    for name in (tuple(DAMAGES) if family in SHOWN_ALL else OWN)
    if (family, name) != ("gemma4", "a mean that is none")  # it normalizes nothing
]


@pytest.mark.parametrize(("whole", "name"), PAIRS, indirect=["whole"])
def test_refused(
    name: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, part = DAMAGES[name]
    folder = shutil.copytree(whole, tmp_path / "model")
    damage(folder)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(["--model", str(folder), "--out", str(tmp_path / "out"), "--no-check"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("avl-export: ")
    assert part in lines[0]
    assert "expected" in lines[0]
    assert "found" in lines[0] or ";" in lines[0]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("window", ["wide", 4.5, True, -1, [2]])
def test_a_window_that_is_none(
    window: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_random(tmp_path / "model", make_config())
    in_text(sliding_window=window)(folder)
    capsys.readouterr()  # progress of what wrote it
    assert main(["--model", str(folder), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json: expected sliding_window to be a number of tokens" in line


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("chunked_attention", "found 'chunked_attention' as that of layer {}; this version"),
        ("linear_attention", "found 0 convolutions, 0 delta rules and attention in layer {}"),
    ],
)
def test_a_kind_of_layer_that_no_graph_computes(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, said: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] in ("qwen3_5", "minicpmv4_6") and kind == "linear_attention":
        pytest.skip("it has such layers")
    if config["model_type"] == "gemma4":
        pytest.skip("its configuration makes full attention of the last layer, whatever is said")
    count = config["text_config"]["num_hidden_layers"]
    in_text(layer_types=["full_attention"] * (count - 1) + [kind])(folder)
    assert main(["--model", str(folder), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    # Some configurations of transformers refuse it by themselves.
    assert said.format(count - 1) in line or f"configuration, found '{kind}'" in line


def test_windowed_layers_without_a_window(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_random(tmp_path / "model", make_config(text_type="qwen2"))
    count = json.loads((folder / "config.json").read_text())["text_config"]["num_hidden_layers"]
    in_text(layer_types=["sliding_attention"] * count, sliding_window=None)(folder)
    capsys.readouterr()  # progress of what wrote it
    assert main(["--model", str(folder), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json: expected a sliding_window for the layers of sliding_attention" in line


def test_nothing_wrong(whole: Path, tmp_path: Path) -> None:
    """What the damages are done to is accepted."""
    assert main(["--model", str(whole), "--out", str(tmp_path / "out"), "--dry-run"]) == 0


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_a_family_that_needs_what_no_graph_computes(model_type: str) -> None:
    """By what it needs, and it is one that transformers has."""
    assert model_type not in SUPPORTED
    assert model_type in CONFIG_MAPPING
    with pytest.raises(FamilyError) as refused:
        check_supported(Path("folder"), {"model_type": model_type})
    line = str(refused.value)
    assert line.startswith("folder: expected an architecture whose decoder attends to all tokens ")
    assert f"{model_type!r}, which has {UNSUPPORTED[model_type]}; this version of avl" in line


@pytest.mark.parametrize(
    "model_type", sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - {*SUPPORTED, *UNSUPPORTED})
)
def test_every_other_family_of_transformers_is_refused_by_name(model_type: str) -> None:
    with pytest.raises(FamilyError) as refused:
        check_supported(Path("folder"), {"model_type": model_type})
    line = str(refused.value)
    assert line.startswith("folder: expected an architecture of llava, ")
    assert line.endswith(f"found {model_type!r}; this version of avl cannot export it")


@pytest.mark.parametrize("model_type", [name for name in SUPPORTED if name != "glm46v"])
def test_every_family_is_held_to_what_all_are(model_type: str) -> None:
    """glm46v is glm4v by another name, which `test_glm4v.py` compares."""
    tests = TESTS[model_type]
    counts = {len(turn) for turn in tests.turns}
    assert {0, 1} < counts, "expected a prompt without a picture, with one, and with several"
    sides = {side for turn in tests.turns for size in turn for side in size}
    assert any(side % 2 for side in sides)
    assert {policy.partition(":")[0] for policy in tests.policies} >= {"fastv", "avl"}
    aliases = [known_files(alias)["config.json"]["model_type"] for alias in HUB_IDS]
    assert model_type in aliases

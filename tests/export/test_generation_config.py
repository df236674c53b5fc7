"""A checkpoint's generation settings are the package's defaults, as `generate` applies them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.generation_config import generation_defaults
from avl_export.cli import main as avl_export
from avl_runtime import LVLM, Options
from avl_runtime.package.generation_defaults import NEUTRAL
from avl_runtime.package.package import MANIFEST
from support.random_llava import draw_images, draw_shape, write_checkpoint

SEED, STEPS, PROMPT = 1, 40, "What is in the picture?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A checkpoint, its package and transformers' model of it."""
    folder = tmp_path_factory.mktemp("generation") / "model"
    write_checkpoint(folder, SEED)
    out = folder.with_name("out")
    assert avl_export(["--model", str(folder), "--out", str(out), "--no-check"]) == 0
    reference = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return folder, out, reference


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return draw_images(3, 1, draw_shape(SEED).image_size)


def with_settings(folder: Path, place: Path, **settings: Any) -> Checkpoint:
    """The checkpoint's small files, with these generation settings."""
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors"))
    path = place / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return Checkpoint("x", place, json.loads((place / "config.json").read_text()))


def package_with(package: Path, place: Path, checkpoint: Checkpoint) -> LVLM:
    """The package as an export of these settings makes it."""
    shutil.copytree(package, place)
    manifest = json.loads((place / MANIFEST).read_text())
    defaults, note = generation_defaults(checkpoint)
    assert note is None
    manifest["generation"] = {
        name: getattr(defaults, name) for name in NEUTRAL.__dataclass_fields__
    }
    (place / MANIFEST).write_text(json.dumps(manifest))
    return LVLM.load(place, backend="ort-cpu", threads=1)


def by_transformers(
    made: tuple[Path, Path, Any], checkpoint: Checkpoint, images: list[Image.Image]
) -> list[int]:
    folder, _, reference = made
    processor = AutoProcessor.from_pretrained(folder)
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    inputs = processor(text=text, images=images or None, return_tensors="pt")
    reference.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    with torch.inference_mode():
        out = reference.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def plain_tokens(made: tuple[Path, Path, Any], images: list[Image.Image]) -> list[int]:
    model = LVLM.load(made[1], backend="ort-cpu", threads=1)
    return list(model.generate(PROMPT, images, max_new_tokens=STEPS).token_ids)


def settings_around(plain: list[int]) -> dict[str, dict[str, Any]]:
    """Settings that each change what is said without any."""
    first, second, third = plain[0], plain[1], plain[2]
    return {
        "repetition penalty": {"repetition_penalty": 1.3},
        "a small repetition penalty": {"repetition_penalty": 1.05},
        "no single token twice": {"no_repeat_ngram_size": 1},
        "no three tokens twice": {"no_repeat_ngram_size": 3},
        "bad words": {"bad_words_ids": [[first], [second, third], [2]]},
        "suppressed": {"suppress_tokens": [first, third]},
        "suppressed first": {"begin_suppress_tokens": [first, second]},
        "several": {
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 2,
            "suppress_tokens": [third],
            "begin_suppress_tokens": [first],
            "bad_words_ids": [[second]],
        },
        "sampling that is not set": {"temperature": 0.1, "top_p": 0.5, "top_k": 1},
    }


@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
def test_greedy_tokens_equal_those_of_generate(
    made: tuple[Path, Path, Any], pictures: list[Image.Image], tmp_path: Path, with_image: bool
) -> None:
    images = pictures if with_image else []
    plain, unchanged = plain_tokens(made, images), []
    for number, (name, settings) in enumerate(settings_around(plain).items()):
        checkpoint = with_settings(made[0], tmp_path / f"{number}", **settings)
        model = package_with(made[1], tmp_path / f"{number}.avl", checkpoint)
        found = list(model.generate(PROMPT, images, max_new_tokens=STEPS).token_ids)
        assert found == by_transformers(made, checkpoint, images), name
        unchanged += [name] * (found == plain)
        neutral = Options.neutral(STEPS)
        assert list(model.generate(PROMPT, images, options=neutral).token_ids) == plain, name
    assert unchanged == ["sampling that is not set"]


def test_the_reply_does_not_end_too_soon(
    made: tuple[Path, Path, Any], pictures: list[Image.Image], tmp_path: Path
) -> None:
    """Its stop token is one that is said early."""
    plain = plain_tokens(made, pictures)
    stop = plain[4]
    early = plain.index(stop)
    length = len(LVLM.load(made[1], backend="ort-cpu").processor.encode(PROMPT, pictures).input_ids)
    for number, settings in enumerate(
        (
            {},
            {"min_new_tokens": early + 3},
            {"min_length": length + early + 3},
            {"min_length": length + 20, "min_new_tokens": early + 1},
        )
    ):
        checkpoint = with_settings(made[0], tmp_path / f"{number}", eos_token_id=stop, **settings)
        package = tmp_path / f"{number}.avl"
        shutil.copytree(made[1], tmp_path / f"{number}.of")
        manifest = json.loads((tmp_path / f"{number}.of" / MANIFEST).read_text())
        manifest["tokens"]["eos"] = [stop]
        (tmp_path / f"{number}.of" / MANIFEST).write_text(json.dumps(manifest))
        model = package_with(tmp_path / f"{number}.of", package, checkpoint)
        found = list(model.generate(PROMPT, pictures, max_new_tokens=STEPS).token_ids)
        assert found == by_transformers(made, checkpoint, pictures)
        assert (len(found) == early + 1) == (not settings)


def test_sampling_counts_where_it_is_set(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """With what `generate` adds: it draws among 50 unless it is told otherwise."""
    _, _, reference = made
    rng = np.random.default_rng(0)
    for number, settings in enumerate(
        (
            {"do_sample": True},
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
            {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05},
            {"do_sample": True, "top_k": 0, "min_p": 0.1},
            {"do_sample": True, "top_p": 0.3, "temperature": None},
        )
    ):
        checkpoint = with_settings(made[0], tmp_path / f"{number}", **settings)
        defaults, note = generation_defaults(checkpoint)
        assert note is None
        config, _ = reference._prepare_generation_config(
            GenerationConfig.from_pretrained(checkpoint.folder)
        )
        rules = reference._get_logits_processor(config, 5, device="cpu", model_kwargs={})
        sampler = Options().over(defaults).sampler()
        assert sampler.draws
        seen = [5, 9, 11, 200, 9]
        logits = rng.normal(0, 3, 320).astype(np.float32)
        scores = rules(torch.tensor([seen]), torch.from_numpy(logits)[None].double())
        wanted = scores.softmax(-1)[0].numpy()
        found = sampler.probabilities(logits, seen)
        np.testing.assert_array_equal(found > 0, wanted > 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9)
        assert not Options(temperature=0).over(defaults).sampler().draws


def test_old_checkpoints_have_them_in_config(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    checkpoint = with_settings(made[0], tmp_path / "x")
    (checkpoint.folder / "generation_config.json").unlink()
    checkpoint.config.update(repetition_penalty=1.4, do_sample=True, top_k=3)
    defaults, _ = generation_defaults(checkpoint)
    assert (defaults.repetition_penalty, defaults.temperature, defaults.top_k) == (1.4, 1.0, 3)
    (checkpoint.folder / "generation_config.json").write_text("{}")
    assert generation_defaults(checkpoint) == (NEUTRAL, None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_beams": 4, "length_penalty": 1.2}, "num_beams 4"),
        ({"guidance_scale": 1.5}, "guidance_scale 1.5"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p 0.9"),
        ({"forced_eos_token_id": 2}, "forced_eos_token_id 2"),
        ({"repetition_penalty": -1}, "repetition_penalty -1"),
        ({"do_sample": True, "top_k": -1}, "top_k -1"),
        ({"suppress_tokens": "all"}, "suppress_tokens 'all'"),
        ({"bad_words_ids": [["a" * 500]]}, "bad_words_ids [['aaa"),
    ],
)
def test_what_cannot_be_held_is_named(
    made: tuple[Path, Path, Any], tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    _, note = generation_defaults(with_settings(made[0], tmp_path / "x", **settings))
    assert note is not None and named in note and "\n" not in note and len(note) < 300


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1, "do_sample": False, "typical_p": 0.9, "early_stopping": False},
        {"guidance_scale": 1.0, "diversity_penalty": 0.0, "max_new_tokens": 9, "use_cache": True},
        {"pad_token_id": -1, "transformers_version": "5.0.0", "output_logits": True},
    ],
)
def test_what_changes_no_reply_is_not_named(
    made: tuple[Path, Path, Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    checkpoint = with_settings(made[0], tmp_path / "x", **settings)
    assert generation_defaults(checkpoint) == (NEUTRAL, None)


def test_an_export_writes_them_and_says_what_it_leaves_out(
    made: tuple[Path, Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(made[0], tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(
        json.dumps({"eos_token_id": 2, "repetition_penalty": 1.05, "num_beams": 5, "top_p": 0.9})
    )
    assert avl_export(["--model", str(folder), "--out", str(tmp_path / "out"), "--no-check"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "num_beams" in line]
    assert told == [
        "avl-export: generation_config.json: not supported, and left out of the package: "
        "num_beams 5"
    ]
    kept = json.loads((tmp_path / "out" / MANIFEST).read_text())["generation"]
    assert kept == {**json.loads(json.dumps(NEUTRAL, default=_fields)), "repetition_penalty": 1.05}


def _fields(value: Any) -> Any:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}

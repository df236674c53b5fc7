"""What the tests of Qwen's families share: tokens, sizes and transformers' processors."""

from __future__ import annotations

import functools
import importlib
import json
import sys
import types
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import image_processing_backends, video_processing_utils

from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.families import load_family
from avl_runtime.generate.prefill import finished
from avl_runtime.prompts.features import FeatureCache
from avl_runtime.vision import patch_video
from avl_runtime.vision.load.videos import Video
from families.shared import PROMPT, STEPS, FamilyTests
from families.support import Made, call_processor, clip
from oracle.reading import read

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOKENS = {
    "image_token_id": SPECIAL.index("<|image_pad|>"),
    "video_token_id": SPECIAL.index("<|video_pad|>"),
    "vision_start_token_id": SPECIAL.index("<|vision_start|>"),
    "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
}
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": SPECIAL.index("<|im_end|>"),
    "pad_token_id": SPECIAL.index("<|endoftext|>"),
}
# As in Qwen/Qwen2-VL-7B-Instruct and Qwen/Qwen2.5-VL-7B-Instruct.
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MODES = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


class PatchTests(FamilyTests):
    """`FamilyTests` for encoders that read a picture as one run of patches, in their own order."""

    films = (((4, (40, 30)),), ((5, (33, 70)), (2, (8, 8))))

    @staticmethod
    def _same_pixels(inputs: list[dict[str, np.ndarray]], want: np.ndarray) -> None:
        np.testing.assert_allclose(as_theirs(inputs), want, atol=1e-6, rtol=0)

    def test_videos_whose_rate_is_known(self, made: Made) -> None:
        """Slow enough for the times of Qwen2.5-VL to pass the positions of the text behind."""
        film = clip(13, (40, 30))
        video = Video(film, 1.1)
        metadata = [{"total_num_frames": 13, "fps": 1.1, "duration": 13 / 1.1}]
        content = [{"type": "video"}, {"type": "text", "text": PROMPT}]
        text = made.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        options = {"do_sample_frames": True, "fps": 2, "video_metadata": metadata}
        want = dict(call_processor(made.processor, text, [], [film], **options))
        got = made.model.processor.encode(PROMPT, videos=[video])
        assert got.input_ids.tolist() == want["input_ids"][0].tolist()
        self._same_pixels([got.media[0].inputs], want["pixel_values_videos"].numpy())
        shown = read(made.reference, want)
        np.testing.assert_array_equal(got.positions, shown.positions)
        tokens, logits = made.generate(want, STEPS)
        answer = made.model.generate(
            PROMPT, videos=[video], max_new_tokens=STEPS, return_logits=True
        )
        assert list(answer.token_ids) == tokens
        np.testing.assert_allclose(answer.logits, logits, atol=self.tolerance, rtol=0)

    def test_an_encoder_may_take_frames_in_turns(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        film = clip(5, (40, 30))
        engine = made.model.loaded
        whole = engine.processor.encode(PROMPT, videos=[film])
        monkeypatch.setattr(patch_video, "PATCHES_PER_RUN", 1)
        parts = engine.processor.encode(PROMPT, videos=[film])
        assert len([*whole.media[0].runs()]) == 1 < len([*parts.media[0].runs()])
        expected, found = (
            finished(
                FeatureCache(engine.backend, engine.package.manifest.encoded).encoding(one.media)
            )[0]
            for one in (whole, parts)
        )
        self._close(found.rows, expected.rows)
        np.testing.assert_allclose(found.deepstack, expected.deepstack, atol=1e-4, rtol=0)

    def test_transformers_reads_our_prompts(self, made: Made) -> None:
        """What --check and tools give transformers is what its own processor makes."""
        checkpoint = open_checkpoint(str(made.folder))
        family = load_family(checkpoint, torch.float32)
        for images, videos in self._shown():
            prompt = made.model.processor.encode(PROMPT, images, videos)
            ours, theirs = family.reference_inputs(prompt), made.encode(PROMPT, images, videos)
            for name, tensor in ours.items():
                if name != "second_per_grid_ts":
                    np.testing.assert_allclose(tensor, theirs[name], atol=1e-6, rtol=0)
            mine, other = (read(made.reference, inputs) for inputs in (ours, theirs))
            np.testing.assert_array_equal(mine.positions, other.positions)
            if prompt.media:
                features = mine.embeds[mine.visual].numpy()
                self._close(features, other.embeds[other.visual].numpy())


def merged(made: Made, changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Parts of a case's config.json with some of their keys changed, as deep as they go."""
    parts = json.loads((made.folder / "config.json").read_text(encoding="utf-8"))
    return {name: _merge(parts[name], values) for name, values in changes.items()}


def _merge(before: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merge(before[name], value)
        for name, value in values.items()
        if isinstance(value, dict) and isinstance(before.get(name), dict)
    }
    return before | values | nested


def as_theirs(inputs: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """Our pixel values as transformers lays them out, [patches, D]."""
    rows = []
    for one in inputs:
        values = one["pixel_values"]
        if "order" in one:
            empty = np.repeat(one["mask"] < 0, 1, axis=1)
            assert not values[:, empty].any()
            frames, width = len(values), values.shape[-1]
            values = values.reshape(frames, -1, 4, width)[:, one["order"]]
        rows.append(values.reshape(-1, values.shape[-1]))
    return np.concatenate(rows)


def video_processor(family: str, **settings: Any) -> Any:
    """transformers' own video processor of `family`, as qwen2_vl or glm4v.

    It needs torchvision, of which it calls three functions; here they are torch's. Compared once
    with the same classes on torchvision 0.28: the same to the last bit.
    """
    return _video_class(family)(**settings)


@functools.cache
def video_module(family: str) -> Any:
    """The module of transformers with the video processor of `family`."""
    functional = _functional()
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    modules = {name: types.ModuleType(name) for name in names}
    vars(modules[names[-1]])["functional"] = functional
    modules[functional.__name__] = functional
    with patch.dict(sys.modules, modules):
        return importlib.import_module(f"transformers.models.{family}.video_processing_{family}")


@functools.cache
def _functional() -> types.ModuleType:
    module = types.ModuleType("torchvision.transforms.v2.functional")
    vars(module).update(
        resize=_resize,
        normalize=_normalize,
        grayscale_to_rgb=lambda video: video,
        InterpolationMode=types.SimpleNamespace(LANCZOS="lanczos"),
    )
    return module


@functools.cache
def _video_class(family: str) -> Any:
    module = video_module(family)
    theirs = next(
        value
        for name, value in vars(module).items()
        if name.endswith("VideoProcessor") and value.__module__ == module.__name__
    )
    functional = _functional()

    class OnTorch(theirs):  # type: ignore[misc,valid-type]
        def preprocess(self, videos: Any, **kwargs: Any) -> Any:
            names = {"tvF": functional, "pil_torch_interpolation_mapping": MODES}
            with (
                patch.multiple(image_processing_backends, create=True, **names),
                patch.object(video_processing_utils, "tvF", functional, create=True),
            ):
                return super().preprocess(videos, **kwargs)

    return OnTorch


def _resize(video: Tensor, size: Any, interpolation: str, antialias: bool) -> Tensor:
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    flat = video.reshape(-1, *video.shape[-3:])
    new = torch.nn.functional.interpolate(
        flat, tuple(size), mode=interpolation, antialias=antialias, align_corners=False
    )
    return new.reshape(*video.shape[:-2], *new.shape[-2:])


def _normalize(video: Tensor, mean: Tensor, std: Tensor, inplace: bool) -> Tensor:
    return (video - mean[:, None, None]) / std[:, None, None]

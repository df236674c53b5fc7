"""LLaVA-OneVision: one picture as tiles, several as squares, videos pooled; Qwen2 decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision import modeling_llava_onevision as theirs
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from avl_runtime.cli.run import main as avl_run
from avl_runtime.vision.blended import BlendedImage, shrink
from avl_runtime.vision.steps import ImageProcessing
from families import telling
from families.shared import FamilyTests, KeyLayoutTests
from families.support import Case, Images, Made, picture, refused, without_checks
from families.torch_videos import TorchVideos

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
TILE, PATCH, SIDE = 32, 6, 5  # the last two pixels of a tile belong to no patch
PINPOINTS = [[TILE * down, TILE * across] for down in (1, 2, 3) for across in (1, 2, 3)]
HALF = (0.5, 0.5, 0.5)

# As in llava-hf/llava-onevision-qwen2-7b-ov-hf.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}{# Render all video then #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def config(**changes: Any) -> LlavaOnevisionConfig:
    text = Qwen2Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    values = {
        "image_token_index": SPECIAL.index("<image>"),
        "video_token_index": SPECIAL.index("<video>"),
        "image_grid_pinpoints": PINPOINTS,
        "vision_aspect_ratio": "anyres_max_2",
    }
    return LlavaOnevisionConfig(vision_config=vision, text_config=text, **(values | changes))


def processor(tokenizer: Any) -> LlavaOnevisionProcessor:
    return without_checks(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(
            size={"height": TILE, "width": TILE},
            image_grid_pinpoints=PINPOINTS,
            image_mean=HALF,
            image_std=HALF,
        ),
        tokenizer,
        TorchVideos((TILE, TILE), None, HALF, HALF),
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=tokenizer.chat_template,
    )


def encode(
    made: Any, text: str, images: Images, videos: list[Images], **options: Any
) -> Mapping[str, Any]:
    """As transformers' apply_chat_template does: the pictures of a conversation in one list."""
    shown = {"images": [images] if images else None, "videos": videos or None}
    return made(text=text, return_tensors="pt", **shown, **options)


CASES = (
    Case(
        name="qwen2",
        model=LlavaOnevisionForConditionalGeneration,
        config=config(),
        special=SPECIAL,
        template=TEMPLATE,
        processor=processor,
        encode=encode,
        files={
            "video_preprocessor_config.json": {
                "size": {"height": TILE, "width": TILE},
                "image_mean": HALF,
                "image_std": HALF,
            }
        },
    ),
)


class TestLlavaOnevision(KeyLayoutTests, FamilyTests):
    cases = CASES
    # The second is shrunk, the third not; several are squares; the last is too narrow for tiles.
    turns = ((), ((97, 91),), ((60, 30),), ((40, 130), (64, 64), (9, 5)), ((500, 9),))
    films = (((3, (50, 40)),), ((2, (TILE, TILE)), (2, (20, 90))))

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """Without the tiles that fill up transformers' batch."""
        if kind == "video":
            return inputs["pixel_values_videos"].flatten(0, 1).numpy()
        if len(inputs["image_sizes"]) > 1:
            return inputs["pixel_values"][:, 0].numpy()
        size = inputs["image_sizes"][0]
        count = theirs.image_size_to_num_patches(size, PINPOINTS, TILE)
        return inputs["pixel_values"][0, :count].numpy()

    def test_heatmap_of_several_pictures_shows_them_as_squares(
        self, made: Made, tmp_path: Path
    ) -> None:
        files = []
        for number, size in enumerate([(97, 61), (20, 50)]):
            files += ["--image", str(tmp_path / f"{number}.png")]
            picture(size, number).save(files[-1])
        map_file = tmp_path / "map.png"
        arguments = [str(made.package), "What?", *files, "--heatmap", str(map_file)]
        assert avl_run([*arguments, "--policy", "avl", "--max-new-tokens", "2"]) == 0
        assert map_file.stat().st_size > 0


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    most=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_blending_is_the_packing_of_transformers(
    width: int, height: int, most: int, seed: int
) -> None:
    """Random features go through both."""
    pinpoints = tuple(map(tuple, PINPOINTS))
    steps = ImageProcessing(True, (TILE, TILE), 3, None, None, None, None)
    layout = BlendedImage("blended", steps, pinpoints, TILE, SIDE, most)
    got = layout.prepare(picture((width, height)), "x")

    count = theirs.image_size_to_num_patches((height, width), PINPOINTS, TILE)
    torch.manual_seed(seed)
    features, line_break = torch.randn(count, SIDE**2, 3), torch.randn(3)
    model = torch.nn.Module()
    model.config = config()
    packed, _ = theirs.LlavaOnevisionModel.pack_image_features(
        model, [features], [(height, width)], line_break, f"anyres_max_{most}"
    )
    parts = features.split([len(run["pixel_values"]) for run in got.runs()])
    runs = [torch.cat([part.flatten(0, 1), line_break[None]]).numpy() for part in parts]
    blended = got.features([[run] for run in runs]).rows
    np.testing.assert_allclose(blended, packed[0].numpy(), atol=1e-5)
    rows_shown, columns = got.cells.grid
    assert set(got.cells.index.tolist()) - {-1} == set(range(rows_shown * columns))


@given(
    before=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    after=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_shrinking_is_bilinear_interpolation(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    values = torch.randn(before)
    numbers = np.arange(before[0] * before[1]).reshape(before)
    blend = shrink(numbers, after)
    found = (values.numpy().ravel()[blend.pack] * blend.weights).sum(-1)
    expected = torch.nn.functional.interpolate(values[None, None], after, mode="bilinear")
    np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-5)


def test_long_videos_are_thinned_out(make: Any) -> None:
    """As transformers does where it is told num_frames; 32 are what the model was trained on."""
    model = make(CASES[0]).model
    video = [picture((40, 30), seed) for seed in range(40)]
    long = model.processor.encode("What?", videos=[video])
    taken = [video[i * 40 // 32] for i in range(32)]
    short = model.processor.encode("What?", videos=[taken])
    assert long.input_ids.tolist() == short.input_ids.tolist()
    assert int(long.image_mask.sum()) == 32 * 9 + 1
    np.testing.assert_array_equal(
        long.media[0].inputs["pixel_values"], short.media[0].inputs["pixel_values"]
    )


def test_the_same_picture_alone_and_among_others_is_encoded_twice(make: Any) -> None:
    processor = make(CASES[0]).model.processor
    image = picture((TILE, TILE))
    (alone,) = processor.encode("What?", [image]).media
    among, _ = processor.encode("What?", [image, picture((9, 9))]).media
    assert alone.digest != among.digest
    assert processor.view(image, among=2).size == (TILE, TILE)


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("config.json", {"vision_feature_select_strategy": "default"}, "takes a feature"),
        ("config.json", {"vision_aspect_ratio": "anyres"}, "anyres_max_N"),
        ("config.json", {"image_grid_pinpoints": [[32, 50]]}, "whole tiles of 32 pixels"),
        ("config.json", {"vision_config": {"model_type": "clip_vision_model"}}, "siglip_vision"),
        ("preprocessor_config.json", {"size": {"height": 9, "width": 9}}, "size and crop_size"),
        ("video_preprocessor_config.json", {"resample": 0}, "bilinear, bicubic"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, file: str, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASES[0]), tmp_path, {file: changes})


def test_its_encoder_tells_attention_where_asked(make: Callable[[Case], Made]) -> None:
    telling.check_tiles(make(CASES[0]))

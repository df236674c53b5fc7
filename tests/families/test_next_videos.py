"""LLaVA-NeXT-Video: LLaVA-NeXT's pictures, videos of pooled frames; Mistral's decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    MistralConfig,
)

from families.support import Case, Made, refused, without_checks
from families.test_llava_next import PATCH, SHAPE, TILE, TileTests, config, image_tiles
from families.torch_videos import TorchVideos

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# As in llava-hf/llava-v1.6-mistral-7b-hf, with a loop for videos.
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}{# Render all text next #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'][0]['text'] + '</s> '}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


def processor(tokenizer: Any) -> LlavaNextVideoProcessor:
    return without_checks(LlavaNextVideoProcessor)(
        TorchVideos(TILE, (TILE, TILE), CLIP_MEAN, CLIP_STD),
        image_tiles(),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def video_config(text: Any, **changes: Any) -> LlavaNextVideoConfig:
    """LLaVA-NeXT's configuration with what videos add."""
    values = config(text, **changes).to_dict()
    ids = {f"{kind}_token_index": SPECIAL.index(f"<{kind}>") for kind in ("image", "video")}
    return LlavaNextVideoConfig(**{**values, **ids, "model_type": "llava_next_video"})


CASE = Case(
    name="next-video",
    model=LlavaNextVideoForConditionalGeneration,
    config=video_config(
        MistralConfig(**SHAPE, num_key_value_heads=2, head_dim=32, sliding_window=512),
        vision_feature_layer=[-3, -2],
    ),
    special=SPECIAL,
    bos="<s>",
    eos="</s>",
    pad="<pad>",
    template=MISTRAL,
    processor=processor,
)


class TestLlavaNextVideo(TileTests):
    cases = (CASE,)
    turns = ((), ((97, 61),), ((40, 130), (64, 64)), ((500, 9), (1, 1), (9, 500)))
    films = (((8, (60, 40)),), ((3, (33, 90)), (3, (41, 41))))

    def test_a_quarter_of_a_frame_remains(self, made: Made) -> None:
        layout = made.model.package.manifest.video.layout
        assert layout.grid == (TILE // PATCH // 2, TILE // PATCH // 2)
        assert layout.tokens == layout.grid[0] ** 2

    def test_a_window_bounds_the_context(self, made: Made) -> None:
        """Within it a windowed layer is one of full attention, as its package says."""
        assert made.model.package.manifest.dims.max_positions == 512
        kinds = [segment.kinds for segment in made.model.package.manifest.segments]
        assert {kind for some in kinds for kind in some or ("none told",)} == {"full"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spatial_pool_stride": 4}, "spatial_pool_stride of 2"),
        ({"spatial_pool_mode": "median"}, "Unknown pooling mode: median"),
        ({"vision_feature_select_strategy": "full"}, "class token has no place"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASE), tmp_path, {"config.json": changes})

"""Video-LLaVA: a tower for pictures and one for videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    Qwen2Config,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
)

from avl_export.check.compare import check_package
from avl_export.check.reference import read_reference
from avl_export.check.table import CheckError
from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.families import load_family
from avl_plugins.policies import parse
from avl_runtime.cli.run import main as avl_run
from avl_runtime.package.package import Package
from avl_runtime.prompts.processor import Processor
from families import telling
from families.shared import CLEAR, DRAWS, PROMPT, TOLERANCE, FamilyTests
from families.support import Case, Made, call_processor, clip, picture, refused, without_checks
from families.torch_videos import TorchVideos
from oracle.hf_oracle import run
from oracle.rules_of import ranking_of, rules_of

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>")
SIDE, PATCH = 32, 8
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# As on the hub for Vicuna, with a loop for videos.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def config(text: Any, **changes: Any) -> VideoLlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )
    ids = {f"{kind}_token_index": SPECIAL.index(f"<{kind}>") for kind in ("image", "video")}
    return VideoLlavaConfig(vision_config=vision, text_config=text, **(ids | changes))


def processor_for(strategy: str) -> Any:
    def processor(tokenizer: Any) -> VideoLlavaProcessor:
        crop = {"height": SIDE, "width": SIDE}
        return without_checks(VideoLlavaProcessor)(
            VideoLlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop),
            TorchVideos(SIDE, (SIDE, SIDE), CLIP_MEAN, CLIP_STD),
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy=strategy,
            num_additional_image_tokens=1,
            chat_template=tokenizer.chat_template,
        )

    return processor


def encode(*turn: Any, **options: Any) -> Mapping[str, Any]:
    """With the pixels of pictures under the name that the model takes."""
    return call_processor(*turn, images_kwargs={"return_legacy_image_output": False}, **options)


SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
COMMON: dict[str, Any] = {
    "model": VideoLlavaForConditionalGeneration,
    "special": SPECIAL,
    "bos": "<s>",
    "eos": "</s>",
    "pad": "<pad>",
    "template": TEMPLATE,
    "encode": encode,
}
CASES = (
    Case(
        name="video-llava",
        config=config(LlamaConfig(**SHAPE, num_key_value_heads=4)),
        processor=processor_for("default"),
        **COMMON,
    ),
    Case(
        name="video-llava-full",
        config=config(
            Qwen2Config(**SHAPE, num_key_value_heads=2),
            vision_feature_layer=[-2, -1],
            vision_feature_select_strategy="full",
        ),
        processor=processor_for("full"),
        **COMMON,
    ),
)


class TestVideoLlava(FamilyTests):
    cases = CASES
    films = (((8, (60, 40)),), ((3, (33, 90)), (3, (41, 41))))

    @pytest.mark.parametrize("spec", FamilyTests.policies)
    def test_policies_rank_the_tokens_of_videos(self, made: Made, spec: str) -> None:
        policy = parse(spec)
        for draw in range(DRAWS):
            shown = [picture((40, 40), draw)], [clip(2, (50, 40), draw)]
            got = made.model.generate(
                PROMPT, *shown, policy=spec, max_new_tokens=8, return_logits=True
            )
            want = run(
                made.reference,
                made.encode(PROMPT, *shown),
                rules_of(policy),
                8,
                follow=got.token_ids,
                ranking=ranking_of(policy),
            )
            if want.gap > CLEAR:
                np.testing.assert_allclose(got.logits, want.logits, atol=TOLERANCE, rtol=0)
                return
        pytest.fail(f"no draw with clear rankings among {DRAWS}")

    def test_eight_frames_of_a_longer_video_are_taken(self, made: Made) -> None:
        film = clip(29, (45, 40))
        picked = [film[i * 29 // 8] for i in range(8)]
        layout = made.model.package.manifest.video.layout
        assert layout.frames == 8
        processor = made.model.processor
        long, short = (processor.encode(PROMPT, videos=[frames]) for frames in (film, picked))
        assert long.input_ids.tolist() == short.input_ids.tolist()
        assert long.media[0].digest == short.media[0].digest
        np.testing.assert_array_equal(
            long.media[0].inputs["pixel_values"], short.media[0].inputs["pixel_values"]
        )

    def test_a_raw_prompt_may_put_the_video_first(self, made: Made) -> None:
        """Features go to the tokens of their own picture or video, wherever they are placed."""
        manifest = replace(made.model.package.manifest, chat_template=None)
        processor = Processor(manifest, made.model.processor.tokenizer)
        image, film = picture((40, 40)), clip(2, (40, 40))
        text = "USER: <video>\nthen <image>\nWhat? ASSISTANT:"
        got = processor.encode(text, [image], [film])
        want = encode(made.processor, text, [image], [film])
        assert got.input_ids.tolist() == want["input_ids"][0].tolist()
        assert [media.kind for media in got.media] == ["video", "image"]

    def test_the_towers_differ(self, made: Made) -> None:
        """One frame as a video comes with its class token and through weights of its own."""
        image = picture((40, 40))
        backend, processor = made.model.loaded.backend, made.model.processor
        prompt = processor.encode(PROMPT, [image], [[image]])
        still, film = (backend.encode(part.kind, part.inputs)[0] for part in prompt.media)
        assert film.shape[1] == (SIDE // PATCH) ** 2 + 1
        assert np.abs(film[:, -still.shape[1] :] - still).max() > 0.1

    def test_a_file_from_the_command_line(
        self, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        film = clip(11, (64, 48))
        path = tmp_path / "film.gif"
        film[0].save(path, save_all=True, append_images=film[1:], duration=80)
        options = ["--max-new-tokens", "4"]
        seen = tmp_path / "seen.png"
        arguments = [str(made.package), PROMPT, "--video", str(path), *options, "--show"]
        assert avl_run([*arguments, "--heatmap", str(seen)]) == 0
        said = capsys.readouterr()
        answer = made.model.generate(PROMPT, videos=[path], max_new_tokens=4)
        assert said.out.rstrip("\n") == answer.text
        assert "##" in said.err
        with Image.open(seen) as drawn:
            assert drawn.size > (200, 100)

    def test_the_check_reads_a_video_too(self, made: Made) -> None:
        package = made.model.package
        checkpoint = open_checkpoint(str(made.folder))
        family = load_family(checkpoint, torch.float32)
        reference = read_reference(package, family, checkpoint)
        assert check_package(package, reference).features < 1e-4
        manifest = package.manifest
        assert manifest.video is not None
        # The picture's tower in the place of the video's: other weights, or a token less a frame.
        wrong = replace(manifest, video=replace(manifest.video, file=manifest.image.file))
        with pytest.raises(CheckError, match="vision tower"):
            check_package(Package(package.folder, wrong), reference)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"config.json": {"vision_feature_layer": 9}}, "vision_feature_layer"),
            ({"config.json": {"video_token_index": 319}}, "token 319"),
            ({"preprocessor_config.json": {"resample": 1}}, "resample"),
            ({"preprocessor_config.json": {"crop_size": 48}}, "pictures of 32 x 32"),
            ({"preprocessor_config.json": {"num_frames": 0.5}}, "num_frames"),
            (
                {"preprocessor_config.json": {"do_sample_frames": True, "fps": 2}},
                "num_frames of a video, found fps",
            ),
        ],
    )
    def test_variants(
        self, make: Any, tmp_path: Path, changes: Mapping[str, Mapping[str, Any]], said: str
    ) -> None:
        assert said in refused(make(CASES[0]), tmp_path, changes)


def test_its_encoder_tells_attention_where_asked(make: Callable[[Case], Made]) -> None:
    telling.check_frames(make(CASES[0]))

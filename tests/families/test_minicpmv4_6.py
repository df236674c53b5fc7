"""MiniCPM-V 4.6: slices, patches that merge in the tower, numbers of pictures, videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)
from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor
from transformers.video_utils import VideoMetadata
from transformers.vision_utils import get_vision_nearest_position_ids

from avl_runtime.prompts.processor import Turn
from avl_runtime.vision import sliced_video
from avl_runtime.vision.load.videos import Video, VideoError, load_video
from avl_runtime.vision.sliced_video import SlicedVideo
from avl_runtime.vision.slices import SlicedImage
from avl_runtime.vision.steps import ImageProcessing
from families.qwen import video_processor
from families.shared import PROMPT, STEPS, FamilyTests
from families.states import StateTests
from families.support import Case, Made, call_processor, clip, picture, refused, without_checks
from families.test_qwen3_5 import config as qwen3_5

PATCH, SIDE, AREA = 4, 6, 40
NAMES = {
    "image_start": "<image>",
    "image_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "image_id_start": "<image_id>",
    "image_id_end": "</image_id>",
    "video": "<|video_pad|>",
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", *NAMES.values())
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image_pad|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|video_pad|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


FILMS = "video_preprocessor_config.json"
FRAMES: dict[str, Any] = {  # of videos: not as pictures are
    "scale_resolution": 32,
    "patch_size": PATCH,
    "max_slice_nums": 3,
    "max_num_frames": 5,
    "image_std": [0.3, 0.6, 0.5],
}


def images_processor(mode: str = "16x") -> Any:
    settings = {"scale_resolution": AREA, "patch_size": PATCH, "downsample_mode": mode}
    return MiniCPMV4_6ImageProcessorPil(**settings, max_slice_nums=6, image_mean=[0.5, 0.4, 0.6])


def processor(tokenizer: Any, mode: str = "16x") -> Any:
    names = {f"{name}_token": text for name, text in NAMES.items()}
    tokenizer._set_model_specific_special_tokens(names)
    videos = video_processor("minicpmv4_6", **FRAMES, downsample_mode=mode)
    return without_checks(MiniCPMV4_6Processor)(
        images_processor(mode), videos, tokenizer, chat_template=tokenizer.chat_template
    )


def encode(processor: Any, text: str, images: Any, videos: Any, **options: Any) -> Any:
    """Of lists of frames transformers takes none unless it is told to take all."""
    own = {"do_sample_frames": False} if videos else {}
    return call_processor(processor, text, images, videos, **(own | options))


def config(mode: str = "16x") -> MiniCPMV4_6Config:
    """Patches merge behind the second of four layers; nothing divides anything evenly."""
    return MiniCPMV4_6Config(
        text_config=qwen3_5().get_text_config().to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": PATCH * SIDE,
            "patch_size": PATCH,
        },
        insert_layer_id=1,
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        downsample_mode=mode,
    )


def case(name: str, mode: str) -> Case:
    return Case(
        name=name,
        model=MiniCPMV4_6ForConditionalGeneration,
        config=config(mode),
        special=SPECIAL,
        template=TEMPLATE,
        processor=partial(processor, mode=mode),
        files={FILMS: FRAMES | {"downsample_mode": mode}},
        encode=encode,
    )


STEPS_OF = ImageProcessing(True, None, 3, None, None, None, None)
SLICED = SlicedImage("slices", STEPS_OF, PATCH, SIDE, AREA, 1, ("", ""), ("", ""), None)
CASES = (case("minicpmv4_6", "16x"),)
FOURFOLD = (case("minicpmv4_6_4x", "4x"),)


class SlicesTests(FamilyTests):
    turns = ((), ((20, 30),), ((97, 61),), ((3, 90), (64, 64)))
    films = (((3, (20, 30)),), ((2, (61, 44)), (1, (8, 8))))
    tolerance = 1e-3  # as of Qwen3.5
    between = 2e-3
    merge = 4

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """Patches of all parts, cell by cell."""
        name = {"image": "", "video": "_videos"}[kind]
        strips, begin, found = inputs[f"pixel_values{name}"][0].numpy(), 0, []
        for rows, columns in inputs[f"target_sizes{name}"].tolist():
            end = begin + rows * columns * PATCH
            patches = strips[:, :, begin:end].reshape(3, PATCH, rows * columns, PATCH)
            patches = patches.transpose(2, 0, 1, 3).reshape(rows, columns, -1)
            if self.merge == 2:
                cells = patches.reshape(rows // 2, 2, columns // 2, 2, -1).swapaxes(1, 2)
            else:
                cells = patches.reshape(rows // 4, 2, 2, columns // 4, 2, 2, -1)
                cells = cells.transpose(0, 3, 1, 4, 2, 5, 6)
            found.append(cells.reshape(rows * columns, -1))
            begin = end
        return np.concatenate(found)


class TestMiniCpmV46(SlicesTests, StateTests):
    cases = CASES

    def test_pictures_of_a_second_turn_are_counted_on(self, made: Made) -> None:
        """Turn by turn the same tokens as the whole conversation has in transformers."""
        ours, images = made.model.processor, [picture((20, 30)), picture((9, 9), 1)]
        first = [{"type": "image", "image": images[0]}, {"type": "text", "text": "Which?"}]
        again = [{"type": "image", "image": images[1]}, {"type": "text", "text": "And this?"}]
        begun = ours.encode(first)
        history = [Turn("Which?", ("image",), "the first", reply_ended=True)]
        found = ours.continue_chat(history, again)
        talk = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": [{"type": "text", "text": "the first"}]},
            {"role": "user", "content": again},
        ]
        want = made.encode_messages(talk, images)["input_ids"][0].tolist()
        assert want[: len(begun.input_ids)] == begun.input_ids.tolist()
        assert want[-len(found.input_ids) :] == found.input_ids.tolist()
        assert "<image_id>1</image_id>" in made.processor.tokenizer.decode(found.input_ids)

    def test_a_batch_of_unlike_prompts(self, made: Made) -> None:
        """As transformers reads it, with padding in front of shorter ones."""
        shown = [[picture((20, 30))], [], [picture((97, 61), 1), picture((9, 9), 2)]]
        texts = [PROMPT, "Read.", "Describe the image. How many objects are there?"]
        turns = [
            made.processor.apply_chat_template(
                [{"role": "user", "content": [*[{"type": "image"}] * len(images), words]}],
                add_generation_prompt=True,
            )
            for text, images in zip(texts, shown, strict=True)
            for words in [{"type": "text", "text": text}]
        ]
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        inputs = made.processor(text=turns, images=[one for one in shown if one], **options)
        assert len(set(inputs["attention_mask"].sum(1).tolist())) == 3
        with torch.inference_mode():
            want = made.reference.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        found = made.model.generate_batch(texts, shown, max_new_tokens=STEPS)
        assert [list(one.token_ids) for one in found] == want[:, -STEPS:].tolist()

    def test_videos_whose_rate_is_known(self, made: Made, tmp_path: Path) -> None:
        """A second is longer than a frame, and then a film longer than the frames that count."""
        layout = made.model.package.manifest.video.layout
        assert isinstance(layout, SlicedVideo)
        for count, fps in ((5, 1.3), (9, 1.3)):
            film = clip(count, (20, 30))
            metadata = [{"total_num_frames": count, "fps": fps, "duration": count / fps}]
            text = made.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "video"}]}], add_generation_prompt=True
            )
            want = made.processor(text=text, videos=[film], video_metadata=metadata)
            got = layout.prepare(Video(film, fps), "?")
            self._same_pixels([*got.runs()], self.pixels(want, "video"))
            assert got.tokens == want["input_ids"][0].tolist().count(made.visual[1])

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(count=st.integers(1, 3000), fps=st.floats(0.2, 120), most=st.integers(1, 40))
    @example(3, 1.9999999999999858, 2)
    def test_frames_that_are_taken(self, count: int, fps: float, most: int) -> None:
        duration = count / fps
        metadata = VideoMetadata(count, fps, duration=duration)
        theirs = video_processor("minicpmv4_6", max_num_frames=most).sample_frames(metadata, most)
        layout = SlicedVideo("sliced_video", SLICED, most)
        assert list(layout._taken(Video([b""] * count, fps))) == theirs
        # A frame that is on screen a rounding after a time is taken for it where times are given.
        places = np.arange(int(duration * 10) + 2) / 10 * fps
        beside = np.abs(places - np.rint(places))
        assume(not ((beside > 0) & (beside < 1e-6)).any())
        evenly = [n / fps for n in range(count)]
        assert list(layout._taken(Video([b""] * count, fps, evenly))) == theirs

    def test_a_film_from_a_file(self, made: Made, tmp_path: Path) -> None:
        """Three seconds of mp4: as the frames at 0, 1 and 2 seconds, given one by one."""
        file = tmp_path / "film.mp4"
        with av.open(str(file), "w") as container:
            stream = container.add_stream("mpeg4", rate=4)
            stream.width, stream.height, stream.pix_fmt = 60, 44, "yuv420p"
            for image in clip(11, (60, 44)):
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
            container.mux(stream.encode())
        taken = load_video(file).pick([0, 4, 8])
        want = made.model.generate(PROMPT, videos=[taken], max_new_tokens=4)
        found = made.model.generate(PROMPT, videos=[file], max_new_tokens=4)
        assert found.token_ids == want.token_ids
        tokens, _ = made.generate(made.encode(PROMPT, videos=[taken]), 4)
        assert list(found.token_ids) == tokens

    def test_each_frame_lies_in_one_raster(self, made: Made) -> None:
        """Its whole below its slices, so that frames are compared place by place."""
        (film,) = made.model.processor.encode(PROMPT, videos=[clip(3, (61, 44))]).media
        rasters, rows, columns = film.cells.places.reshape(3, 3, -1)
        assert (rasters == np.arange(3)[:, None]).all()
        assert (rows == rows[0]).all()
        assert (columns == columns[0]).all()
        assert len({*zip(rows[0].tolist(), columns[0].tolist(), strict=True)}) == len(rows[0])

    def test_too_many_frames_are_refused(self, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sliced_video, "MAX_VIDEO_PATCHES", 100)
        with pytest.raises(VideoError, match=r"at most 100 patches, found \d+ in 3 frames"):
            made.model.generate(PROMPT, videos=[clip(3, (61, 44))])
        with pytest.raises(VideoError, match="expected frames of one size"):
            made.model.generate(PROMPT, videos=[[picture((9, 9)), picture((9, 8))]])

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(width=st.integers(1, 300), height=st.integers(1, 300))
    def test_pictures_of_any_size(self, made: Made, width: int, height: int) -> None:
        """Slices, their sizes and the numbers of tokens are those of transformers."""
        layout = made.model.package.manifest.image.layout
        assert isinstance(layout, SlicedImage)
        image = Image.new("RGB", (width, height), (90, 0, 200))
        theirs = images_processor()([image], return_tensors="pt")
        got = layout.prepare(image, "?")
        assert layout.grid(image) == tuple(theirs["grids"][0])
        assert layout.shapes(got) == [tuple(one) for one in theirs["target_sizes"].tolist()]
        assert got.replacement.count("?") == got.tokens
        np.testing.assert_allclose(
            np.concatenate([run["pixel_values"].reshape(-1, 48) for run in got.runs()]),
            self.pixels(theirs, "image"),
            atol=1e-6,
            rtol=0,
        )

    @pytest.mark.parametrize("table", [6, 70])
    def test_every_patch_has_transformers_position(self, made: Made, table: int) -> None:
        """Which rounding decides where a side is a multiple of the table's; 70 is published."""
        layout = made.model.package.manifest.image.layout
        assert isinstance(layout, SlicedImage)
        own = SlicedImage(
            "slices", layout.processing, PATCH, table, AREA, 1, layout.whole, layout.slice, None
        )
        for count in range(4, 300, 4):
            want = get_vision_nearest_position_ids(torch.tensor([[count, 4]]), table)
            assert own._places(count, 4).ravel().tolist() == want.tolist()

    @pytest.mark.parametrize(
        ("file", "changes", "expected"),
        [
            ("preprocessor_config.json", {"patch_size": 8}, "patch_size of 4 and downsample_mode"),
            ("preprocessor_config.json", {"downsample_mode": "4x"}, "mode 16x, as config.json"),
            ("preprocessor_config.json", {"max_slice_nums": "9"}, "from 1 to 64 as max_slice_nums"),
            ("preprocessor_config.json", {"max_slice_nums": 0}, "from 1 to 64 as max_slice_nums"),
            ("preprocessor_config.json", {"do_resize": False}, "do_resize to be true"),
            ("config.json", {"downsample_mode": "4x"}, "mode 4x, as config.json has them"),
            ("config.json", {"downsample_mode": "8x"}, "downsample_mode 16x or 4x and three"),
            (FILMS, {"downsample_mode": "4x"}, "mode 16x, as config.json"),
            (FILMS, {"max_num_frames": -1}, "from 1 to 65536 as max_num_frames"),
            (FILMS, {"stack_frames": 4}, "stand alone, found do_sample_frames True and stack"),
            (FILMS, {"do_sample_frames": False}, "found do_sample_frames False"),
            (FILMS, {"resample": 0}, "filter 1 or 2 or 3, found 0"),
            ("config.json", {"insert_layer_id": 4}, "insert_layer_id from 0 to 3"),
            ("config.json", {"merger_times": 2}, "cells of 2 x 2 that are merged once each"),
        ],
    )
    def test_what_is_refused(
        self, made: Made, tmp_path: Path, file: str, changes: dict[str, Any], expected: str
    ) -> None:
        assert expected in refused(made, tmp_path, {file: changes})


class Fourfold(SlicesTests):
    """In the mode that merges patches once."""

    turns = ((), ((97, 61),), ((3, 90), (64, 64)))
    films = (((2, (61, 44)),),)
    merge = 2


class TestFourfold:
    cases = FOURFOLD

    @pytest.fixture(autouse=True)
    def its_decoder_is_traced(self, made: Made, make: Callable[[Case], Made]) -> None:
        """As that of the other mode, which is the same."""
        other = make(CASES[0])
        assert other.package.is_dir()
        segments = {key: one for key, one in other.graphs.items() if key[0] == "trace_segment"}
        assert segments
        made.graphs.update(segments)

    @pytest.mark.parametrize(
        "name",
        [
            "prompts_are_those_of_transformers",
            "features_are_those_of_transformers",
            "dense_is_transformers_generate",
            "policies_are_the_oracles",
        ],
    )
    def test_what_holds_with_more_tokens(self, made: Made, name: str) -> None:
        getattr(Fourfold(), f"test_{name}")(made)

    def test_int4(self, made: Made, tmp_path: Path) -> None:
        Fourfold().test_everything_in_int4(made, tmp_path)

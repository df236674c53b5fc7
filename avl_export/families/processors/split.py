"""Settings of the processors that split pictures into tiles named by row and column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.processors.preprocessing import (
    image_processor,
    processing_of,
    siglip_defaults,
    video_processor,
)
from avl_plugins.errors import quoted
from avl_runtime.vision.resample import KERNELS, LANCZOS
from avl_runtime.vision.split import DatedFrames, SplitImage, TileText
from avl_runtime.vision.steps import ImageProcessing

TILE, LONGEST = 364, 4 * 364  # transformers' defaults
MOST = 4096  # of a longer edge, as transformers has it


def split_image(
    checkpoint: Checkpoint, tile: int, grid: tuple[int, int], text: TileText
) -> SplitImage:
    """The layout of pictures whose tiles have `tile` x `tile` pixels.

    Raises:
        FamilyError: the image processor makes others, or something that the runtime cannot do.
    """
    raw, place = image_processor(checkpoint)
    splits = raw.get("do_image_splitting")
    return SplitImage(
        kind="split",
        processing=_steps(raw, place, tile),
        tile=tile,
        longest=None if raw.get("do_resize") is False else _longest(raw.get("size"), place),
        splits=splits is None or bool(splits),
        grid=grid,
        text=text,
    )


def dated_frames(
    checkpoint: Checkpoint, tile: int, grid: tuple[int, int], text: TileText
) -> DatedFrames:
    """The layout of videos, a tile a frame.

    Raises:
        FamilyError: as `split_image`, or frames are counted in no way that transformers has.
    """
    raw, place = video_processor(checkpoint)
    named = raw.get("video_sampling")
    sampling: dict[str, Any] = named if isinstance(named, dict) else {}
    steps = _steps(raw, place, tile)
    if raw.get("do_resize") is False or steps.resample not in KERNELS:
        raise FamilyError(
            f"{place}: expected frames of videos to be resized with filter "
            f"{' or '.join(map(str, KERNELS))}, found do_resize {raw.get('do_resize')} and "
            f"resample {steps.resample}; fix the file"
        )
    # Transformers puts `size` in the place of video_size where both are there.
    size = raw.get("size") or sampling.get("video_size")
    frames, fps = _sampled(sampling, raw, place)
    return DatedFrames(
        kind="dated_frames",
        processing=steps,
        tile=tile,
        longest=_longest(size, place),
        frames=frames,
        fps=fps,
        grid=grid,
        text=text,
    )


def _sampled(
    sampling: Mapping[str, Any], raw: Mapping[str, Any], place: str
) -> tuple[int, float] | tuple[None, None]:
    """The most frames that are taken of a video, and how many a second."""
    frames: Any = sampling.get("max_frames", raw.get("num_frames"))
    fps: Any = sampling.get("fps", raw.get("fps"))
    if frames is None and fps is None:
        return None, None
    whole = type(frames) is int and frames > 0
    if not whole or type(fps) not in (int, float) or not 0 < fps < MOST:
        raise FamilyError(
            f"{place}: expected numbers above 0 as max_frames and fps of video_sampling, or "
            f"neither, found {quoted(frames, 20)} and {quoted(fps, 20)}; fix the file"
        )
    return frames, float(fps)


def check_length(checkpoint: Checkpoint, tokens: int) -> None:
    """Refuse a processor that writes another number of tokens for a tile than the model makes.

    Raises:
        FamilyError: it does.
    """
    file = "processor_config.json"
    found = checkpoint.read_json(file).get("image_seq_len", 169)
    if found != tokens:
        raise FamilyError(
            f"{checkpoint.folder / file}: expected image_seq_len of {tokens}, as many tokens as "
            f"config.json makes of a tile, found {quoted(found, 20)}; fetch both files again"
        )


def _steps(raw: Mapping[str, Any], place: str, tile: int) -> ImageProcessing:
    """All that is done to a tile's pixels; its size is up to the layout."""
    asked = raw.get("max_image_size") or {"longest_edge": TILE}
    found = asked.get("longest_edge") if isinstance(asked, dict) else asked
    if found != tile:
        raise FamilyError(
            f"{place}: expected max_image_size with a longest_edge of {tile}, the image_size of "
            f"config.json, found {quoted(asked, 40)}; fetch both files again"
        )
    own = {name: value for name, value in raw.items() if name not in ("size", "do_pad")}
    steps = processing_of(own, place, siglip_defaults(tile) | {"resample": LANCZOS})
    return replace(steps, resize=None, crop=None)


def _longest(size: Any, place: str) -> int:
    """The longer edge that pictures or frames are brought to."""
    size = {"longest_edge": LONGEST} if size is None else size
    found = size.get("longest_edge") if isinstance(size, dict) else None
    if type(found) is not int or not 0 < found <= MOST:
        raise FamilyError(
            f"{place}: expected size with a longest_edge of 1 to {MOST} pixels, found "
            f"{quoted(size, 40)}; this version of avl cannot export it"
        )
    return found

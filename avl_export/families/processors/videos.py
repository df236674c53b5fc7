"""What families that read a video as a fixed number of frames share: its processor's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.processors.preprocessing import check_side, processing_of, video_processor
from avl_runtime.vision.resample import BICUBIC, BILINEAR
from avl_runtime.vision.steps import ImageProcessing


def frame_processing(
    checkpoint: Checkpoint, defaults: Mapping[str, Any], side: int
) -> ImageProcessing:
    """The steps that a frame goes through.

    Args:
        defaults: what the video processor does where its settings say nothing.
        side: of the square frames that the tower reads, in pixels.

    Raises:
        FamilyError: a step is none that the runtime can do, or frames get another size.
    """
    raw, place = video_processor(checkpoint)
    # Frames are never padded: what an image processor's file says of that is about pictures.
    steps = processing_of({**raw, "do_pad": False}, place, defaults)
    check_side(steps, side, place)
    if steps.resize is not None and steps.resample not in (BILINEAR, BICUBIC):
        raise FamilyError(
            f"{place}: expected resample to be {BILINEAR} or {BICUBIC} (bilinear, bicubic) for "
            f"videos, found {steps.resample}; fix the file"
        )
    return steps


def frame_count(checkpoint: Checkpoint, default: int) -> int:
    """How many frames are taken of a video: num_frames of its processor, else `default`.

    Raises:
        FamilyError: it is no number of frames, or frames are taken by time.
    """
    raw, place = video_processor(checkpoint)
    if raw.get("do_sample_frames") and raw.get("fps") and not raw.get("num_frames"):
        raise FamilyError(
            f"{place}: expected num_frames of a video, found fps; this version of avl takes a "
            "fixed number of frames for this family, replace fps by num_frames"
        )
    count = raw.get("num_frames") or default
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise FamilyError(f"{place}: expected num_frames of at least 1, found {str(count)[:60]}")
    return count

"""Settings of MiniCPM-V's processors of pictures and videos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.processors.preprocessing import (
    image_processor,
    named_token,
    processing_of,
    siglip_defaults,
    video_processor,
)
from avl_plugins.errors import quoted
from avl_runtime.vision.resample import KERNELS
from avl_runtime.vision.sliced_video import SlicedVideo
from avl_runtime.vision.slices import MOST_SLICES, SlicedImage
from avl_runtime.vision.steps import MAX_SIDE

# transformers' defaults
SIZES = {"patch_size": 14, "scale_resolution": 448, "max_slice_nums": 9}
MODES = {"16x": 4, "4x": 2}  # patches along a cell
MODE = "16x"
FRAMES, MOST_FRAMES = 128, 1 << 16
NAMES = {  # of tokens around a part, without those of their begin and end
    "image": ("<image>", "</image>"),
    "slice": ("<slice>", "</slice>"),
    "image_id": ("<image_id>", "</image_id>"),
}


def sliced_image(checkpoint: Checkpoint, size: int, table: int, mode: str) -> SlicedImage:
    """The layout that settings of a MiniCPMV4_6ImageProcessor describe.

    Args:
        size: of a patch in pixels; learned positions are a square of side `table`.
        mode: one of MODES, as config.json has it.

    Raises:
        FamilyError: the image processor makes patches of another size or number, or something
            that the runtime cannot do.
    """
    return _layout(checkpoint, *image_processor(checkpoint), size, table, mode)


def sliced_video(checkpoint: Checkpoint, image: SlicedImage, mode: str) -> SlicedVideo:
    """The layout that settings of a MiniCPMV4_6VideoProcessor describe, beside that of pictures.

    Raises:
        FamilyError: as `sliced_image`, or frames are put together to one picture.
    """
    raw, place = video_processor(checkpoint)
    frame = _layout(checkpoint, raw, place, image.size, image.table, mode)
    frames, stacked = raw.get("max_num_frames") or FRAMES, raw.get("stack_frames") or 1
    if type(frames) is not int or not 0 < frames <= MOST_FRAMES:
        raise FamilyError(
            f"{place}: expected a whole number from 1 to {MOST_FRAMES} as max_num_frames, found "
            f"{quoted(frames, 20)}; fix the file"
        )
    if stacked != 1 or raw.get("do_sample_frames", True) is False:
        raise FamilyError(
            f"{place}: expected frames that are sampled and stand alone, found do_sample_frames "
            f"{raw.get('do_sample_frames', True)} and stack_frames {quoted(stacked, 20)}; take "
            "both out of the file"
        )
    if frame.processing.resample not in KERNELS:
        raise FamilyError(
            f"{place}: expected frames of videos to be resized with filter "
            f"{' or '.join(map(str, sorted(KERNELS)))}, found {frame.processing.resample}; fix "
            "the file"
        )
    # Whether videos are numbered, transformers asks the settings of pictures.
    return SlicedVideo("sliced_video", replace(frame, numbers=image.numbers), frames)


def _layout(
    checkpoint: Checkpoint, raw: dict[str, Any], place: str, size: int, table: int, mode: str
) -> SlicedImage:
    """What the settings `raw` in the file `place` say of a picture or a frame."""
    found = {name: usual if raw.get(name) is None else raw[name] for name, usual in SIZES.items()}
    most = {"patch_size": MAX_SIDE, "scale_resolution": MAX_SIDE, "max_slice_nums": MOST_SLICES}
    for name, value in found.items():
        if type(value) is not int or not 0 < value <= most[name]:
            raise FamilyError(
                f"{place}: expected a whole number from 1 to {most[name]} as {name}, found "
                f"{quoted(value, 20)}; fix the file"
            )
    merge, own_mode = MODES[mode], raw.get("downsample_mode") or MODE
    least = size * merge
    if found["patch_size"] != size or found["scale_resolution"] < least or own_mode != mode:
        raise FamilyError(
            f"{place}: expected patch_size of {size} and downsample_mode {mode}, as config.json "
            f"has them, and scale_resolution of a cell, {least}, at least, found "
            f"{found['patch_size']}, {quoted(own_mode, 20)} and {found['scale_resolution']}; make "
            "the files agree"
        )
    if raw.get("do_resize", True) not in (True, None):
        raise FamilyError(
            f"{place}: expected do_resize to be true, found false; this version of avl cannot "
            "export it"
        )
    own = {name: value for name, value in raw.items() if name != "size"}
    defaults: dict[str, Any] = siglip_defaults(1)
    names = {
        kind: tuple(
            named_token(checkpoint, f"{kind}_{part}_token") or usual[n]
            for n, part in enumerate(("start", "end"))
        )
        for kind, usual in NAMES.items()
    }
    whole, part, numbers = ((one[0], one[1]) for one in names.values())
    return SlicedImage(
        kind="slices",
        processing=replace(processing_of(own, place, defaults), resize=None, crop=None),
        size=size,
        table=table,
        resolution=found["scale_resolution"],
        slices=found["max_slice_nums"] if raw.get("slice_mode", True) is not False else 1,
        whole=whole,
        slice=part,
        numbers=numbers if raw.get("use_image_id", True) is not False else None,
        merge=merge,
    )

"""Settings of MiniCPM-V's image processor."""

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
)
from avl_plugins.errors import quoted
from avl_runtime.vision.slices import MERGE, MOST_SLICES, SlicedImage
from avl_runtime.vision.steps import MAX_SIDE

# transformers' defaults
SIZES = {"patch_size": 14, "scale_resolution": 448, "max_slice_nums": 9}
MODE = "16x"
NAMES = {  # of tokens around a part, without those of their begin and end
    "image": ("<image>", "</image>"),
    "slice": ("<slice>", "</slice>"),
    "image_id": ("<image_id>", "</image_id>"),
}


def sliced_image(checkpoint: Checkpoint, size: int, table: int) -> SlicedImage:
    """The layout that settings of a MiniCPMV4_6ImageProcessor describe.

    Args:
        size: of a patch in pixels; learned positions are a square of side `table`.

    Raises:
        FamilyError: the image processor makes patches of another size, or something that the
            runtime cannot do.
    """
    raw, place = image_processor(checkpoint)
    found = {name: usual if raw.get(name) is None else raw[name] for name, usual in SIZES.items()}
    most = {"patch_size": MAX_SIDE, "scale_resolution": MAX_SIDE, "max_slice_nums": MOST_SLICES}
    for name, value in found.items():
        if type(value) is not int or not 0 < value <= most[name]:
            raise FamilyError(
                f"{place}: expected a whole number from 1 to {most[name]} as {name}, found "
                f"{quoted(value, 20)}; fix the file"
            )
    mode = raw.get("downsample_mode") or MODE
    resizes = raw.get("do_resize", True) in (True, None)
    if found["patch_size"] != size or found["scale_resolution"] < size * MERGE or mode != MODE:
        raise FamilyError(
            f"{place}: expected patch_size of {size}, as config.json has it, scale_resolution of a "
            f"cell, {size * MERGE}, at least and downsample_mode {MODE}, found "
            f"{found['patch_size']}, {found['scale_resolution']} and {quoted(mode, 20)}; fetch "
            "both files again"
        )
    if not resizes:
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
    )

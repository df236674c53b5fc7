"""Settings of LFM2-VL's image processor, which transformers has for torchvision alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.processors.preprocessing import (
    BILINEAR,
    image_processor,
    named_token,
    processing_of,
    siglip_defaults,
)
from avl_plugins.errors import quoted
from avl_runtime.vision.patched_tiles import MOST_TILES, PatchedTiles, PictureText
from avl_runtime.vision.resample import KERNELS

# transformers' defaults
COUNTS = {
    "downsample_factor": 2,
    "encoder_patch_size": 16,
    "tile_size": 512,
    "min_tiles": 2,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "max_image_tokens": 256,
}
TOLERANCE = 2.0
MOST = 1 << 14


def patched_tiles(checkpoint: Checkpoint, size: int, merge: int, table: int) -> PatchedTiles:
    """The layout that settings of an Lfm2VlImageProcessor describe.

    Args:
        size: of a patch in pixels; `merge` x `merge` of them become a token, and learned positions
            are a square of side `table`.

    Raises:
        FamilyError: the image processor makes patches or cells of another size, or something that
            the runtime cannot do.
    """
    raw, place = image_processor(checkpoint)
    found = {name: _count(raw, name, place) for name in COUNTS}
    for name, wanted in (("encoder_patch_size", size), ("downsample_factor", merge)):
        if found[name] != wanted:
            raise FamilyError(
                f"{place}: expected {name} of {wanted}, as config.json has it, found "
                f"{found[name]}; fetch both files again"
            )
    tiles = found["min_tiles"], found["max_tiles"]
    tokens = found["min_image_tokens"], found["max_image_tokens"]
    tolerance: Any = raw.get("max_pixels_tolerance", TOLERANCE)
    fits = tiles[0] <= tiles[1] <= MOST_TILES and tokens[0] <= tokens[1]
    if found["tile_size"] % (size * merge) or not fits or type(tolerance) not in (int, float):
        raise FamilyError(
            f"{place}: expected tiles of whole cells of {size * merge} pixels, at most "
            f"{MOST_TILES}, limits in order and a number as max_pixels_tolerance, found "
            f"tile_size {found['tile_size']}, tiles {tiles}, tokens {tokens} and "
            f"{quoted(tolerance, 20)}; this version of avl cannot export it"
        )
    own = {name: value for name, value in raw.items() if name not in ("size", "do_pad")}
    steps = processing_of(own, place, siglip_defaults(1) | {"resample": BILINEAR})
    if steps.resample not in KERNELS:
        raise FamilyError(
            f"{place}: expected resample of {' or '.join(map(str, KERNELS))}, found "
            f"{steps.resample}; this version of avl cannot export it"
        )
    return PatchedTiles(
        kind="patched_tiles",
        processing=replace(steps, resize=None, crop=None),
        size=size,
        merge=merge,
        table=table,
        tile=found["tile_size"],
        tiles=tiles if raw.get("do_image_splitting", True) else (1, 1),
        tokens=tokens,
        tolerance=float(tolerance),
        overview=bool(raw.get("use_thumbnail", True)),
        text=_text(checkpoint),
    )


def _count(raw: dict[str, Any], name: str, place: str) -> int:
    found = raw.get(name)
    found = COUNTS[name] if found is None else found
    if type(found) is not int or not 0 < found <= MOST:
        raise FamilyError(
            f"{place}: expected a whole number from 1 to {MOST} as {name}, found "
            f"{quoted(found, 20)}; fix the file"
        )
    return found


def _text(checkpoint: Checkpoint) -> PictureText:
    file = "processor_config.json"
    if checkpoint.read_json(file).get("use_image_special_tokens", True) is not True:
        raise FamilyError(
            f"{checkpoint.folder / file}: expected use_image_special_tokens to be true, found "
            "false; this version of avl cannot export it"
        )
    return PictureText(
        begin=named_token(checkpoint, "image_start_token") or "<|image_start|>",
        whole=named_token(checkpoint, "image_thumbnail_token") or "<|img_thumbnail|>",
        end=named_token(checkpoint, "image_end_token") or "<|image_end|>",
    )

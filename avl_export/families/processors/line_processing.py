"""Settings of the processors that lay out pictures of any size in lines, as layouts."""

from __future__ import annotations

from typing import Any

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.processor_files import NESTED
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.processors.preprocessing import (
    image_processor,
    processing_of,
    tile_defaults,
)
from avl_plugins.errors import quoted
from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.patches import Patches

LONGEST = 1024  # what transformers' image processor takes where the settings say nothing
BETWEEN, BEHIND = "[IMG_BREAK]", "[IMG_END]"


def broken_lines(checkpoint: Checkpoint, patches: Patches) -> LinedImage:
    """The layout of a PixtralProcessor: a token behind each line, pictures of whole cells.

    Raises:
        FamilyError: its settings are not there, do not fit the model, or ask for something that
            the runtime cannot do.
    """
    # transformers takes these where processor_config.json has none.
    check_processor(checkpoint, patches, size=16, merge=1)
    nested = checkpoint.read_json(NESTED)
    between, behind = (
        found if isinstance(found := nested.get(name), str) else default
        for name, default in (("image_break_token", BETWEEN), ("image_end_token", BEHIND))
    )
    return _lined(checkpoint, patches, patches.cell, between, behind)


def plain_lines(checkpoint: Checkpoint, patches: Patches) -> LinedImage:
    """The layout of a LightOnOcrProcessor: nothing between lines, pictures of whole patches.

    Raises:
        FamilyError: as `broken_lines`.
    """
    check_processor(checkpoint, patches, size=14, merge=2)
    raw, place = image_processor(checkpoint)
    found = raw.get("patch_size") or 16
    sides = set(found.values()) if isinstance(found, dict) else {found}
    for step in (patches.size, patches.cell):
        if sides == {step}:
            return _lined(checkpoint, patches, step, "", "")
    raise _unfit(place, f"patch_size to be {patches.size} or {patches.cell}", found)


def check_processor(checkpoint: Checkpoint, patches: Patches, *, size: int, merge: int) -> None:
    """Refuse a processor that counts other patches than the encoder has.

    Args:
        size, merge: what transformers' processor takes where its settings say nothing.

    Raises:
        FamilyError: patch_size or spatial_merge_size is not config.json's.
    """
    nested = checkpoint.read_json(NESTED)
    wanted = {"patch_size": (patches.size, size), "spatial_merge_size": (patches.merge, merge)}
    for name, (expected, default) in wanted.items():
        found = default if nested.get(name) is None else nested[name]
        if found != expected:
            place = str(checkpoint.folder / NESTED)
            raise _unfit(place, f"{name} to be {expected} as in config.json", found)


def _lined(
    checkpoint: Checkpoint, patches: Patches, step: int, between: str, behind: str
) -> LinedImage:
    raw, place = image_processor(checkpoint)
    if raw.get("do_resize") is False:
        raise _unfit(place, "do_resize to be true", False)
    # Padding only makes batches of pictures even.
    steps = processing_of({**raw, "do_resize": False, "do_pad": False}, place, tile_defaults(0))
    if steps.crop is not None:
        raise _unfit(place, "do_center_crop to be false", True)
    size = raw.get("size") or {"longest_edge": LONGEST}
    most: Any = (None, None)
    if isinstance(size, dict):
        edge = size.get("longest_edge")
        most = (edge, edge) if edge else (size.get("height"), size.get("width"))
    if not all(type(side) is int and side > 0 for side in most):
        raise _unfit(place, "size to have a longest_edge, or height and width", size)
    return LinedImage("lines", steps, patches, most, step, between, behind)


def _unfit(place: str, expected: str, found: Any) -> FamilyError:
    return FamilyError(f"{place}: expected {expected}, found {quoted(found, 60)}; fix the file")

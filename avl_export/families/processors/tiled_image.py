"""Settings of GotOcr2ImageProcessor: a picture as whole tiles, with texts around its tokens."""

from __future__ import annotations

from dataclasses import replace

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.processors.preprocessing import (
    check_side,
    image_processor,
    known_token,
    processing_of,
    tile_defaults,
)
from avl_runtime.vision.tiles import TiledImage

TILES = (1, 12)  # transformers' defaults


def tile_layout(
    checkpoint: Checkpoint, tile: int, grid: tuple[int, int], around: tuple[str, str]
) -> TiledImage:
    """The layout that the settings of a GotOcr2ImageProcessor describe.

    Args:
        tile: its side in pixels, of which `grid` is what features show.
        around: texts in front of a picture's tokens and behind them.

    Raises:
        FamilyError: tiles have another size, or numbers of tiles are none.
    """
    raw, place = image_processor(checkpoint)
    steps = processing_of(raw, place, tile_defaults(tile))
    # Tiles are never cropped, whatever the settings say; resizing is up to the layout.
    check_side(replace(steps, crop=None), tile, place)
    least, most = (
        default if (found := raw.get(name)) is None else found
        for name, default in zip(("min_patches", "max_patches"), TILES, strict=True)
    )
    if not all(isinstance(n, int) for n in (least, most)) or not 1 <= least <= most:
        raise FamilyError(
            f"{place}: expected min_patches of at least 1 and max_patches not below it, found "
            f"{str(least)[:20]} and {str(most)[:20]}; fix the file"
        )
    return TiledImage(
        kind="tiles",
        processing=replace(steps, resize=None, crop=None),
        tile=(tile, tile),
        tiles=(least, most),
        grid=grid,
        around=around,
    )


def picture_ends(checkpoint: Checkpoint) -> tuple[str, str]:
    """The texts in front of a picture's tokens and behind them.

    Raises:
        FamilyError: transformers' tokenizer knows none.
    """
    ends = ("start_image_token", "end_image_token")
    begin, end = (known_token(checkpoint, name) for name in ends)
    return begin, end

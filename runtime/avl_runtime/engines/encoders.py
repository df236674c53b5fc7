"""Between which sizes the inputs of encoder graphs lie, by how a family prepares its media."""

from __future__ import annotations

from typing import assert_never

from avl_plugins.graph_io import (
    ORDER,
    PATCH_POSITIONS,
    PIXELS,
    TABLE_ROWS,
    TABLE_SHARES,
    WINDOW_MASK,
)
from avl_runtime.engines.profiles import Range
from avl_runtime.package.manifest import Manifest
from avl_runtime.vision.anyres import AnyresImage
from avl_runtime.vision.blended import BlendedImage, BlendedVideo, SquareImage
from avl_runtime.vision.fixed import FixedImage
from avl_runtime.vision.frames import FixedVideo
from avl_runtime.vision.layouts import ImageLayout, VideoLayout
from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.media import IMAGES_PER_RUN
from avl_runtime.vision.patch_video import PatchVideo, TimedVideo
from avl_runtime.vision.patched_tiles import PatchedTiles
from avl_runtime.vision.patches import MAX_PATCHES, Patches, PatchImage
from avl_runtime.vision.sliced_video import SlicedVideo
from avl_runtime.vision.slices import SlicedImage
from avl_runtime.vision.split import DatedFrames, SplitImage
from avl_runtime.vision.tiles import FrameLines, TiledImage

TYPICAL_CELLS = 1024
PER_PATCH = (PATCH_POSITIONS, TABLE_ROWS, TABLE_SHARES)

Ranges = dict[str, dict[int, Range]]


def encoder_ranges(manifest: Manifest, graph: str, cache_rows: int) -> Ranges:
    """Sizes of the axes that may change, by input, for all media that go through `graph`.

    Args:
        cache_rows: media of more tokens than this fit no cache, and are not provided for.
    """
    image, video = manifest.image, manifest.video
    layouts: list[ImageLayout | VideoLayout] = []
    if image.file == graph:
        layouts += [image.layout, *([image.several] if image.several is not None else [])]
    if video is not None and video.file == graph:
        layouts.append(video.layout)
    found: Ranges = {}
    for layout in layouts:
        for name, axes in _ranges(layout, cache_rows).items():
            for axis, size in axes.items():
                known = found.setdefault(name, {}).get(axis, size)
                found[name][axis] = Range(
                    min(known.least, size.least), known.best, max(known.most, size.most)
                )
    return found


def _ranges(layout: ImageLayout | VideoLayout, cache_rows: int) -> Ranges:
    match layout:
        case FixedImage() | SquareImage():
            found: Ranges = {PIXELS: {0: Range(1, 1, 1)}}
        case FixedVideo() | FrameLines() | BlendedVideo():
            found = {PIXELS: {0: _images(layout.frames)}}
        case TiledImage():
            found = {PIXELS: {0: _images(layout.tiles[1] + 1)}}
        case SplitImage() | DatedFrames():
            found = {PIXELS: {0: _images(IMAGES_PER_RUN)}}
        case PatchedTiles():
            patches = Range(layout.merge**2, layout.most, layout.most)
            found = {PIXELS: {0: _images(IMAGES_PER_RUN), 1: patches}, TABLE_SHARES: {0: patches}}
        case SlicedImage() | SlicedVideo():
            part = layout.frame if isinstance(layout, SlicedVideo) else layout
            least = part.merge**2
            typical = (part.resolution // part.cell) ** 2 * least
            patches = Range(least, typical, MAX_PATCHES)
            found = {PIXELS: {0: _images(IMAGES_PER_RUN), 1: patches}, TABLE_ROWS: {0: patches}}
        case AnyresImage() | BlendedImage():
            tiles = [(h // layout.tile) * (w // layout.tile) for h, w in layout.resolutions]
            found = {PIXELS: {0: _images(1 + max(tiles))}}
        case PatchImage():
            found = _patches(layout.patches, layout.max_pixels, 1, cache_rows)
        case LinedImage():
            height, width = (-(-side // layout.patches.cell) for side in layout.most)
            pixels = height * width * layout.patches.cell**2
            # A line of cells may have another around it whose cells are no tokens.
            most = 4 * cache_rows if layout.has_parts else cache_rows
            found = _patches(layout.patches, pixels, 1, most)
            if layout.has_parts:
                count, places = found[PIXELS][1], layout.patches.merge**2
                found[WINDOW_MASK] = {0: count}
                found[ORDER] = {0: Range(1, count.best // places, count.most // places)}
        case PatchVideo() | TimedVideo():
            found = _patches(layout.patches, layout.max_pixels, IMAGES_PER_RUN, cache_rows)
        case _:
            assert_never(layout)
    return found


def _patches(patches: Patches, max_pixels: int, frames: int, cache_rows: int) -> Ranges:
    """See `Patches.inputs`."""
    places = patches.merge**2
    most = min(max_pixels // patches.cell**2, MAX_PATCHES // places, cache_rows)
    cells = Range(1, min(most, TYPICAL_CELLS), most)
    runs = Range(1, 1, frames)
    if patches.window is not None:
        windows = _windows(cells, patches.window)
        return {
            PIXELS: {0: runs, 1: windows},
            **{name: {0: windows} for name in (*PER_PATCH, WINDOW_MASK)},
            ORDER: {0: cells},
        }
    count = Range(places, cells.best * places, cells.most * places)
    return {
        PIXELS: {0: runs, 1: count},
        **{name: {0: count} for name in PER_PATCH},
    }


def _windows(cells: Range, side: int) -> Range:
    """Windows of `side` x `side` cells that cover a picture; a thin one takes most."""
    best = -(-cells.best // side**2)
    most = max(
        -(-rows // side) * -(-(cells.most // rows) // side) for rows in range(1, cells.most + 1)
    )
    return Range(1, min(best, most), most)


def _images(most: int) -> Range:
    """Of one run, for media of at most `most`."""
    most = min(most, IMAGES_PER_RUN)
    return Range(1, most, most)

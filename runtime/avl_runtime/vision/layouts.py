"""Every way in which a family turns pictures and videos into tokens, told apart by `kind`."""

from __future__ import annotations

from avl_runtime.vision.anyres import AnyresImage
from avl_runtime.vision.blended import BlendedImage, BlendedVideo, SquareImage
from avl_runtime.vision.fixed import FixedImage
from avl_runtime.vision.frames import FixedVideo
from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.patch_video import PatchVideo, TimedVideo
from avl_runtime.vision.patched_tiles import PatchedTiles
from avl_runtime.vision.patches import PatchImage
from avl_runtime.vision.sliced_video import SlicedVideo
from avl_runtime.vision.slices import SlicedImage
from avl_runtime.vision.split import DatedFrames, SplitImage
from avl_runtime.vision.tiles import FrameLines, TiledImage

ImageLayout = (
    FixedImage
    | AnyresImage
    | BlendedImage
    | SquareImage
    | PatchImage
    | TiledImage
    | LinedImage
    | SplitImage
    | PatchedTiles
    | SlicedImage
)
VideoLayout = (
    FixedVideo | BlendedVideo | PatchVideo | TimedVideo | FrameLines | DatedFrames | SlicedVideo
)

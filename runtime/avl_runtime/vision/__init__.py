"""Pictures and videos to what encoder graphs read and prompts hold. No model code in here."""

from avl_runtime.vision.layouts import ImageLayout, VideoLayout
from avl_runtime.vision.media import Block, Box, Cells, Features, Kind, Media, image_hash
from avl_runtime.vision.positions import prompt_positions

__all__ = [
    "Block",
    "Box",
    "Cells",
    "Features",
    "ImageLayout",
    "Kind",
    "Media",
    "VideoLayout",
    "image_hash",
    "prompt_positions",
]

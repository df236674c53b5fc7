"""Settings of the processors that cut pictures and videos into patches, as layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.processors.preprocessing import (
    image_processor,
    processing_of,
    tile_defaults,
    token_text,
    video_processor,
)
from avl_runtime.vision.patch_video import Choice, PatchVideo, Stamp, TimedVideo
from avl_runtime.vision.patches import Patches, PatchImage
from avl_runtime.vision.resample import KERNELS
from avl_runtime.vision.steps import ImageProcessing

HALF = (0.5, 0.5, 0.5)
# What transformers' classes do where the settings say nothing.
IMAGE_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
WIDENED_SIZE = {"shortest_edge": 384 * 384, "longest_edge": 1536 * 1536}
GROWN_SIZE = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}
PATCH_VIDEO_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
STAMPED_VIDEO_SIZE = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 2 * 30000}
TIMED_VIDEO_SIZE = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
FILLED_TOKENS = (70, 140, 280, 560, 1120)  # that a picture may have at most
MIN_FRAMES, MAX_FRAMES = 4, 768
MAX_DURATION = 300  # seconds
FPS = 2.0  # Qwen's own tools sample so, and transformers for Qwen3-VL


@dataclass(frozen=True, slots=True)
class _Settings:
    """A processor's settings and the file they are from; null stands for the default."""

    raw: Mapping[str, Any]
    place: str

    def get(self, name: str, default: Any) -> Any:
        found = self.raw.get(name)
        return default if found is None else found

    def number(self, name: str, default: float) -> float:
        """A number above 0.

        Raises:
            FamilyError: something else is there.
        """
        found = self.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or found <= 0:
            raise self.unfit(f"{name} to be a number above 0", found)
        return found

    def pixels(self, default: Mapping[str, int], *, old_names: bool) -> tuple[int, int]:
        """Fewest and most pixels; older files call them min_pixels and max_pixels."""
        size = self.get("size", default)
        old = self.raw if old_names else {}
        least, most = (
            old.get(name) or (size.get(key) if isinstance(size, Mapping) else None)
            for name, key in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
        )
        if not isinstance(least, int) or not isinstance(most, int) or not 0 < least <= most:
            raise self.unfit("size to have a shortest_edge and a larger longest_edge", size)
        return least, most

    def steps(self, defaults: Mapping[str, Any]) -> ImageProcessing:
        """What is done besides resizing.

        Raises:
            FamilyError: pictures or frames are not resized, or a step cannot be done.
        """
        if not self.get("do_resize", True):
            raise self.unfit("do_resize to be true", False)
        both = {**tile_defaults(0), **defaults}
        return processing_of({**self.raw, "do_resize": False}, self.place, both)

    def check_patches(self, patches: Patches, default_size: int, frames: int = 2) -> None:
        """Refuse to cut in another way than the encoder expects.

        Args:
            default_size, frames: of a patch, where the settings say nothing.

        Raises:
            FamilyError: patch_size, temporal_patch_size or merge_size is not config.json's.
        """
        wanted = {
            "patch_size": (patches.size, default_size),
            "temporal_patch_size": (patches.temporal, frames),
            "merge_size": (patches.merge, 2),
        }
        for name, (expected, default) in wanted.items():
            found = self.get(name, default)
            if found != expected:
                raise self.unfit(f"{name} to be {expected} as in config.json", found)

    def unfit(self, expected: str, found: Any) -> FamilyError:
        return FamilyError(
            f"{self.place}: expected {expected}, found {str(found)[:60]}; fix the file"
        )


def patch_image(checkpoint: Checkpoint, patches: Patches) -> PatchImage:
    """The layout that a Qwen2VLImageProcessor's settings describe.

    Raises:
        FamilyError: there are none, or they ask for something the runtime cannot do.
    """
    settings = _Settings(*image_processor(checkpoint))
    settings.check_patches(patches, 14)
    least, most = settings.pixels(IMAGE_SIZE, old_names=True)
    return PatchImage("patches", settings.steps({}), patches, least, most)


def widened_image(checkpoint: Checkpoint, patches: Patches) -> PatchImage:
    """The layout that a PaddleOCRVLImageProcessor's settings describe.

    Raises:
        FamilyError: as `patch_image`.
    """
    settings = _Settings(*image_processor(checkpoint))
    settings.check_patches(patches, 14, 1)
    least, most = settings.pixels(WIDENED_SIZE, old_names=True)
    return PatchImage("patches", settings.steps({}), patches, least, most, "widened")


def grown_image(checkpoint: Checkpoint, patches: Patches) -> PatchImage:
    """The layout that a Glm4vImageProcessor's or Glm46VImageProcessor's settings describe.

    Raises:
        FamilyError: as `patch_image`.
    """
    settings = _Settings(*image_processor(checkpoint))
    settings.check_patches(patches, 14)
    least, most = settings.pixels(GROWN_SIZE, old_names=False)
    return PatchImage("patches", settings.steps({}), patches, least, most, "grown")


def filled_image(checkpoint: Checkpoint, patches: Patches, before: str, after: str) -> PatchImage:
    """The layout that a Gemma4ImageProcessor's settings describe.

    Args:
        before, after: what a prompt has around the tokens of a picture.

    Raises:
        FamilyError: as `patch_image`.
    """
    settings = _Settings(*image_processor(checkpoint))
    wanted = {"patch_size": (patches.size, 16), "pooling_kernel_size": (patches.merge, 3)}
    for name, (expected, default) in wanted.items():
        found = settings.get(name, default)
        if found != expected:
            raise settings.unfit(f"{name} to be {expected} as in config.json", found)
    tokens = settings.get("max_soft_tokens", FILLED_TOKENS[2])
    if tokens not in FILLED_TOKENS:
        raise settings.unfit(f"max_soft_tokens of {', '.join(map(str, FILLED_TOKENS))}", tokens)
    steps, most = settings.steps({"do_normalize": False}), tokens * patches.cell**2
    least = patches.cell**2
    return PatchImage("patches", steps, patches, least, most, "filled", before, after)


def patch_video(
    checkpoint: Checkpoint, patches: Patches, tokens_per_second: int | None
) -> PatchVideo:
    """The layout that a Qwen2VLVideoProcessor's settings describe.

    Args:
        tokens_per_second: see `PatchVideo`.

    Raises:
        FamilyError: as `patch_image`.
    """
    settings = _video_settings(checkpoint, patches, 14)
    least, most = settings.pixels(PATCH_VIDEO_SIZE, old_names=True)
    return PatchVideo(
        kind="patch_video",
        processing=_frame_steps(settings, {}),
        patches=patches,
        min_pixels=least,
        max_pixels=most,
        fps=float(settings.number("fps", FPS)),
        min_frames=int(settings.number("min_frames", MIN_FRAMES)),
        max_frames=int(settings.number("max_frames", MAX_FRAMES)),
        tokens_per_second=tokens_per_second,
    )


def timed_video(checkpoint: Checkpoint, patches: Patches, config: Any) -> TimedVideo:
    """The layout that a Qwen3VLVideoProcessor's settings describe.

    Raises:
        FamilyError: as `patch_image`.
    """
    settings = _video_settings(checkpoint, patches, 16)
    least, most = settings.pixels(TIMED_VIDEO_SIZE, old_names=False)
    sampled = settings.get("do_sample_frames", True)
    return TimedVideo(
        kind="timed_video",
        processing=_frame_steps(settings, {"image_mean": HALF, "image_std": HALF}),
        patches=patches,
        min_pixels=least,
        max_pixels=most,
        fps=float(settings.number("fps", FPS)) if sampled else None,
        min_frames=int(settings.number("min_frames", MIN_FRAMES)),
        max_frames=int(settings.number("max_frames", MAX_FRAMES)),
        opening=token_text(checkpoint, config.vision_start_token_id),
        closing=token_text(checkpoint, config.vision_end_token_id),
    )


def stamped_video(checkpoint: Checkpoint, patches: Patches, config: Any) -> TimedVideo:
    """The layout that a Glm4vVideoProcessor's or Glm46VVideoProcessor's settings describe.

    Raises:
        FamilyError: as `patch_image`, or they are another processor's.
    """
    settings = _video_settings(checkpoint, patches, 14, counted=True)
    names = ("video_processor_type", "processor_class", "image_processor_type")
    named = next(filter(None, (settings.raw.get(name) for name in names)), config.model_type)
    known = {"glm4v": ("stepped", "seconds"), "glm46v": ("paced", "tenths")}
    kind = next((kind for kind in known if str(named).lower().startswith(kind)), None)
    if kind is None:
        raise settings.unfit("a Glm4vVideoProcessor or Glm46VVideoProcessor", named)
    choice, stamp = known[kind]
    least, most = settings.pixels(STAMPED_VIDEO_SIZE, old_names=False)
    sampled = settings.get("do_sample_frames", True)
    return TimedVideo(
        kind="timed_video",
        processing=_frame_steps(settings, {}),
        patches=patches,
        min_pixels=least,
        max_pixels=most,
        fps=float(settings.number("fps", FPS)) if sampled else None,
        min_frames=patches.temporal,
        max_frames=MAX_FRAMES,
        opening=token_text(checkpoint, config.image_start_token_id),
        closing=token_text(checkpoint, config.image_end_token_id),
        choice=cast(Choice, choice),
        longest=float(settings.number("max_duration", MAX_DURATION)),
        stamp=cast(Stamp, stamp),
    )


def _video_settings(
    checkpoint: Checkpoint, patches: Patches, default_size: int, *, counted: bool = False
) -> _Settings:
    """`counted`: the processor has a num_frames that it does not read."""
    settings = _Settings(*video_processor(checkpoint))
    settings.check_patches(patches, default_size)
    for name in ("num_frames", "cap_pixels_per_frame"):
        if settings.get(name, None) and not (counted and name == "num_frames"):
            raise FamilyError(
                f"{settings.place}: expected no {name}, found {settings.raw[name]}; this version "
                "of avl samples videos by fps and resizes each alike, remove it"
            )
    return settings


def _frame_steps(settings: _Settings, defaults: Mapping[str, Any]) -> ImageProcessing:
    steps = settings.steps(defaults)
    if steps.resample not in KERNELS:
        known = ", ".join(map(str, sorted(KERNELS)))
        raise settings.unfit(f"resample to be one of {known} for videos", steps.resample)
    return steps

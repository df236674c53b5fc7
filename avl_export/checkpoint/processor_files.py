"""Which of a checkpoint's files say how pictures and videos are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from avl_export.checkpoint.checkpoint import Checkpoint

NESTED = "processor_config.json"
IMAGE = "preprocessor_config.json"
VIDEO = "video_preprocessor_config.json"
# What names a class or a file's maker, and no step.
NAMES = ("image_processor_type", "video_processor_type", "feature_extractor_type")
MAKERS = ("processor_class", "_processor_class", "auto_map")

Kind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one kind of processor, and the file that they come from."""

    values: dict[str, Any]
    file: str


def settings_of(checkpoint: Checkpoint, kind: Kind) -> list[Settings]:
    """All settings of a kind, those first that transformers takes; [] if there are none.

    What processor_config.json holds under the processor's name comes first, then the file of its
    own. A video processor without either takes the image processor's.
    """
    nested = checkpoint.read_json(NESTED)
    found: list[tuple[Any, str]] = [(nested.get(f"{kind}_processor"), NESTED)]
    if kind == "video":
        found.append((checkpoint.read_json(VIDEO), VIDEO))
    found.append((checkpoint.read_json(IMAGE), IMAGE))
    if kind == "video":
        found.append((nested.get("image_processor"), NESTED))
    return [Settings(values, file) for values, file in found if isinstance(values, dict) and values]


def processor_notes(checkpoint: Checkpoint, video: bool) -> tuple[str, ...]:
    """Lines about files that say something else than those that count.

    Args:
        video: whether the package takes videos.
    """
    kinds: tuple[tuple[Kind, str], ...] = (("image", "pictures"), ("video", "videos"))
    lines = []
    for kind, things in kinds if video else kinds[:1]:
        first, *others = settings_of(checkpoint, kind) or [Settings({}, "")]
        if kind == "video":
            # The image processor's settings are meant for videos only where there are no others.
            others = [other for other in others if other.file == VIDEO]
        aside = [other.file for other in others if differs(other.values, first.values)]
        if aside:
            lines.append(
                f"{things} are prepared as {first.file} says, as by transformers; left aside: "
                f"{', '.join(aside)}, which says otherwise"
            )
    return tuple(lines)


def differs(other: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Whether settings say of a step otherwise than the chosen ones."""
    ignored = (*NAMES, *MAKERS)
    return any(
        value is not None and chosen.get(name) != value
        for name, value in other.items()
        if name not in ignored
    )

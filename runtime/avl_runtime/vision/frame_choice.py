"""Which frames of a video GLM's processors take (transformers' Glm4v- and Glm46VVideoProcessor)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from avl_runtime.vision.load.videos import Video

RATES: Final = ((30, 3.0), (300, 1.0), (math.inf, 0.5))  # pairs of frames a second, by duration
LONGEST: Final = 2400  # seconds that count
MOST: Final = 640  # frames


def stepped(video: Video, fps: float, rate: float, longest: float) -> list[int]:
    """A frame every 1 / `rate` seconds, or as many over all of what takes longer than `longest`.

    Each is the first one that is shown then. As transformers' Glm4vVideoProcessor does.
    """
    total, last = video.count, video.count - 1
    duration = total / fps
    if duration <= longest:
        steps = np.arange(max(math.floor(duration * rate), 1))
        places = [math.ceil(int(i) * fps / rate) for i in steps]
        times = steps / rate
    elif int(longest * rate) >= total:
        return _paired(range(total))
    else:
        times = np.linspace(0, duration, int(longest * rate))
        places = [math.ceil(t * fps) for t in times]
    if video.seconds is not None:
        places = np.ceil(video.places(times) - 1e-8).astype(int).tolist()
    return _paired([min(last, place) for place in places])


def paced(video: Video, fps: float, group: int) -> list[int]:
    """Frames at a pace that depends on the video's duration.

    As transformers' Glm46VVideoProcessor does.
    """
    total = video.count
    duration = total / fps
    counted = min(duration, LONGEST)
    pace = group * next(rate for most, rate in RATES if counted <= most)
    wanted = min(int(counted * pace), MOST)
    indices = list(range(total))
    if total >= wanted:
        indices = _due(video, fps, 1 / pace, int(duration))
    if len(indices) != wanted:
        first, last = (indices[0], indices[-1]) if len(indices) < wanted else (0, total - 1)
        indices = np.linspace(first, last, wanted, dtype=int).tolist()
    return _paired(indices)


def _due(video: Video, fps: float, apart: float, end: int) -> list[int]:
    """The first frame of every `apart` seconds before second `end`."""
    found, due, step = [], 0.0, 1 / fps
    for index in range(video.count):
        if (index * step if video.seconds is None else video.seconds[index]) >= due:
            due += apart
            found.append(index)
            if due >= end:
                break
    return found


def _paired(indices: Sequence[int]) -> list[int]:
    """Each of them once, the last one twice if they are odd in number."""
    once = list(dict.fromkeys(indices))
    return [*once, *once[-1:]] if len(once) % 2 else once

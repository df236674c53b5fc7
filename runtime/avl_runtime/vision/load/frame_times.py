"""When the frames of a video are shown, from the times in its packets.

What a file announces as its rate is often another: Matroska's is the one that the writer aimed at,
AVI's counts empty frames, GIF's and FLV's are guesses from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """The rate of a video, and its frames' own times where they do not follow a constant rate.

    Attributes:
        fps: frames a second; of a varying rate the mean, so that count / fps is the duration.
            None where the file says nothing.
        seconds: when each frame is shown, from the first one on, ascending; None where frame i is
            shown at i / fps, give or take half a frame.
    """

    fps: float | None
    seconds: tuple[float, ...] | None


def frame_times(
    ticks: Sequence[int], tick: Fraction, last: int, announced: Fraction | None
) -> FrameTimes:
    """Rate and times of frames shown at `ticks`.

    Args:
        ticks: when each frame is shown, ascending, each `tick` seconds long.
        last: how long the last frame is shown, 0 if unknown.
        announced: frames a second as the file says, None or 0 if it does not.
    """
    rate = float(announced) if announced else None
    seconds = [float((one - ticks[0]) * tick) for one in ticks]
    count, span = len(seconds), seconds[-1]
    if rate and _follows(seconds, rate):
        return FrameTimes(rate, None)
    if count < 2 or span <= 0:
        return FrameTimes(rate, None)
    shown_for = float(last * tick) if last > 0 else span / (count - 1)
    return FrameTimes(count / (span + shown_for), tuple(seconds))


def _follows(seconds: Sequence[float], rate: float) -> bool:
    """Whether no frame is shown half a frame or more from where a constant rate has it."""
    return all(abs(one * rate - index) < 0.5 for index, one in enumerate(seconds))

"""Video files for tests: frames whose colour tells their number, at any times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (64, 48)
MILLISECOND = Fraction(1, 1000)


def colours(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame of one colour that tells its number, up to 511."""
    red, green = number % 32 * 8, number // 32 * 16
    return np.full((size[1], size[0], 3), (red, green, 128), np.uint8)


def film(
    target: Any,
    times: Sequence[int],
    *,
    rate: int,
    tick: Fraction = MILLISECOND,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    form: str | None = None,
    options: dict[str, str] | None = None,
    settings: dict[str, str] | None = None,
    before: Any = None,
) -> Any:
    """A file with a frame at each of `times`, in ticks; `rate` is what it announces.

    `options` are the encoder's, `settings` the container's. `before` adds streams in front.
    """
    with av.open(target, "w", format=form, options=settings or {}) as container:
        finish = before(container) if before is not None else None
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = SIZE
        stream.pix_fmt = pixels
        stream.codec_context.time_base = tick
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(colours(number), format="rgb24")
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if finish is not None:
            finish()
    return target


def shown_times(path: Path | str, stream: int = 0) -> list[float]:
    """When each frame is shown, by decoding all of them, from the first one on."""
    with av.open(path) as container:
        frames = container.decode(container.streams.video[stream])
        times = [frame.pts * frame.time_base for frame in frames]
    return [float(time - times[0]) for time in times]


def last_duration(path: Path | str) -> float:
    """How long the frame that is shown last is shown, by its packet; 0 if it does not say."""
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        last = max(packets, key=lambda packet: packet.pts)
        return float((last.duration or 0) * last.time_base)

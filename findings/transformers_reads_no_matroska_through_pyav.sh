#!/usr/bin/env bash
# transformers' load_video takes the number of frames from the container's header. Matroska has no
# such field (nor have WebM, FLV and fragmented MP4): PyAV, its default backend, says 0 for them, and
# so a whole, ordinary MKV file is refused: num_frames=8 "exceeds total_num_frames=0", and with no
# number asked for it is an IndexError. Decoding the same file gives all frames, and the same
# packets in MP4 are read.
#
# Guess before running: MKV and MP4 with the same packets give the same 8 frames.
# Found with transformers 5.23.0 and av 18.1.0: MP4 gives them, MKV and fragmented MP4 ValueError.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    transformers==5.23.0 av==18.1.0 numpy==2.4.6 pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON' 2>&1 | grep -v "PyTorch was not found"
from fractions import Fraction

import av
import numpy as np
import transformers
from transformers.video_utils import load_video

CASES = {
    "a.mp4": {},
    "a.mkv": {},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
}
found = {}
print("transformers", transformers.__version__, "av", av.__version__)
for name, settings in CASES.items():
    with av.open(name, "w", options=settings) as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(name) as container:
        announced = container.streams.video[0].frames
        decoded = sum(1 for _ in container.decode(video=0))
    results = []
    for how in ({"num_frames": 8}, {"fps": 2}, {}):
        try:
            results.append(len(load_video(name, backend="pyav", **how)[0]))
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    print(f"{name}: header says {announced} frames, decoding gives {decoded}")
    for how, result in zip(("num_frames=8", "fps=2", "all"), results):
        print(f"    {how}: {result}")
    found[name] = (announced, decoded, [str(result).split(":")[0] for result in results])
assert found["a.mp4"] == (60, 60, ["8", "5", "60"]), found
for name in ("a.mkv", "fragments.mp4"):
    assert found[name] == (0, 60, ["ValueError", "ValueError", "IndexError"]), found
PYTHON
echo "as described"

#!/usr/bin/env bash
# A phone held upright stores its video in the rows and columns of its sensor, with a matrix in the
# header that says by how much to turn it. transformers' load_video reads through PyAV by default,
# which decodes only, so that a model sees everybody lie on the side. OpenCV, another backend of the
# same function, turns the frames, and so does load_image with pictures (EXIF). Nothing is said of
# it, and the metadata have the width and height before turning.
#
# Guess before running: every backend gives upright frames, 48 wide and 64 high.
# Found with transformers 5.23.0, av 18.1.0 and opencv-python-headless 5.0.0.93: OpenCV does, PyAV
# gives 64 by 48, sideways.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 av==18.1.0 \
    opencv-python-headless==5.0.0.93 numpy==2.4.6 pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON' 2>&1 | grep -v "PyTorch was not found"
import inspect
from fractions import Fraction

import av
import cv2
import numpy as np
import transformers
from PIL import Image
from transformers.image_utils import load_image
from transformers.video_utils import load_video

# What is seen: 48 wide, 64 high, white above and black below. The sensor has it turned to the left.
seen = np.zeros((64, 48, 3), np.uint8)
seen[:32] = 255
stored = np.ascontiguousarray(np.rot90(seen))
with av.open("phone.mp4", "w") as container:
    stream = container.add_stream("mpeg4", rate=24)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.set_display_rotation(-90)
    for number in range(24):
        frame = av.VideoFrame.from_ndarray(stored, "rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 24)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
exif = Image.Exif()
exif[274] = 6
Image.fromarray(stored).save("phone.png", exif=exif)


def like(frame, wanted):
    return frame.shape == wanted.shape and int(np.abs(frame.astype(int) - wanted).max()) < 32


found = {"load_image": np.asarray(load_image("phone.png"))}
for backend in ("opencv", "pyav"):
    found[backend] = load_video("phone.mp4", num_frames=4, backend=backend)[0][0]
with av.open("phone.mp4") as container:
    rotation = next(container.decode(video=0)).rotation
default = inspect.signature(load_video).parameters["backend"].default
print("transformers", transformers.__version__, "av", av.__version__, "cv2", cv2.__version__)
print("the file says, by PyAV's own frame:", rotation, "degrees; default backend:", default)
for name, frame in found.items():
    how = "upright" if like(frame, seen) else "sideways" if like(frame, stored) else "neither"
    print(f"{name}: {frame.shape[1]} wide, {frame.shape[0]} high, {how}")
assert abs(rotation) == 90 and default == "pyav"
assert like(found["load_image"], seen) and like(found["opencv"], seen)
assert like(found["pyav"], stored)
PYTHON
echo "as described"

#!/usr/bin/env bash
# process_vision_info of qwen-vl-utils prepares pictures and videos for Qwen's vision-language models; a
# video may be a list of frames. Qwen2.5-VL takes sides that are multiples of 28 pixels (patches of 14,
# two by two merged). Frames of a list are first resized to multiples of 56, twice that, and then to
# multiples of 28: frames of 420 by 420, which fit as they are, become 448 by 448 and cost 256 tokens
# instead of 225; those of 476 become 448 too. With resized_height and resized_width they come out at
# that size, but have been resized to another one and back. Nothing is said of it. A picture by itself
# is right, as are frames whose sides are multiples of 56.
#
# Guess before running: a frame that fits stays as it is, to the bit, as a picture does.
# Found with qwen-vl-utils 0.0.14 beside transformers 5.23.0: 448 by 448 of 420 by 420.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 torch==2.13.0 \
    numpy==2.4.6 pillow==13.0.0 requests
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps qwen-vl-utils==0.0.14 \
    torchvision==0.28.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import torch

if torch.version.cuda is None:
    # torchvision's compiled operators (boxes) want CUDA's torch; resizing is torch's interpolate.
    torch.library.register_fake = lambda *_: lambda function: function

from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import Qwen2VLVideoProcessor

print("qwen-vl-utils", version("qwen-vl-utils"), "transformers", version("transformers"))
rng = np.random.default_rng(0)
processor = Qwen2VLVideoProcessor(do_sample_frames=False, cap_pixels_per_frame=True)


def prepared(kind, content, **sides):
    message = {"role": "user", "content": [{"type": kind, kind: content, **sides}]}
    pictures, videos = process_vision_info([message])
    return np.moveaxis(videos[0].numpy(), 1, -1) if kind == "video" else np.asarray(pictures[0])


for side, other in ((392, 392), (420, 448), (448, 448), (476, 448), (504, 504)):
    frames = rng.integers(0, 256, (4, side, side, 3), np.uint8)
    listed = [Image.fromarray(frame) for frame in frames]
    assert np.array_equal(prepared("image", listed[0]), frames[0])
    right = processor(videos=[frames], return_tensors="pt")["video_grid_thw"][0].tolist()
    assert right == [2, side // 14, side // 14]
    found = prepared("video", listed)
    print(f"{side} by {side}: {right[1] * right[2] // 4} tokens a pair of frames in transformers, "
          f"{found.shape[2]} by {found.shape[1]} and {found[0, ..., 0].size // 28**2} in the list")
    assert found.shape == (4, other, other, 3)
    assert np.array_equal(found, frames) == (side == other)
    back = prepared("video", listed, resized_height=side, resized_width=side)
    worst = np.abs(back - frames).max()
    print(f"asked for {side} by {side}: {back.shape[2]} by {back.shape[1]}, values differ by {worst:.0f}")
    assert back.shape == frames.shape and (worst > 50) == (side != other)
PYTHON
echo "as described"

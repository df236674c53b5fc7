#!/usr/bin/env bash
# onnxruntime-extensions, which prepares pictures for onnxruntime-genai, resizes as Pillow does, to
# the last bit, but decodes ordinary JPEG files (colours stored at half the resolution, 4:2:0 or
# 4:2:2) to other pixels: it repeats colour samples where Pillow, and so transformers, interpolates
# between them. At the edges of coloured things values differ by up to a quarter of the range; with
# 4:4:4 files by rounding alone. A CMYK file comes out with four channels though RGB was asked for.
# Comparisons of vision towers between the two libraries need PNG files.
#
# Guess before running: resizing differs (another filter), decoding does not (both use libjpeg).
# Found with onnxruntime-extensions 0.15.2 and Pillow 13.0.0: the opposite.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnxruntime-extensions==0.15.2 \
    pillow==13.0.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from onnxruntime_extensions.pp_api import ImageProcessor
from PIL import Image, ImageDraw

folder = Path(sys.argv[1])
picture = Image.new("RGB", (160, 120), "white")
draw = ImageDraw.Draw(picture)
draw.ellipse((11, 13, 62, 64), fill="red")
draw.rectangle((81, 21, 131, 67), fill="blue")
draw.polygon(((30, 110), (75, 75), (119, 111)), fill="green")


def theirs(path, *more):
    decode = {"name": "decode", "type": "DecodeImage", "attrs": {"color_space": "RGB"}}
    steps = [{"operation": step} for step in (decode, *more)]
    config = folder / "processor.json"
    config.write_text(json.dumps({"processor": {"name": "p", "transforms": steps}}))
    processor = ImageProcessor(str(config))
    return np.asarray(processor.to_numpy(processor.pre_process([str(path)]), 0))[0].astype(int)


def difference(path, found):
    return int(np.abs(found - np.asarray(Image.open(path).convert("RGB")).astype(int)).max())


print("onnxruntime-extensions", version("onnxruntime-extensions"), "Pillow", version("pillow"))
png = folder / "picture.png"
picture.save(png)
resize = {"interpolation": "CUBIC", "width": 77, "height": 50, "keep_aspect_ratio": 0}
resized = theirs(png, {"name": "resize", "type": "Resize", "attrs": resize})
same = np.array_equal(resized, np.asarray(picture.resize((77, 50), Image.Resampling.BICUBIC)))
print("PNG resized to 77 x 50 (bicubic) as Pillow does it:", same)
found = {}
for name, subsampling in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)):
    path = folder / "picture.jpg"
    picture.save(path, quality=90, subsampling=subsampling)
    found[name] = difference(path, theirs(path))
    print(f"JPEG {name}: largest difference from Pillow's pixels {found[name]} of 255")
picture.convert("CMYK").save(folder / "cmyk.jpg")
channels = theirs(folder / "cmyk.jpg").shape[-1]
print("CMYK JPEG with color_space RGB:", channels, "channels")
assert same
assert found["4:4:4"] <= 2
assert found["4:2:2"] > 30
assert found["4:2:0"] > 30
assert channels == 4
PYTHON
echo "as described"

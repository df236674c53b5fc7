#!/usr/bin/env bash
# mistral-common, Mistral's own library, makes tokens and pixels of Pixtral's and later models' pictures; vLLM
# and transformers serve the same checkpoints. Pictures above 1024 pixels it shrinks by OpenCV's cubic
# interpolation, which looks at 4 by 4 pixels however far apart the samples lie; transformers' processor
# of Pixtral uses Pillow's, which averages over all. Where the side is 3072, mistral-common takes every
# third pixel and sees nothing of the others: thin lines vanish or cover everything. The sizes differ
# too where rounding up or down decides on one more row or column of image tokens. Nothing is said of it.
#
# Guess before running: pixels are equal within rounding, tokens are as many.
# Found with mistral-common 1.13.1 beside transformers 5.23.0: white or black where the mean is a third.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check mistral-common==1.13.1 \
    opencv-python-headless==5.0.0.93 transformers==5.23.0 torch==2.13.0 numpy==2.3.5 pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

print("mistral-common", version("mistral-common"), "transformers", version("transformers"))
encoder = ImageEncoder(ImageConfig(image_patch_size=16, max_image_size=1024), SpecialImageIDs(10, 11, 12))
processor = PixtralImageProcessorPil()
mean, std = (np.reshape(one, (3, 1, 1)) for one in (processor.image_mean, processor.image_std))


def both(picture):
    """The brightness (0 to 1) of each pixel that mistral-common and transformers make of a picture."""
    picture = Image.fromarray(picture)
    ours = encoder(ImageChunk(image=picture)).image
    theirs = processor(picture, return_tensors="np")["pixel_values"][0]
    return ours * std + mean, theirs * std + mean


for shift in range(3):
    lines = np.zeros((3072, 3072, 3), np.uint8)
    lines[:, shift::3] = 255
    sampled, averaged = (one[:, :, 8:-8] for one in both(lines))  # without the border
    print(f"a white line in three, from column {shift}: mistral-common {sampled.min():.2f} to "
          f"{sampled.max():.2f}, transformers {averaged.min():.2f} to {averaged.max():.2f}")
    assert np.abs(averaged - 1 / 3).max() < 0.01
    assert np.abs(sampled - (shift == 1)).max() < 0.01
smooth = np.linspace(0, 255, 3072)[None, :, None].repeat(3072, 0).repeat(3, 2).astype(np.uint8)
sampled, averaged = both(smooth)
assert np.abs(sampled - averaged).max() < 0.01  # as a photo's sky: no matter
small = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
sampled, averaged = both(small)
assert np.abs(sampled - averaged).max() < 1e-5  # nothing to shrink

for width, height in ((1024, 768), (3000, 2000), (3196, 2149), (1439, 1587)):
    sizes = [one.shape[1:] for one in both(np.zeros((height, width, 3), np.uint8))]
    tokens = [rows // 16 * (columns // 16) for rows, columns in sizes]
    print(f"{width} by {height}: mistral-common {tokens[0]} image tokens, transformers {tokens[1]}")
    assert (tokens[0] == tokens[1]) == (width in (1024, 3000))
PYTHON
echo "as described"

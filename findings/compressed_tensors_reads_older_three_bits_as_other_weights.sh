#!/usr/bin/env bash
# compressed-tensors writes codes of 3 bits (5, 6 and 7 too) as `pack-quantized`: before 0.18 ten codes
# of 3 bits lie in each word of 32 bits and two bits are empty, since 0.18 codes lie one behind the
# other, across words. The format's name is the same, and the reader asks for no version: a weight
# that an older version wrote is read as another one, without an error. 4 and 8 bits are not changed.
#
# Guess before running: weights written by 0.17.0 and read by 0.20.1 are the same, or an error.
# Found with compressed-tensors 0.17.0 and 0.20.1: 4 bits are the same, 3 bits are another weight.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 torch==2.13.0 \
    pydantic==2.12.5 loguru==0.7.3 psutil==7.1.3
for version in 0.17.0 0.20.1; do
    "$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps \
        --target "$folder/$version" "compressed-tensors==$version"
done
cat > "$folder/either.py" <<'PYTHON'
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

what, path = sys.argv[1:]
packer = BaseCompressor.get_value_from_registry("pack-quantized")
found = {} if what == "write" else load_file(path)
for bits in (3, 4):
    weights = QuantizationArgs(num_bits=bits, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
    codes = torch.arange(4 * 96).reshape(4, 96) % 2**bits - 2 ** (bits - 1)
    if what == "write":
        stored = {"weight": codes.float(), "weight_scale": torch.ones(4, 3)}
        packed = packer.compress(stored, scheme)
        found |= {f"{bits}.{name}": value.contiguous() for name, value in packed.items()}
    else:
        own = {name[2:]: value for name, value in found.items() if name.startswith(f"{bits}.")}
        weight = packer.decompress(own, scheme)["weight"]
        same = int((weight == codes).sum())
        print(f"{bits} bits: {same} of {codes.numel()} weights are those that were written")
        assert (same == codes.numel()) == (bits == 4), same
if what == "write":
    save_file(found, path)
PYTHON
for step in "0.17.0 write" "0.20.1 read"; do
    read -r version what <<< "$step"
    echo "compressed-tensors $version: $what"
    PYTHONPATH="$folder/$version" "$folder/venv/bin/python" "$folder/either.py" "$what" \
        "$folder/tensors"
done
echo "as described"

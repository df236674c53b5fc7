#!/usr/bin/env bash
# TRITON_INTERPRET=1 runs Triton's kernels on a CPU, where they are checked without a GPU. Its
# conversion to FP8 (of a quantized KV cache, of scaled weights) rounds up by setting bits of the
# exponent instead of adding to it: values just below a power of two come out as half that power.
# Values from 480 on are not held at 448, the largest of float8e4nv: some come out as small ones. To
# bfloat16, whose operations its documents call unsupported, it cuts off instead of rounding. It gives
# no error and no warning.
#
# Guess before running: conversions round to nearest even and hold what is too large, as on a GPU.
# Found with triton 3.9.0 beside torch 2.13.0: 7.8 becomes 4, 1000 becomes 256.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps triton==3.9.0
cat > "$folder/convert.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def convert(source, target, count: tl.constexpr):
    at = tl.arange(0, count)
    tl.store(target + at, tl.load(source + at).to(target.dtype.element_ty))


def interpreted(x, dtype):
    found = torch.empty(len(x), dtype=dtype)
    convert[(1,)](x, found, len(x))
    return found.float()


print("triton", triton.__version__, "torch", torch.__version__)
x = torch.tensor([7.0, 7.7, 7.8, -7.8, 31.5, 126.24, 448.0, 1000.0])
wanted = x.to(torch.float8_e4m3fn).float()
found = interpreted(x, torch.float8_e4m3fn)
print("values       ", x.tolist())
print("nearest FP8  ", wanted.tolist())
print("interpreter's", found.tolist())
assert wanted.tolist() == [7, 7.5, 8, -8, 32, 128, 448, 448], wanted
assert found.tolist() == [7, 7.5, 4, -4, 16, 64, 448, 256], found
x = torch.randn(1 << 12, generator=torch.Generator().manual_seed(0))
for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16):
    wanted, found = x.to(dtype).float(), interpreted(x, dtype)
    wrong = float((wanted != found).float().mean())
    halved = float((2 * found == wanted).logical_and(wanted != 0).float().mean())
    print(f"{dtype}, normally distributed: {wrong:.1%} wrong, {halved:.1%} halved")
    assert wrong > 0.01 and (halved > 0.01) == (dtype != torch.bfloat16)
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/convert.py"
echo "as described"

"""A linear as each tool packed it (scripts/packers_check.sh), against what the tool makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from avl_export.checkpoint.packings.choose import packing_of
from avl_export.checkpoint.safetensors_header import read_header
from avl_export.checkpoint.source import Source
from avl_export.quantize.codes import Dequantized, DequantizedCodes
from avl_export.quantize.stored import NEEDED, READERS

FILE = Path(__file__).parent / "packed_by_tools.safetensors"
with safe_open(FILE, "pt") as opened:
    # Sorted: of metadata every process reads another order.
    TOLD = {case: json.loads(text) for case, text in sorted(opened.metadata().items())}
    MEANT = {case: opened.get_tensor(f"{case}/meant") for case in TOLD}


@pytest.mark.parametrize("case", TOLD)
def test_weights_are_those_of_the_tool(case: str, tmp_path: Path) -> None:
    """Rounded to the dtype in which the tool has them, bit for bit."""
    packing = packing_of({"quantization_config": TOLD[case]["config"]}, tmp_path)
    assert packing is not None
    parts = {
        key.rpartition("/")[2]: Source(key, FILE, record)
        for key, record in read_header(FILE).items()
        if key.startswith(f"{case}/") and not key.endswith("/meant")
    }
    assert all(any(part in parts for part in one) for one in NEEDED[packing.layout])
    meant = MEANT[case]
    outputs, inputs = meant.shape
    made = READERS[packing.layout](packing, (outputs, inputs), parts, "F32")
    if not isinstance(made, Dequantized):
        made = DequantizedCodes.of(made, "F32", "to look")
    found = torch.from_numpy(made.read_floats(0, outputs)).to(meant.dtype)
    assert torch.equal(found, meant)
    assert meant.unique().numel() > 100

"""Plan by the config alone: the tensors that a checkpoint must hold, where it is not at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import nn

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.safetensors_header import ITEM_BITS, TensorRecord
from avl_export.checkpoint.weight_files import SINGLE

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def assume_weights(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """`checkpoint` as if its weights were those of `model` (on the meta device), in one file.

    Each tensor has the dtype that the config names, fp32 if it names none. Tied weights count
    once, as transformers saves them.
    """
    kind = stored_dtype(checkpoint.config) or "F32"
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    tensors: dict[str, tuple[str, TensorRecord]] = {}
    offset = 0
    for name, tensor in cast(Any, model).state_dict().items():
        if name in tied:
            continue
        nbytes = tensor.numel() * ITEM_BITS[kind] // 8
        tensors[name] = (SINGLE, TensorRecord(kind, tuple(tensor.shape), offset, nbytes))
        offset += nbytes
    return replace(checkpoint, shards={SINGLE: checkpoint.folder / SINGLE}, tensors=tensors)


def stored_dtype(config: dict[str, Any]) -> str | None:
    """F32, F16 or BF16, whichever the config names as that of its weights; None if none."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str):
                return STORED.get(part[key])
    return None

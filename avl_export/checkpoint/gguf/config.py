"""The configuration of a decoder, as a GGUF file's metadata tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avl_export.checkpoint.gguf.header import GgufFile
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted

ASK = "pass --config with the folder of the model that the file was made from"


class Told:
    """The values of one architecture in a file."""

    def __init__(self, file: GgufFile, prefix: str) -> None:
        self.file, self.prefix = file, prefix

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number above 0.

        Raises:
            CheckpointError: there is none.
        """
        found = self.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < 1 << 31:
            raise self.unfit(name, "a number above 0", found)
        return found

    def real(self, name: str, default: float | None = None) -> float:
        """A number above 0; of what a file rounded to float32 the shortest that rounds so.

        Raises:
            CheckpointError: there is none.
        """
        found = self.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self.unfit(name, "a number above 0", found)
        if not math.isfinite(found) or found <= 0:
            raise self.unfit(name, "a number above 0", found)
        return float(str(np.float32(found)))

    def token(self, name: str, count: int) -> int | None:
        """The number of a token among `count`; None where the file has no such value.

        Raises:
            CheckpointError: something else is there.
        """
        found = self.get(name, None)
        if found is None or found == 0xFFFFFFFF:  # which stands for none
            return None
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < count:
            raise self.unfit(name, f"a token below {count}", found)
        return found

    def numbers(self, name: str, most: int = 4096) -> list[int]:
        """At most so many whole numbers; none where the file has no such value.

        Raises:
            CheckpointError: something else is there.
        """
        found = self.get(name, None)
        if found is None:
            return []
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "biu" or len(found) > most:
            raise self.unfit(name, "whole numbers", found)
        return [int(one) for one in found]

    def get(self, name: str, default: Any) -> Any:
        return self.file.values.get(f"{self.prefix}.{name}", default)

    def unfit(self, name: str, expected: str, found: Any) -> CheckpointError:
        return CheckpointError(
            f"{self.file.path}: expected {self.prefix}.{name} to be {expected}, found "
            f"{quoted(found, 60)}; {ASK}"
        )


def text_values(file: GgufFile) -> dict[str, Any]:
    """What the file tells of its decoder, by transformers' names.

    Raises:
        CheckpointError: a value is missing, or is none that a decoder can have.
    """
    told = Told(file, str(file.values["general.architecture"]))
    heads = told.number("attention.head_count")
    size = told.number("attention.key_length", told.number("embedding_length") // heads or 1)
    if told.number("attention.value_length", size) != size:
        raise told.unfit("attention.value_length", f"{size} as keys have", "another")
    return {
        "hidden_size": told.number("embedding_length"),
        "intermediate_size": told.number("feed_forward_length"),
        "num_hidden_layers": told.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": told.number("attention.head_count_kv", heads),
        "head_dim": size,
        "rms_norm_eps": told.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": told.real("rope.freq_base", 10000.0),
    }


def check_told(told: Mapping[str, Any], text: Any, folder: Path) -> None:
    """Refuse a configuration of a decoder, `text`, that says otherwise than `told`.

    Raises:
        CheckpointError: it does.
    """
    for name, value in told.items():
        found = getattr(text, name, None)
        if name == "rope_theta":
            found = (text.rope_parameters or {}).get(name)
        if name == "head_dim" and found is None:
            found = text.hidden_size // text.num_attention_heads
        if not isinstance(found, int | float) or not math.isclose(found, value, rel_tol=1e-6):
            raise CheckpointError(
                f"{folder / 'config.json'}: expected {value} as {name}, which the GGUF file tells, "
                f"found {quoted(found, 40)}; pass the --config that the file was made from"
            )

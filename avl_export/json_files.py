"""Read a checkpoint's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avl_export.safetensors_header import FETCH_AGAIN, CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        CheckpointError: there is no such file, or it holds anything but a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: expected a Hugging Face checkpoint with {path.name}, found none; "
            "pass the folder that holds it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON object, found {str(error)[:80]}; {FETCH_AGAIN}"
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object; {FETCH_AGAIN}")
    return value

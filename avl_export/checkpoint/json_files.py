"""Read a checkpoint's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avl_export.checkpoint.safetensors_header import FETCH_AGAIN, CheckpointError, check_pointer


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        CheckpointError: there is no such file, or it holds anything but a JSON object.
    """
    try:
        data = path.read_bytes()
        check_pointer(data, path)
        value = json.loads(data.decode())
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

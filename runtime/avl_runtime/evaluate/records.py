"""Reads what avl-eval wrote, for another table or plot of the same figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError, quoted, shown
from avl_runtime.evaluate.measure import TIMES

LIMIT = 64 << 20  # bytes
SHARES = ("kv", "flops")  # a number each; the others may be None
OTHERS = ("image_kv", "first_token", "divergence")


class RecordError(AvlError):
    """A record of an evaluation is missing or damaged."""


def read_record(path: Path) -> dict[str, Any]:
    """The record at `path`, which `avl-eval --json` wrote: "model", and "policies" as rows.

    Raises:
        RecordError: the file is missing, or no such record.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
        found = json.loads(data) if len(data) <= LIMIT else None
    except OSError as error:
        raise RecordError(
            f"{shown(path)}: expected a record that avl-eval --json wrote, found: {error.strerror}"
        ) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("model"), str):
        raise RecordError(
            f"{shown(path)}: expected a record that avl-eval --json wrote, found another file"
        )
    rows = found.get("policies")
    if not isinstance(rows, list) or not rows:
        raise RecordError(f"{shown(path)}: expected at least one policy, found {quoted(rows)}")
    tasks = rows[0].get("scores") if isinstance(rows[0], dict) else None
    for number, row in enumerate(rows, 1):
        fault = _fault(row, tasks)
        if fault is not None:
            raise RecordError(
                f"{shown(path)}: expected of policy {number} {fault}; measure again with avl-eval"
            )
    return found


def _fault(row: Any, tasks: Any) -> str | None:
    """What a row lacks, None if nothing."""
    if not isinstance(row, dict) or not isinstance(row.get("policy"), str):
        return "an object with its name as policy"
    scores, errors = row.get("scores"), row.get("standard_errors", {})
    if not isinstance(scores, dict) or not scores or not all(map(_number, scores.values())):
        return f"scores by task, found {quoted(scores)}"
    if scores.keys() != tasks.keys():
        return f"the tasks of the first, found {quoted(list(scores))}"
    if not isinstance(errors, dict) or not all(e is None or _number(e) for e in errors.values()):
        return f"standard errors by task, found {quoted(errors)}"
    timed = [name for name in TIMES if name in row]
    wrong = (name for name in (*SHARES, *OTHERS, *timed) if not _fits(name, row.get(name)))
    return next((f"a number as {name}, found {quoted(row.get(name))}" for name in wrong), None)


def _fits(name: str, value: Any) -> bool:
    return (value is None and name in OTHERS) or _number(value, finite=name != "divergence")


def _number(value: Any, *, finite: bool = True) -> bool:
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    return kind and (not finite or math.isfinite(value))

"""What is asked: the package's own tasks, or a folder of pictures with prompts and answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError, quoted, shown
from avl_runtime.evaluate.metrics import METRICS
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score as task_score
from avl_runtime.vision.load.images import ImageLike
from avl_runtime.vision.load.sources import file_below

KEYS = {"images", "prompt", "answers", "metric"}
LINE_LIMIT = 1 << 20  # characters


class CaseError(AvlError):
    """Evaluation data is missing or damaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One question; `score` rates a reply from 0 to 1 (CIDEr: from 0 to 10)."""

    task: str
    images: tuple[ImageLike, ...]
    prompt: str
    score: Callable[[str], float]


def task_cases(task: str, count: int) -> Iterator[Case]:
    """`count` held-out samples of a built-in task, drawn one by one.

    Raises:
        CaseError: there is no such task.
    """
    if task not in TASKS:
        raise CaseError(
            f"expected a task of {', '.join(TASKS)}, found {quoted(task)}; for data of your own "
            "use --data FILE.jsonl"
        )
    for sample in samples(task, "held-out", count):

        def score(text: str, sample: Any = sample) -> float:
            return task_score(sample, text)

        yield Case(task, (sample.image,), sample.prompt, score)


def read_cases(path: Path) -> list[Case]:
    """Cases of a JSONL file, one object a line.

    {"images": ["cat.png"], "prompt": "…", "answers": ["…"], "metric": "exact|f1|anls|cider"}

    Pictures are files in the folder of the JSONL file or below it.

    Raises:
        CaseError: the file is missing, or a line does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CaseError(
            f"{shown(path)}: expected a JSONL file in UTF-8, found: {shown(why)}"
        ) from None
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    raw = [_parsed(line, f"{path}:{number}") for number, line in lines]
    if not raw:
        raise CaseError(f"{path}: expected one case a line, found none")
    corpus = [entry["answers"] for entry in raw]
    cases = []
    for (number, _), entry in zip(lines, raw, strict=True):
        images = tuple(_inside(path.parent, name, f"{path}:{number}") for name in entry["images"])
        rate = METRICS[entry["metric"]](corpus)

        def score(reply: str, rate: Any = rate, answers: Any = entry["answers"]) -> float:
            return float(rate(reply, answers))

        cases.append(Case(entry["metric"], images, entry["prompt"], score))
    return cases


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line) if len(line) <= LINE_LIMIT else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or set(entry) != KEYS:
        found = shown(", ".join(entry)) if isinstance(entry, dict) else "other data"
        raise CaseError(
            f"{where}: expected an object with {', '.join(sorted(KEYS))}, found "
            f"{found or 'an empty one'}; name these alone"
        )
    if not isinstance(entry["prompt"], str):
        raise CaseError(f"{where}: expected a prompt as text, found {quoted(entry['prompt'])}")
    for key in ("images", "answers"):
        value = entry[key]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise CaseError(f"{where}: expected {key} as a list of texts, found {quoted(value)}")
    if not entry["answers"]:
        raise CaseError(f"{where}: expected at least one answer, found none")
    if not isinstance(entry["metric"], str) or entry["metric"] not in METRICS:
        raise CaseError(
            f"{where}: expected a metric of {', '.join(METRICS)}, found {quoted(entry['metric'])}"
        )
    return entry


def _inside(folder: Path, name: str, where: str) -> Path:
    path = file_below(folder, name)
    if path is None:
        raise CaseError(
            f"{where}: expected a picture in the folder of the JSONL file, found {quoted(name)}; "
            "put it there"
        )
    return path

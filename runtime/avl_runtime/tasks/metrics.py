"""How good an answer is: one number from 0 to 1 a sample, by the task's own measure."""

from __future__ import annotations

import re
from collections import Counter

from avl_runtime.tasks.sample import Sample
from avl_runtime.tasks.scene import COLORS, COLUMNS, ROWS, SHAPES

Triple = tuple[str, str, str]  # color, shape, place

_OBJECT = re.compile(
    rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) "
    rf"at ((?:{'|'.join(ROWS)}) (?:{'|'.join(COLUMNS)}))\b"
)


def score(sample: Sample, text: str) -> float:
    """The measure of the sample's task: F1 of a caption, exact match of vqa, characters of ocr."""
    if sample.task == "caption":
        return caption_f1(text, sample.answer)
    if sample.task == "ocr":
        return character_accuracy(text.strip(), sample.answer)
    return exact_match(text, sample.answer)


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same but for case and surrounding white space, else 0."""
    return float(prediction.strip().casefold() == answer.strip().casefold())


def character_accuracy(prediction: str, answer: str) -> float:
    """1 - edit distance / length of the answer, at least 0."""
    if not answer:
        return float(not prediction)
    return max(0.0, 1 - edit_distance(prediction, answer) / len(answer))


def edit_distance(first: str, second: str) -> int:
    """Least number of characters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            replaced = diagonal + (left != right)
            diagonal = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def caption_f1(prediction: str, answer: str) -> float:
    """F1 of the objects named with color, shape and place; naming one twice counts against it."""
    named, right = Counter(objects(prediction)), Counter(objects(answer))
    if not named and not right:
        return 1.0
    return 2 * (named & right).total() / (named.total() + right.total())


def objects(caption: str) -> list[Triple]:
    """Every "COLOR SHAPE at PLACE" in a caption, in its order."""
    return [(color, shape, place) for color, shape, place in _OBJECT.findall(caption.casefold())]

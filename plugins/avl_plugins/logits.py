"""What a caller reads of the logits of a step: whoever computes them may leave out the rest."""

from __future__ import annotations

import enum


class Logits(enum.IntEnum):
    """What is read of the logits. Numbers are those that kernels know (`cpu/ort_logits.c`).

    ALL: every one. LARGEST: the largest of each row, and others that are no smaller; in place of
    the rest there may be -inf. NONE: there may be NaN.
    """

    ALL = 0
    LARGEST = 1
    NONE = 2

"""Steps computed again, image tokens counting for more or less (CAAC, arXiv 2505.21472)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies import Action
from avl_plugins.policies.action import MOST_WEIGHT


def weights_of(
    due: Sequence[Sequence[Action]], logits: NDArray[np.float32], image_tokens: Sequence[int]
) -> dict[int, float]:
    """Of B sequences those whose step is computed again, by number: what an image token counts as.

    Args:
        due: for each, what decides after the step.
        logits: [B, V], of the step as it is.
        image_tokens: of each.

    Raises:
        PolicyError: an action, which somebody else may have written, gives no such number.
    """
    found = {}
    for seq, (actions, row, images) in enumerate(zip(due, logits, image_tokens, strict=True)):
        weighing = [action for action in actions if action.weighs]
        if weighing and images:
            confidence = confidence_of(row)
            weight = math.prod(_weight(action, confidence) for action in weighing)
            if weight != 1:
                found[seq] = weight
    return found


def confidence_of(logits: NDArray[np.float32]) -> float:
    """The probability of the likeliest of the tokens with logits [V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    np.exp(wide, out=wide)  # in place: new memory for a vocabulary takes longer than all of this
    return float(1 / wide.sum())


def _weight(action: Action, confidence: float) -> float:
    weight = action.weight(confidence)
    least = 1 / MOST_WEIGHT
    number = isinstance(weight, int | float | np.integer | np.floating)
    if not number or not least <= weight <= MOST_WEIGHT:
        raise PolicyError(
            f"{type(action).__name__}: expected a number from {least} to {MOST_WEIGHT:.0f} from "
            f"weight(), found {quoted(weight)}; mend the action"
        )
    return float(weight)

"""CAAC: image tokens count for more where the model is unsure (arXiv 2505.21472, WACV 2026).

Confidence-aware attention re-scaling is the one half. Where the likeliest next token has at most
the probability `below`, the step is computed once more, with the scores of image tokens raised in
all layers and heads. The paper's code multiplies scores, signs and all, so that image tokens with
negative ones lose attention; meant is that all gain. Ours adds the factor's logarithm: before it is
normalised, the attention to each image token is multiplied by the factor.

The other half is `calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import MOST_WEIGHT, Action, When
from avl_plugins.policies.base import Policy
from avl_plugins.policies.calibrate import Calibrate, check_calibration
from avl_plugins.policies.checks import check_weight, is_number
from avl_plugins.policies.ranking import ATTENTION, Ranking
from avl_plugins.policies.view import Fates, View, fates


@dataclass(frozen=True, slots=True)
class Rescale(Action):
    """A step with a confidence p of at most `below` is computed again, images weighing more.

    Each image token then counts as p + (1 - p) `most` tokens: the paper's factor, whose least is 1.
    """

    below: float
    most: float

    when: ClassVar[frozenset[When]] = frozenset({When.STEP})
    moves: ClassVar[bool] = False
    weighs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """
        Raises:
            PolicyError: a value is out of range.
        """
        check_options("Rescale", self.below, self.most)

    @property
    def ranking(self) -> Ranking:
        return ATTENTION  # nobody asks for it

    @property
    def decides(self) -> str:
        return "how much image tokens count in a step"

    def choose(self, view: View) -> Fates:
        return fates(np.ones(view.positions.shape, np.bool_))

    def weight(self, confidence: float) -> float:
        return 1.0 if confidence > self.below else confidence + (1 - confidence) * self.most


@dataclass(frozen=True, slots=True)
class CAAC(Policy):
    """Compute steps with a confidence of at most `below` again, with images up to `most` times.

    With `beta` above 0 attention is calibrated in the first `layers` layers.
    """

    below: float = 0.25
    most: float = 1.5
    beta: float = 0.0
    layers: int = 10

    name: ClassVar[str] = "caac"

    def __post_init__(self) -> None:
        check_options(self.name, self.below, self.most)
        check_calibration(self.name, self.beta, self.layers)

    def actions(self) -> tuple[Action, ...]:
        evening = (Calibrate(self.beta, self.layers),) if self.beta else ()
        # A gate that is shut would have every step compute all logits.
        return (*evening, Rescale(self.below, self.most)) if self.below else evening


def check_options(policy: str, below: object, most: object) -> None:
    """Refuse a threshold that is no probability, or a factor that lowers attention.

    Raises:
        PolicyError: one is.
    """
    check_weight(policy, "below", below, "it is a probability, 1 computes every step again")
    if not is_number(most) or not 1 <= most <= MOST_WEIGHT:
        raise PolicyError(
            f"{policy}: expected most from 1 to {MOST_WEIGHT:.0f}, found {quoted(most)}; it is how "
            "many tokens an image token counts as"
        )

"""scripts/choosing_cost.py: what it compares, not how fast that is."""

from __future__ import annotations

from avl_runtime import LVLM
from choosing_cost import POLICIES, figures, measure, of_calibration, of_frames, of_video


def test_every_policy_is_timed_beside_dense_attention(tiny: LVLM) -> None:
    policies = [f"{name}{',' if ':' in name else ':'}keep=0.5" for name in POLICIES]
    (one,) = measure(tiny, policies, "0.5", 2, 1, 0)
    assert [*one["prompt"]] == ["dense", *policies] and [*one["chosen"]] == policies
    assert [*one["video"]] == of_frames("0.5") and all(one["video"].values())
    assert len(one["calibrated"]) == 2 and all(one["calibrated"])


def test_ratios_are_of_the_same_round() -> None:
    rounds = [
        {
            "prompt": {"dense": dense, "pool": pool},
            "chosen": {"pool": 0.1},
            "video": {"pool": 0.2},
            "calibrated": [4, 2],
        }
        for dense, pool in ((1, 0.5), (2, 0.5), (4, 2))
    ]
    found = figures(rounds, "pool")
    assert found["prompt_ms"] == 500 and found["prompt"]["median"] == 0.5
    assert found["choice"]["median"] == 0.05
    found = of_video(rounds, "pool")
    assert found["choice_ms"] == 200 and found["choice"]["median"] == 0.1
    found = of_calibration(rounds)
    assert found["first"]["median"] == 2 and found["next"]["median"] == 1

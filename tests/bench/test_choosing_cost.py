"""scripts/choosing_cost.py: what it compares, not how fast that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from avl_plugins.errors import PolicyError
from avl_runtime import LVLM
from choosing_cost import (
    POLICIES,
    calibrate,
    figures,
    measure,
    of_calibration,
    of_frames,
    of_video,
    sentence,
)
from choosing_cost import main as choosing_cost
from merged_rows import main as merged_rows


def test_every_policy_is_timed_beside_dense_attention(tiny: LVLM) -> None:
    policies = [f"{name}{',' if ':' in name else ':'}keep=0.5" for name in POLICIES]
    (one,) = measure(tiny, policies, "0.5", 2, 1, 0)
    assert [*one["prompt"]] == ["dense", *policies] and [*one["chosen"]] == policies
    assert [*one["video"]] == of_frames("0.5") and all(one["video"].values())


def test_calibration_is_timed_where_attention_is_biased(tiny: LVLM) -> None:
    with pytest.raises(PolicyError, match="--restore"):
        calibrate(tiny, 1, 1, 0)


def test_ratios_are_of_the_same_round() -> None:
    rounds = [
        {
            "prompt": {"dense": dense, "pool": pool},
            "chosen": {"pool": 0.1},
            "video": {"pool": 0.2},
        }
        for dense, pool in ((1, 0.5), (2, 0.5), (4, 2))
    ]
    found = figures(rounds, "pool")
    assert found["prompt_ms"] == 500 and found["prompt"]["median"] == 0.5
    assert found["choice"]["median"] == 0.05
    found = of_video(rounds, "pool")
    assert found["choice_ms"] == 200 and found["choice"]["median"] == 0.1
    found = of_calibration([{"dense": dense, "first": 4, "next": 2} for dense in (1, 2, 4)])
    assert found["first"]["median"] == 2 and found["next"]["median"] == 1


def test_documents_tell_the_costliest_choices_and_calibration_where_it_was_timed() -> None:
    def cost(choice: float) -> dict[str, dict[str, float]]:
        return {"prompt": {"median": 0.1 + choice}, "choice": {"median": choice}}

    record = {
        "machine": {"cpu": "a processor"},
        "pictures": 2,
        "keep": "0.25",
        "dense_ms": 1500.0,
        "policies": {"pool:keep=0.25": cost(0.002), "mmtok:keep=0.25": cost(0.03)},
        "video": {"evs:keep=0.25": cost(0.004)},
    }
    found = sentence(record)
    assert "more than 0.13 of the time of dense attention's 1.5 s" in found
    assert "1,152 tokens as one picture's takes 3.0% with `mmtok`, and at most 0.2%" in found
    assert found.endswith("frames 0.4% with `evs`.")
    evened = {"policy": "caac:beta=1", "first": {"median": 4}, "next": {"median": 1.25}}
    found = sentence(record | {"calibrated": evened})
    assert found.endswith("takes 4.00 of dense attention's time, the next 1.25.")


@pytest.mark.parametrize("option", ["--repeats", "--pictures", "--threads"])
def test_counts_of_nothing_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        choosing_cost([option, "0"])
    assert f"{option}: expected a whole number of at least 1" in capsys.readouterr().err


def test_samples_without_an_interval_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        merged_rows(["--samples", "1"])
    assert "--samples: expected a whole number of at least 2" in capsys.readouterr().err


@pytest.mark.parametrize("main", [choosing_cost, merged_rows])
def test_a_record_that_cannot_be_written_is_refused_at_first(
    main: Callable[[Sequence[str]], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--json", str(tmp_path / "gone" / "found.json")])
    assert "--json: expected a file in a folder" in capsys.readouterr().err

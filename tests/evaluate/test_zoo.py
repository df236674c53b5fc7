"""avl-eval --zoo: which policies it asks, of what a package can serve, and what a record tells."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from avl_plugins.policies import Action, Divide, Policy, When, parse, register, registered, spec
from avl_runtime import LVLM
from avl_runtime.cli import eval as command
from avl_runtime.evaluate import Measured, measure, task_cases
from avl_runtime.evaluate.cost import placed_rows
from avl_runtime.evaluate.report import table
from avl_runtime.evaluate.zoo import SHARES, STAGES, Entry, Zoo, zoo

TOKENS = 144  # of a picture of avl-tiny


def asked(
    splits: tuple[int, ...], telling: bool = True, biased: bool = True, layers: int = 32
) -> Zoo:
    """Of a package cut after `splits`, whose encoder tells attention, and takes a bias, or not."""
    dims = SimpleNamespace(num_layers=layers)
    told = {"vision_attention": telling, "restores": biased}
    manifest = SimpleNamespace(splits=lambda: splits, dims=dims, **told)
    return zoo(manifest)  # type: ignore[arg-type]


def test_every_policy_that_drops_is_asked_at_every_share() -> None:
    found = asked((2, 3, 4))
    assert not found.left_out and found.entries[0] == Entry("dense", "dense", "", 1.0)
    names: dict[str, list[Entry]] = {}
    assert found.entries[-1] == Entry("caac", "caac", "in steps", 1.0)
    for entry in found.entries[1:-1]:
        names.setdefault(entry.name, []).append(entry)
    keeping = {
        name
        for name, kind in registered().items()
        if any(field.name in ("keep", "tau") for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    }
    controls = {"random", "random:of=avl", "random:of=embedded", "random:of=cached"}
    assert set(names) == keeping - {"evs"} | controls
    for entries in names.values():
        assert tuple(entry.share for entry in entries) == SHARES
        assert len({entry.stage for entry in entries}) == 1
    policies = [parse(entry.policy) for entry in found.entries]
    assert len(set(policies)) == len(policies)
    stages = [entry.stage for entry in found.entries[1:]]
    assert list(dict.fromkeys(stages)) == list(STAGES.values())
    for stage in list(STAGES.values())[:-1]:  # each has a control
        assert any(e.name.startswith("random") for e in found.entries if e.stage == stage)


@pytest.mark.parametrize("layers", [1, 32])
def test_a_package_without_cuts_is_asked_all_that_needs_none(layers: int) -> None:
    found = asked((), layers=layers)
    assert STAGES[When.BETWEEN] not in {entry.stage for entry in found.entries}
    assert {entry.name for entry in found.entries} > {"dense", "lookm", "random:of=cached"}
    named = [told.partition(":")[0] for told in found.left_out]
    assert named == ["fastv", "pyramiddrop", "sparsevlm", "random"]


@pytest.mark.parametrize("splits", [(2, 3, 4), (2, 4), (8, 16, 24), (1, 5, 7, 9)])
def test_pyramids_leave_the_share_behind_their_last_cut(tiny: LVLM, splits: Any) -> None:
    dims = dataclasses.replace(tiny.package.manifest.dims, num_layers=32)
    for entry in asked(splits).entries:
        if entry.name in ("pyramiddrop", "sparsevlm"):
            rows, _ = placed_rows(dims, parse(entry.policy).actions(), TOKENS)
            assert rows[-1] == round(entry.share * TOKENS) and rows[0] == TOKENS


def test_what_a_package_cannot_serve_is_said() -> None:
    found = asked((2,), telling=False)
    names = {entry.name for entry in found.entries}
    assert names.isdisjoint({"pyramiddrop", "visionzip", "scope"}) and "divprune" in names
    (drops,) = (why for why in found.left_out if why.startswith("pyramiddrop"))
    assert "expected a decoder that is cut where it drops, found one cut after 2" in drops
    assert sum("--vision-attention" in why for why in found.left_out) == 5
    (caac,) = asked((2, 3, 4), biased=False).left_out
    assert "export with --restore" in caac
    (fastv,) = (e for e in asked((1,)).entries if e.name == "fastv" and e.share == SHARES[0])
    assert fastv.policy == "fastv:layer=1"


def test_a_new_policy_comes_along_at_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "_KINDS", dict(spec._KINDS))

    @register
    @dataclass(frozen=True)
    class Lean(Policy):
        keep: float = 0.4
        name: ClassVar[str] = "lean"

        def actions(self) -> tuple[Action, ...]:
            return (Divide(self.keep, self.keep),)

    found = [entry for entry in asked((2,)).entries if entry.name == "lean"]
    assert found == [Entry(f"lean:keep={s}", "lean", "in the cache", s) for s in SHARES]


def test_the_command_notes_stage_share_and_times(
    tiny: LVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    few = (Entry("dense", "dense", "", 1.0), Entry("fastv", "fastv", "between layers", 0.5))
    monkeypatch.setattr(command, "zoo", lambda _: Zoo(few, ("scope: why not",)))
    monkeypatch.setattr(command, "busy_share", lambda: 0.75)
    record = tmp_path / "zoo.json"
    arguments = [str(tiny.package.folder), "--zoo", "--samples", "1", "--tasks", "vqa"]
    assert command.main([*arguments, "--json", str(record)]) == 0
    said = capsys.readouterr()
    assert "left out: scope: why not" in said.err and "75% of the processors" in said.err
    report = json.loads(record.read_text())
    assert report["times"]["busy_before"] == 0.75 and report["times"]["steps"] == 32
    dense, fastv = report["policies"]
    assert (fastv["name"], fastv["stage"], fastv["share"]) == ("fastv", "between layers", 0.5)
    assert min(row[time] for row in (dense, fastv) for time in ("first_ms", "step_ms")) > 0
    assert "| to first token | per token |" in said.out and said.out.count(" ms |") == 4

    def here(work: Any, *columns: Any, processes: int) -> list[Any]:
        return list(map(work, *columns))

    monkeypatch.setattr(command, "map_in_processes", here)
    for more in (["--no-times"], ["--jobs", "2"]):
        assert command.main([*arguments, *more, "--json", str(record)]) == 0
        report = json.loads(record.read_text())
        assert report["times"] is None and "first_ms" not in report["policies"][0]


def test_times_are_medians_of_requests_of_their_own(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of as many steps, in turn for every policy, without placements or logits."""
    timed: list[tuple[str, Any]] = []
    generate = LVLM.generate

    def noted(self: LVLM, *args: Any, **options: Any) -> Any:
        result = generate(self, *args, **options)
        if "min_new_tokens" in options:
            timed.append((options["policy"], options))
            assert result.stats.new_tokens == 33 and not result.placements
            assert result.logits is None
        return result

    monkeypatch.setattr(LVLM, "generate", noted)
    found = measure(tiny, ["dense", "fastv"], task_cases("vqa", 3), drift=False, times=True)
    assert [policy for policy, _ in timed] == ["dense", "fastv"] * 3
    for one in found:
        assert len(one.first_ms) == len(one.step_ms) == 3
        assert one.row()["step_ms"] == pytest.approx(np.median(one.step_ms), abs=1e-3)


def test_a_table_has_times_where_all_rows_have() -> None:
    measured = Measured("dense", {"vqa": [1.0]}, [1], [1], [1], [1], [0], [8.0, 10, 99], [2.0])
    row = measured.row()
    assert (row["first_ms"], row["step_ms"]) == (10, 2)
    assert table([row]).endswith("| 10.00 ms | 2.00 ms |")
    assert " ms |" not in table([row, Measured("avl", {"vqa": [1.0]}, [1], [1], [1]).row()])

"""Whole requests to models of full size: what is made, asked and told, on small ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import family_speed
import make_random
import whole_requests
from choosing_cost import main as choosing_cost
from make_random import PRESETS
from random_config import files_of
from whole_requests import measure

TINY = Path(family_speed.ROOT) / "avl_export/models/avl-tiny"


def test_transformers_is_asked_the_same(tiny_package: Path) -> None:
    case = dataclasses.replace(
        family_speed.case_of(starts=1, repeats=1, new_tokens=4),
        preset=None,
        policies=("dense",),
        kv="fp32",
        pictures=1,
    )
    started = family_speed.candidates(TINY, tiny_package, case, "fp32")
    ask = family_speed.asked(tiny_package)
    report = measure(case, started, 1, 0, lambda line: None, ask)
    own, peer = report["candidates"]
    # In float32 a trained model says the same in both, so both saw the picture and the question.
    assert (own["name"], peer["name"]) == ("dense", family_speed.PEER)
    assert peer["weights"] == "fp32" and peer["same_texts"] == 1
    assert 0 < peer["token_ms"]["median"] < peer["total_ms"]["median"]
    report["ratios"] = family_speed.ratios(report)
    assert report["ratios"]["dense"]["first_over_dense"] == 1
    assert family_speed.table("tiny", report).count("| dense |") == 1


def test_ratios_are_of_medians() -> None:
    def row(name: str, first: float, token: float) -> dict[str, Any]:
        return {"name": name, "first_ms": {"median": first}, "token_ms": {"median": token}}

    rows = [row("dense", 60, 8), row("avl", 30, 4), row(family_speed.PEER, 120, 10)]
    found = family_speed.ratios({"candidates": rows})
    assert list(found) == ["dense", "avl"]
    assert found["dense"]["first_over_peer"] == 0.5 and found["dense"]["token_over_peer"] == 0.8
    assert found["avl"]["first_over_dense"] == 0.5 and found["avl"]["token_over_dense"] == 0.5
    assert "first_over_llama" not in found["avl"]


def test_llama_cpp_counts_by_its_faster_kind() -> None:
    plain, flash = family_speed.LLAMA
    rows = [
        {"name": name, "first_ms": {"median": first}, "token_ms": {"median": token}}
        for name, first, token in [
            ("dense", 60, 8),
            (family_speed.PEER, 120, 10),
            (plain, 200, 16),
            (flash, 100, 32),
        ]
    ]
    rows = [{**row, "peak_rss_bytes": 2**20} for row in rows]
    found = family_speed.ratios({"candidates": rows})
    assert list(found) == ["dense"]
    assert found["dense"]["first_over_llama"] == 0.6 and found["dense"]["token_over_llama"] == 0.5
    lines = family_speed.table(
        "tiny", {"prompt_tokens": 7, "candidates": rows, "ratios": found}
    ).splitlines()
    assert lines[2] == "| dense | 60 | 0.5 | 0.6 | 8.0 | 0.8 | 0.5 | 1 |"
    assert {line.count("|") for line in lines} == {9}


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """In place of known models a small one, whose export is only noted."""
    exports: list[tuple[Any, ...]] = []

    def export(*command: Any) -> None:
        exports.append(command)
        command[command.index("--out") + 1].mkdir()

    files = files_of(PRESETS["small"])
    monkeypatch.setattr(make_random, "known_files", lambda alias: files)
    monkeypatch.setattr(whole_requests, "run", export)
    return exports


def test_models_are_made_once_and_whole(
    tmp_path: Path, small_models: list[tuple[Any, ...]]
) -> None:
    options = ["--models", "smolvlm-256m", "--folder", str(tmp_path), "--prepare"]
    family_speed.main(options)
    family_speed.main(options)
    source = tmp_path / "random-smolvlm-256m"
    assert {path.name for path in tmp_path.iterdir()} == {source.name, f"{source.name}.avl"}
    (export,) = small_models
    assert export[export.index("--model") + 1] == source
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    assert (
        len(vocabulary)
        == json.loads((source / "config.json").read_text())["text_config"]["vocab_size"]
    )


def test_a_disk_without_room_is_refused(
    tmp_path: Path, small_models: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(SystemExit, match=r"expected room for 0\.0 GB in .* name another --folder"):
        family_speed.main(["--folder", str(tmp_path), "--prepare"])
    assert not list(tmp_path.iterdir()) and not small_models


@pytest.mark.parametrize("main", [family_speed.main, whole_requests.main, choosing_cost])
def test_a_folder_that_is_a_file_is_refused_at_first(
    main: Callable[[Sequence[str]], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "within"):
        with pytest.raises(SystemExit, match="2"):
            main(["--folder", str(folder)])
        assert "--folder: expected a folder to write to" in capsys.readouterr().err


@pytest.mark.parametrize("main", [family_speed.main, whole_requests.main])
@pytest.mark.parametrize("text", ["none of JSON", "[1]"])
def test_records_of_something_else_are_left_alone(
    main: Callable[[Sequence[str]], object], text: str, tmp_path: Path
) -> None:
    record = tmp_path / "found.json"
    record.write_text(text)
    with pytest.raises(SystemExit, match="expected records of this script, found something else"):
        main(["--folder", str(tmp_path), "--json", str(record)])
    assert record.read_text() == text


@pytest.mark.parametrize("main", [family_speed.main, whole_requests.main])
def test_a_peers_python_that_is_none_is_refused(
    main: Callable[[Sequence[str]], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--folder", str(tmp_path), "--json", str(tmp_path / "found.json"), "--peer-python"]
    told = "found .*/gone: No such file or directory; name the one that scripts/peers.sh prints"
    with pytest.raises(SystemExit, match=told):
        main([*options, str(tmp_path / "gone")])
    with pytest.raises(SystemExit, match="2"):
        main([*options, ""])
    assert "--peer-python: expected a name" in capsys.readouterr().err

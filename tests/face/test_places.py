"""Places that a command cannot write to or read from are told as what they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from avl_runtime.cli import bench
from avl_runtime.cli import eval as evaluation
from avl_runtime.cli.output import OutputError, check_apart, check_file


def test_a_folder_a_missing_one_and_a_locked_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="expected a file, found a folder; name a file in it"):
        check_file(tmp_path)
    with pytest.raises(OutputError, match="writable folder, found none; make the folder first"):
        check_file(tmp_path / "no" / "x.json")
    check_file(tmp_path / "x.json")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match="found one without permission to write; choose another"):
        check_file(tmp_path / "x.json")


def test_questions_are_looked_for_before_a_package_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nope.jsonl"
    assert evaluation.main([str(tmp_path / "nope.avl"), "--data", str(path)]) == 1
    told = f"{path}: expected a JSONL file in UTF-8, found: No such file or directory\n"
    assert capsys.readouterr().err == f"avl-eval: {told}"


def test_a_package_and_a_record_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for given, found in (["x.avl", "--from-json", "x.json"], "both; leave one out"), ([], "none"):
        with pytest.raises(SystemExit) as ended:
            evaluation.main(given)
        assert ended.value.code == 2
        assert f"of an earlier run, found {found}\n" in capsys.readouterr().err


def test_nothing_is_written_over_what_is_read_or_written_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, link = tmp_path / "x.jsonl", tmp_path / "link.png"
    data.write_text("{}")
    link.symlink_to(data)
    for main, given in (
        (evaluation.main, ["x.avl", "--data", str(data), "--json", str(data)]),
        (evaluation.main, ["x.avl", "--data", str(data), "--plot", str(link)]),
        (evaluation.main, ["--from-json", str(data), "--plot", str(link)]),
        (bench.main, ["x.avl", "--json", str(data), "--csv", str(tmp_path / "." / "x.jsonl")]),
    ):
        assert main(given) == 1
        assert "expected a file of its own to write, found one" in capsys.readouterr().err
    assert data.read_text() == "{}"
    null = Path(os.devnull)
    check_apart(
        [null, null, None, Path("-"), Path("-"), tmp_path / "x.png"], ["data:,x", "-", "\0"]
    )

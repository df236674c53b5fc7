"""What load_serve.py refuses before it loads a server."""

from __future__ import annotations

from pathlib import Path

import pytest

import load_serve
from started import Process


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--minutes", "0", "expected at least 0.2 minutes, found '0'"),
        ("--minutes", "nan", "expected a number, found 'nan'"),
        ("--clients", "0", "expected a whole number of at least 1, found '0'"),
        ("--kinds", "0", "expected a whole number of at least 1, found '0'"),
        ("--kv-bytes", "-1", "expected a whole number of at least 1, found '-1'"),
        ("--json", "/gone/found.json", "expected a file in a folder, found '/gone/found.json'"),
    ],
)
def test_loads_of_nothing_are_refused(
    option: str, value: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        load_serve.main(["package", option, value])
    assert f"argument {option}: {told}" in capsys.readouterr().err


def test_a_package_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"load_serve: .*expected a package folder with avl\.json"):
        load_serve.main([str(tmp_path)])


def test_a_server_that_does_not_begin_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"found none: avl-serve: .*expected a package folder"):
        Process([str(tmp_path)], [])

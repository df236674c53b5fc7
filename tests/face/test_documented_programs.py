"""The Python programs of the documents run, each page's one after another."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/python.md", "docs/policies.md")
PRINTED = {"README.md": "red", "docs/python.md": "793409", "docs/policies.md": "lean:newest=True"}


@pytest.mark.parametrize("page", PAGES)
def test_programs(
    page: str,
    tiny_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "avl-tiny.avl").symlink_to(tiny_package)
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    module = ModuleType("documented")  # dataclasses look up where their class was made
    monkeypatch.setitem(sys.modules, "documented", module)
    programs = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert programs
    for program in programs:
        exec(compile(program, page, "exec"), module.__dict__)  # noqa: S102  # what is tested
    assert PRINTED[page] in capsys.readouterr().out

"""What holds for the repository as a whole."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import grimp
import pytest

from avl_export.checkpoint.supported import SUPPORTED

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "avl_export", ROOT / "runtime/avl_runtime", ROOT / "plugins/avl_plugins")
LONGEST = 350  # lines
FAMILY = 150  # lines, which CONTRIBUTING.md says of a new one
LARGEST = 16 << 20  # bytes
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("script", PYPROJECT["project"]["scripts"])
def test_console_scripts_point_to_functions(script: str) -> None:
    module, function = PYPROJECT["project"]["scripts"][script].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_source_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in PACKAGES
        for path in package.rglob("*.py")
    }
    assert lengths
    assert {path: n for path, n in lengths.items() if n > LONGEST} == {}


def test_a_family_is_one_short_file() -> None:
    files = {name: ROOT / f"avl_export/families/{name}.py" for name in SUPPORTED}
    lengths = {name: len(path.read_text().splitlines()) for name, path in files.items()}
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines >= FAMILY} == {}


@pytest.mark.parametrize(("package", "most"), zip(PACKAGES, (14, 20, 16), strict=True))
def test_little_lies_at_the_top(package: Path, most: int) -> None:
    entries = {path.name for path in package.iterdir()} - {"__pycache__"}
    assert len(entries) <= most, sorted(entries)


def test_modules_import_one_another_without_circles() -> None:
    graph = grimp.build_graph(*(package.name for package in PACKAGES), cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    left = dict(imported)
    while leaves := {
        module for module, needs in left.items() if not needs & left.keys() - {module}
    }:
        left = {module: needs for module, needs in left.items() if module not in leaves}
    assert left == {}


def test_packages_are_typed_and_nested() -> None:
    assert all((package / "py.typed").is_file() for package in PACKAGES)
    assert not (ROOT / "runtime/__init__.py").exists()
    assert not (ROOT / "plugins/__init__.py").exists()


def test_no_committed_file_is_large() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    sizes = {str(path): path.stat().st_size for path in paths if path.is_file()}
    assert {path: size for path, size in sizes.items() if size > LARGEST} == {}


def test_every_direct_dependency_is_pinned() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = {
        requirement.split(">=")[0].lower()
        for requirement in [
            *project["dependencies"],
            *(one for extra in ("export", "eval", "video", "heic", "dev") for one in extras[extra]),
        ]
        if not requirement.startswith("avl[")
    }
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line and not line.startswith("#")}
    assert wanted - pinned == set()


def test_every_extra_is_in_the_readme() -> None:
    install = (ROOT / "README.md").read_text().partition("## Install\n")[2].partition("\n## ")[0]
    rows = " ".join(line.split("|")[1] for line in install.splitlines() if line.startswith("| "))
    extras = set(PYPROJECT["project"]["optional-dependencies"]) - {"dev"}
    assert set(rows.replace("`", " ").replace(",", " ").split()) - {"extra"} == extras


@pytest.mark.parametrize(
    "script",
    [
        "scripts/test.sh",
        "scripts/quickstart.sh",
        "scripts/wheels.sh",
        "scripts/lowest.sh",
        "scripts/page.sh",
        "scripts/clients_check.sh",
        "scripts/packers_check.sh",
        ".ci/run",
    ],
)
def test_scripts_can_be_run_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    named = set(re.findall(r"`(tests/[^`]+)`", (ROOT / "docs/faults.md").read_text()))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()

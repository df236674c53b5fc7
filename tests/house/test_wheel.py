"""What a package index and pip are told of avl, and what the wheel for every platform holds."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tomllib
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INFO = f"avl-{PROJECT['version']}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        env={"AVL_CPU_KERNELS": "off", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    assert path.name == f"avl-{PROJECT['version']}-py3-none-any.whl"
    return ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    return email.message_from_string(wheel.read(f"{INFO}/METADATA").decode())


def test_the_tag_is_for_every_platform(wheel: ZipFile) -> None:
    said = email.message_from_bytes(wheel.read(f"{INFO}/WHEEL"))
    assert said.get_all("Tag") == ["py3-none-any"] and said["Root-Is-Purelib"] == "true"
    assert not [name for name in wheel.namelist() if name.endswith((".so", ".dylib", ".pyc"))]


def test_what_runs_is_there(wheel: ZipFile) -> None:
    names = set(wheel.namelist())
    assert {
        "avl_export/cli.py",
        "avl_runtime/model.py",
        "avl_plugins/policies/__init__.py",
    } <= names
    assert "avl_export/models/avl-tiny/model.safetensors" in names
    for kind in (
        "avl_plugins/ptx/*.ptx.gz",
        "avl_plugins/cpu/*.c",
        "avl_export/checkpoint/configs/*.json",
        "avl_runtime/serve/page/*",
    ):
        folder = next(ROOT.glob(f"*/{kind}"), next(ROOT.glob(kind), None))
        assert folder is not None
        here = {
            f"{kind.rpartition('/')[0]}/{one.name}" for one in folder.parent.glob(Path(kind).name)
        }
        assert here and here <= names


def test_licences(wheel: ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    for name in ("LICENSE", "NOTICE"):
        assert wheel.read(f"{INFO}/licenses/{name}") == (ROOT / name).read_bytes()
    notice = (ROOT / "NOTICE").read_text()
    assert all(known in notice for known in ("CC0", "creativecommons.org/licenses/by/4.0", "MIT"))


def test_what_the_index_shows(metadata: Message) -> None:
    urls = dict(str(text).split(", ", 1) for text in metadata.get_all("Project-URL") or ())
    assert {"Homepage", "Repository", "Documentation", "Issues"} <= urls.keys()
    assert all(url.startswith("https://") for url in urls.values())
    assert metadata["Keywords"] and len(metadata.get_all("Classifier") or ()) > 5
    assert "License ::" not in str(metadata.get_all("Classifier"))  # License-Expression says it
    assert metadata["Summary"] and metadata["Requires-Python"] == ">=3.11"


def test_links_are_whole_addresses_of_files_that_exist(metadata: Message) -> None:
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    shown = str(metadata.get_payload())
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    own = PROJECT["urls"]["Repository"]
    assert all(target.startswith(("https://", "#")) for target in targets)
    here = [target for target in targets if target.startswith(own)]
    assert f"{own}/raw/HEAD/docs/heatmap.png" in here and len(here) > 10
    for target in here:
        kind, path = target.removeprefix(f"{own}/").split("/HEAD/")
        file = ROOT / path.partition("#")[0]
        assert file.is_file() and kind == ("raw" if file.suffix == ".png" else "blob")
    # Nothing else differs from the file in the repository.
    assert (
        re.sub(rf"{re.escape(own)}/(raw|blob)/HEAD/", "", shown) == (ROOT / "README.md").read_text()
    )


def test_extras_keep_their_conditions(metadata: Message) -> None:
    said = [str(text) for text in metadata.get_all("Requires-Dist") or ()]
    for extra, texts in PROJECT["optional-dependencies"].items():
        own = [text for text in said if f"extra == '{extra}'" in text]
        for text in texts:
            name, _, condition = text.partition(";")
            assert name.startswith("avl[") or any(
                one.startswith(name) and condition.strip() in one for one in own
            )
            assert not (name.startswith("avl[") and condition)

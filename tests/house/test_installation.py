"""What is missing is named with a command that installs it, however avl was installed."""

from __future__ import annotations

import json
import shlex
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from avl_export.cli import main as avl_export_main
from avl_plugins import installation
from avl_plugins.installation import requirement
from avl_runtime.cli.eval import main as avl_eval_main
from avl_runtime.machine.installation import MissingError, extras, install_extra, need, shortage
from avl_runtime.tasks import page, sample

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "install"]
METADATA = """Metadata-Version: 2.4
Name: avl
Version: 0.1.0
Requires-Dist: numpy>=2.0
Provides-Extra: video
Requires-Dist: av>=15; extra == 'video'
Provides-Extra: three
Requires-Dist: one[two]>=1.5; extra == 'three'
Requires-Dist: linux-only (>=2,<4) ; (sys_platform == 'linux' and platform_machine == 'x86_64') and extra == 'three'
Requires-Dist: elsewhere>=3; sys_platform == 'plan9' and extra == 'three'
Requires-Dist: plain; extra == "three"
Provides-Extra: dev
Requires-Dist: av>=15; extra == 'dev'
"""  # noqa: E501


def install_as(folder: Path, patch: pytest.MonkeyPatch, origin: object = None) -> None:
    """Let avl be installed with METADATA, from `origin` as pip records it."""
    info = folder / "avl-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    patch.setattr(installation, "installed", lambda: Distribution.at(info))


def editable(folder: Path) -> object:
    return {"dir_info": {"editable": True}, "url": folder.as_uri()}


def test_the_installation_that_runs_these_tests() -> None:
    found = installation.installed()
    assert found is not None and found.metadata["Name"] == "avl"
    assert extras()["video"][0].name == "av"


@pytest.mark.parametrize("name", ["checkout", "a folder, with 100% of äöü"])
def test_a_checkout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    project = '[project.optional-dependencies]\nnewer = ["av>=15", "other"]\n'
    (folder / "pyproject.toml").write_text(project)
    install_as(tmp_path, monkeypatch, editable(folder))
    assert shlex.split(install_extra("video")) == [*PIP, "-e", f"{folder}[video]"]
    assert [one.text for one in extras()["newer"]] == ["av>=15", "other"]  # of the file as it is


@pytest.mark.parametrize(
    "origin",
    [
        None,  # from an index
        {"archive_info": {}, "url": "file:///wheels/avl-0.1.0-py3-none-any.whl"},
        {"dir_info": {}, "url": ROOT.as_uri()},  # pip install of a folder, which may change
        {"dir_info": {"editable": True}, "url": "file:///gone/with/the/checkout"},
    ],
)
def test_a_wheel(origin: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_as(tmp_path, monkeypatch, origin)
    assert shlex.split(install_extra("video")) == [*PIP, "av>=15"]
    monkeypatch.setattr(installation.sys, "platform", "linux")
    monkeypatch.setattr(installation.platform, "machine", lambda: "x86_64")
    assert shlex.split(install_extra("three")) == [
        *PIP,
        "one[two]>=1.5",
        "linux-only>=2,<4",
        "plain",
    ]
    monkeypatch.setattr(installation.platform, "machine", lambda: "aarch64")
    assert shlex.split(install_extra("three")) == [*PIP, "one[two]>=1.5", "plain"]
    assert "'" not in install_extra("no-such-extra")


def test_another_projects_avl_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "avl-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: avl\nVersion: 2.0\n")
    monkeypatch.setattr(installation, "distribution", lambda name: Distribution.at(info))
    assert installation.installed() is None
    assert shlex.split(install_extra("video")) == [*PIP, "-e", f"{ROOT}[video]"]


def test_environments_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_as(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr(installation.shutil, "which", lambda name: f"/usr/bin/{name}")
    uv = ["uv", "pip", "install", "--python", sys.executable]
    assert shlex.split(install_extra("video")) == [*uv, "av>=15"]
    monkeypatch.setattr(installation.shutil, "which", lambda name: None)
    first, second = install_extra("video").split(" && ")
    assert shlex.split(first) == [sys.executable, "-m", "ensurepip"]
    assert shlex.split(second) == [*PIP, "av>=15"]


def test_windows_takes_double_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_as(tmp_path, monkeypatch)
    monkeypatch.setattr(installation.sys, "platform", "win32")
    monkeypatch.setattr(sys, "executable", r"C:\Program Files\py\python.exe")
    assert install_extra("video") == (r'"C:\Program Files\py\python.exe" -m pip install "av>=15"')


def test_requirements() -> None:
    one = requirement("Some.Name [a,b] >= 1.2, <2 ; sys_platform == 'plan9'")
    assert (one.name, one.oldest, one.applies) == ("Some.Name", "1.2", False)
    assert requirement("bare").oldest is None
    assert requirement("x>=1; python_version < '3.99' or sys_platform == 'plan9'").applies
    with pytest.raises(ValueError, match="expected a requirement"):
        requirement(">=3")


def test_what_an_extra_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shortage("video") is None
    monkeypatch.setitem(sys.modules, "av", None)
    assert shortage("video", "av") == f"expected av, found none; run: {install_extra('video')}"
    with pytest.raises(MissingError, match=r"^a\.mp4: expected the packages of the video extra"):
        need("video", what_for="a.mp4")


def test_a_package_that_is_too_old_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_as(tmp_path, monkeypatch)
    old = METADATA.replace("av>=15", "av>=9999.1")
    (tmp_path / "avl-0.1.0.dist-info" / "METADATA").write_text(old)
    said = str(shortage("video"))
    assert said.startswith("expected the packages of the video extra, found av ")
    assert said.endswith("(not 9999.1 or later); run: " + install_extra("video"))


def one_line(capsys: pytest.CaptureFixture[str], extra: str) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert f"run: {install_extra(extra)}" in captured.err
    return captured.err


def test_commands_name_what_they_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded or measured: there need not even be a package."""
    for name in ("sklearn", "matplotlib", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    package, picture = str(tmp_path / "none.avl"), str(tmp_path / "a.png")
    assert avl_eval_main([package]) == 1
    assert "--tasks ocr: expected scikit-learn, found none" in one_line(capsys, "eval")
    assert avl_eval_main([package, "--data", "x.jsonl", "--plot", picture]) == 1
    assert "--plot: expected matplotlib, found none" in one_line(capsys, "eval")
    assert avl_export_main(["--out", package]) == 1
    assert "found no torch; run" in one_line(capsys, "export")
    page._digits.cache_clear()  # what another test has drawn needs no package
    with pytest.raises(MissingError, match="handwritten digits: expected scikit-learn"):
        sample("ocr", "held-out", 0)

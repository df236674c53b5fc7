"""The commands that install what is missing, as fits how avl itself was installed."""

from __future__ import annotations

import json
import platform
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

NAME = "avl"
_OURS = "avl_runtime."  # what avl-run calls; another project may bear the name as well
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(\[[^\]]*\])?\s*([^;]*?)\s*(?:;\s*(.+))?")
_EXTRA = re.compile(r"""\s*(?:and\s+)?extra\s*==\s*['"]([^'"]+)['"]""")
_CONDITION = re.compile(r"""\(?\s*(\w+)\s*==\s*['"]([^'"]*)['"]\s*\)?""")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package that an extra needs.

    Attributes:
        name: on the package index.
        text: as pip takes it, with bounds.
        oldest: the version it needs at least, None for any.
        applies: whether this platform is one that it is for.
    """

    name: str
    text: str
    oldest: str | None
    applies: bool


def installed() -> Distribution | None:
    """The installation of avl that is in use, None where it was not installed."""
    try:
        found = distribution(NAME)
    except PackageNotFoundError:
        return None
    return found if any(one.value.startswith(_OURS) for one in found.entry_points) else None


def checkout() -> Path | None:
    """The folder with pyproject.toml that avl runs from, None if it was installed from a wheel."""
    found = installed()
    if found is None:  # run from a folder that was not installed
        folder = Path(__file__).resolve().parents[2]
    else:
        from urllib.request import url2pathname  # takes 20 ms

        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if not origin.get("dir_info", {}).get("editable"):
            return None
        folder = Path(url2pathname(urlsplit(origin["url"]).path))
    return folder if (folder / "pyproject.toml").is_file() else None


def extras() -> Mapping[str, tuple[Requirement, ...]]:
    """What each extra needs, by its name; of a checkout as it is now, else as it was installed."""
    folder, found = checkout(), installed()
    if folder is not None:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        optional: dict[str, list[str]] = project["optional-dependencies"]
    elif found is not None:
        optional = {str(name): [] for name in found.metadata.get_all("Provides-Extra") or ()}
        for text in found.requires or ():
            for name in _EXTRA.findall(text):
                optional.setdefault(name, []).append(_EXTRA.sub("", text).rstrip(" ;"))
    else:
        return {}
    return {name: tuple(map(requirement, texts)) for name, texts in optional.items()}


def requirement(text: str) -> Requirement:
    """Read a requirement such as `triton>=3.6; sys_platform == 'linux'`.

    Raises:
        ValueError: it is none.
    """
    found = _REQUIREMENT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected a requirement, found {text!r}")
    name, inner, bounds, marker = found.groups()
    bounds = "".join(bounds.strip("()").split())
    oldest = re.search(r">=([^,]+)", bounds)
    return Requirement(
        name, f"{name}{inner or ''}{bounds}", oldest[1] if oldest else None, _applies(marker or "")
    )


def install_extra(extra: str) -> str:
    """The command line that installs what an extra needs, for the Python in use."""
    folder = checkout()
    if folder is not None:
        return install("-e", f"{folder}[{extra}]")
    needed = [one.text for one in extras().get(extra, ()) if one.applies]
    return install(*needed) if needed else f"install avl anew, with its extra {extra}"


def install(*arguments: str) -> str:
    """The command line that installs packages, for the Python in use."""
    return _pip("install", *arguments)


def uninstall(*names: str) -> str:
    """The command line that removes packages, for the Python in use."""
    return _pip("uninstall", *names)


def python(*arguments: str) -> str:
    """The command line that runs the Python in use."""
    return _line(sys.executable or "python", *arguments)


def _pip(action: str, *arguments: str) -> str:
    unasked = ("-y",) if action == "uninstall" else ()
    command = python("-m", "pip", action, *unasked, *arguments)
    if find_spec("pip") is not None:
        return command
    if shutil.which("uv"):  # its environments have no pip
        return _line("uv", "pip", action, "--python", sys.executable or "python", *arguments)
    return f"{python('-m', 'ensurepip')} && {command}"


def _line(*words: str) -> str:
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if sys.platform == "win32":  # cmd takes double quotes alone, and < and > as its own
        return word if re.fullmatch(r"[\w\-.:\\/]+", word) else f'"{word}"'
    return shlex.quote(word)


def _applies(marker: str) -> bool:
    """Whether this platform meets a marker's conditions; those not known here count as met."""
    here = {"sys_platform": sys.platform, "platform_machine": platform.machine()}
    for condition in re.split(r"\s+and\s+", marker.strip()):
        found = _CONDITION.fullmatch(condition)
        if found is not None and here.get(found[1], found[2]) != found[2]:
            return False
    return True

"""Checkouts of avl side by side: the Python of each, its commit, and packages of its own making.

Of a checkout only what never changes its name is used: its commands, and `avl_runtime.LVLM` in the
workers that its Python runs. So code of any age can be measured beside this one.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent
WHERE = "import avl_export; print(avl_export.__file__)"


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout.

    Attributes:
        python: the interpreter that avl is installed in from there.
        root: its folder.
        commit: short; with a + where files differ from it, "unknown" outside git.
    """

    python: Path
    root: Path
    commit: str

    @classmethod
    def of(cls, given: str | Path) -> Tree:
        """A checkout with a virtual environment .venv, or any Python that avl is installed in.

        Raises:
            SystemExit: there is none, with what to run.
        """
        path = Path(given).absolute()
        python = path / ".venv/bin/python" if path.is_dir() else path
        try:
            done = subprocess.run(
                [python, "-E", "-c", WHERE],
                capture_output=True,
                text=True,
                check=False,
                cwd=python.parent if python.parent.is_dir() else None,
            )
        except OSError as error:
            sys.exit(
                f"expected a Python at {python}, found: {error}; run: python3 -m venv "
                f"{path}/.venv && {path}/.venv/bin/pip install -e '{path}[export,video]'"
            )
        if done.returncode:
            sys.exit(
                f"expected a Python with avl, found {python} without; run: {python} -m pip install "
                "-e 'CHECKOUT[export,video]'"
            )
        root = Path(done.stdout.strip()).resolve().parents[1]
        return cls(python, root, _commit(root))

    def script(self, path: str | Path) -> list[str]:
        """What runs a script, as one of this folder or a command of the checkout by its name.

        Variables of the environment that would bring in other code are ignored.

        Raises:
            SystemExit: it is not there.
        """
        found = self.python.parent / path
        if not found.is_file():
            sys.exit(f"expected {path} beside {self.python}, found none; install avl there anew")
        return [str(self.python), "-E", str(found)]

    def run(self, path: str | Path, *arguments: str) -> str:
        """Run a script and wait for it; returns what it printed.

        Raises:
            SystemExit: it fails, with what it said.
        """
        command = [*self.script(path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{self.commit}: {' '.join(command)}:\n{done.stderr}")
        return done.stdout

    def export(self, model: str | Path, out: Path, *options: str) -> Path:
        """Make a package with this checkout's exporter, unchecked; returns its folder.

        Raises:
            SystemExit: the export fails, with what it said.
        """
        self.run("avl-export", "--model", str(model), "--out", str(out), "--no-check", *options)
        return out


def _commit(root: Path) -> str:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return None if done.returncode else done.stdout.strip()

    commit = git("rev-parse", "--short=7", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no")
    return commit + ("+" if changed else "")

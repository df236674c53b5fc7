"""What all commands have in common: --version, --help, and an end without a traceback."""

from __future__ import annotations

import argparse
import importlib
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from avl_runtime import __version__
from avl_runtime.cli.parser import CommandParser

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# What an installed console script does.
SCRIPT = """
import sys
sys.argv[0] = {name!r}
from {module} import {function}
sys.exit({function}())
"""


def script(name: str) -> list[str]:
    module, function = SCRIPTS[name].split(":")
    return [sys.executable, "-c", SCRIPT.format(name=name, module=module, function=function)]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*script(name), *arguments], capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_version_and_help(name: str) -> None:
    done = run(name, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name} {__version__}\n", "")
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    example = done.stdout.partition("\nexample:\n")[2].strip()
    assert example.startswith(f"{name} ") and "\n" not in example
    # Every option that takes a value tells its default; `--policy POLICY` needs one, `--json` not.
    options = re.split(r"\n  (?=-)", done.stdout.partition("\noptions:\n")[2].partition("\n\n")[0])
    valued = [one for one in options if re.match(r"\s*--[a-z-]+ [\[{A-Z]", one)]
    lacking = [one for one in valued if "default" not in one and "what to build for" not in one]
    assert lacking == []
    assert len(options) >= 3


@pytest.mark.parametrize("name", SCRIPTS)
def test_usage_ends_with_2(name: str) -> None:
    done = run(name, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"{name}: error: ")


EMPTY = [
    *((name, [""]) for name in ("avl-run", "avl-info", "avl-build", "avl-bench", "avl-eval")),
    *(("avl-serve", words) for words in ([""], ["p", "--host", ""], ["p", "--api-key", ""])),
    *(("avl-batch", words) for words in (["", "q", "--out", "a"], ["p", "q", "--out", ""])),
    *(("avl-bench", ["p", option, ""]) for option in ("--beside", "--checkpoint", "--peer-python")),
    *(("avl-bench", ["p", option, " "]) for option in ("--json", "--csv")),
    *(("avl-eval", ["p", option, ""]) for option in ("--data", "--json", "--from-json")),
    *(("avl-tune", words) for words in (["", "--data", "d"], ["p", "--data", ""])),
    *(("avl-check", words) for words in ([""], ["p", "--model", ""], ["p", "--lora", ""])),
    *(("avl-export", [option, ""]) for option in ("--model", "--revision", "--out", "--lora")),
]


@pytest.mark.parametrize(("name", "words"), EMPTY)
def test_an_empty_name_is_not_the_working_directory(
    name: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rooms = {"avl-export": "avl_export.cli", "avl-check": "avl_export.check.cli"}
    module = rooms.get(name, f"avl_runtime.cli.{name.removeprefix('avl-')}")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(words)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{name}: error: ")
    assert "expected a" in line and "found" in line
    assert list(tmp_path.iterdir()) == []


def test_defaults_and_examples_are_written_into_the_help() -> None:
    parser = CommandParser("avl-x", "Does x.", "avl-x --n 3", "Some more.")
    parser.add_argument("--n", type=int, default=4, help="how many")
    parser.add_argument("--to", help="where")
    parser.add_argument("--flag", action="store_true", help="whether")
    parser.add_argument("--own", help="mine (default: the package's)")
    text = parser.format_help()
    for part in ("how many (default: 4)", "where (default: none)", "whether\n", "(default: the"):
        assert part in text
    assert text.endswith("Some more.\n\nexample:\n  avl-x --n 3\n")
    assert isinstance(parser, argparse.ArgumentParser)


# Ctrl-C from the first line of a command on, while a module that it imports is being imported:
# `press` is a finder that sends the signal when a chosen module is asked for.
PRESS = """
import os, signal, sys
from importlib.abc import MetaPathFinder
class Press(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
"""
MODULES = {
    "avl-run": ("avl_runtime.cli.run", "numpy", "PIL", "onnxruntime", "avl_runtime.model"),
    "avl-export": ("avl_export.cli", "numpy", "avl_export.plan.plan", "torch", "torch.nn"),
    "avl-check": ("avl_export.check.cli", "numpy"),
    "avl-build": ("avl_runtime.cli.build", "numpy"),
    "avl-bench": ("avl_runtime.cli.bench", "avl_plugins.policies"),
    "avl-eval": ("avl_runtime.cli.eval", "onnxruntime"),
    "avl-tune": ("avl_runtime.cli.tune",),
    "avl-doctor": ("avl_runtime.cli.doctor", "argparse"),
    "avl-info": ("avl_runtime.cli.info", "numpy"),
    "avl-serve": ("avl_runtime.cli.serve", "uvicorn"),
    "avl-batch": ("avl_runtime.cli.batch",),
}
ARGUMENTS = {
    "avl-run": ["no-such.avl", "What?"],
    "avl-export": ["--dry-run"],
    "avl-build": ["no-such.avl", "--backend", "tensorrt-rtx"],
    "avl-check": ["no-such.avl"],
    "avl-info": ["no-such.avl"],
    "avl-serve": ["no-such.avl"],
    "avl-batch": ["no-such.avl", "no-such.jsonl", "--out", "no-such-answers.jsonl"],
}


@pytest.mark.parametrize(
    ("name", "module"), [(name, module) for name, some in MODULES.items() for module in some]
)
def test_ctrl_c_while_imports_run(name: str, module: str) -> None:
    command = script(name)
    command[-1] = PRESS.format(module=module) + command[-1]
    done = subprocess.run(
        [*command, *ARGUMENTS.get(name, [])],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert re.fullmatch(rf"{name}: stopped(, no \w+ was left behind)?\n", done.stderr)


def test_a_command_in_the_background_ignores_ctrl_c() -> None:
    """A shell starts `command &` with SIGINT ignored, and that stays."""
    command = script("avl-doctor")
    command[-1] = PRESS.format(module="avl_runtime.cli.doctor") + command[-1]
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        timeout=600,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 0

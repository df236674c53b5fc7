"""Worker processes: they load once and stay, idle, until they are told to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from avl_runtime.bench.errors import BenchError

# Packages whose own __init__ is left out, as it may need what a peer's environment may lack.
_ROOTS = ("avl_runtime",)
_BOOT = f"""
import runpy, sys, types
module, *folders = sys.argv[1:]
for name, folder in zip({_ROOTS}, folders):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
sys.argv[1:] = []
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def foreign_command(python: str, module: str) -> list[str]:
    """What runs a module of this installation under another Python.

    Raises:
        BenchError: the module's package is not installed.
    """
    folders = []
    for name in _ROOTS:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise BenchError(f"expected {name}, found none; install avl anew, all of it")
        folders.append(str(spec.submodule_search_locations[0]))
    return [python, "-c", _BOOT, module, *folders]


class Worker:
    """A process that answers one request at a time; see `wire`.

    Raises:
        BenchError: it cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], threads: int) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        limits = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        offline = {"HF_HUB_OFFLINE": "1"}
        try:
            self._process = subprocess.Popen(  # noqa: S603  (our own command)
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                env=os.environ | limits | offline,
            )
        except OSError as error:
            self._errors.close()
            raise BenchError(f"{name}: expected to start {command[0]}, found: {error}") from None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            BenchError: the worker says that it failed, or it has ended.
        """
        sent, received = self._process.stdin, self._process.stdout
        if sent is None or received is None:
            raise RuntimeError(f"{self._name}: expected pipes to its process, found none")
        try:
            print(json.dumps(request), file=sent, flush=True)
            line = received.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(f"{self._name}: expected an answer, found {self._end()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self._name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _end(self) -> str:
        """How the process ended, with what it said last."""
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        end = f"that it was ended by signal {-status}" if status < 0 else f"exit status {status}"
        return f"{end}: {said[-1][:300]}" if said else end


def own_command() -> list[str]:
    """What runs the worker of avl itself."""
    return [sys.executable, "-m", "avl_runtime.bench.own"]

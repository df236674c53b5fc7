"""Worker processes: they load once and stay, idle, until they are told to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from avl_runtime.bench.errors import BenchError


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

"""The file of answers: whole lines, one for each request, that outlive the process."""

from __future__ import annotations

import errno
import json
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from avl_plugins.errors import AvlError, quoted, shown
from avl_runtime.serve.batch.asking import Told
from avl_runtime.serve.batch.lines import LineError
from avl_runtime.serve.batch.questions import Questions, key

if sys.platform != "win32":
    import fcntl

SUFFIX: Final = ".run"  # of the file beside the answers that says what they are answers to
BEGIN: Final = '{"id": "batch_req_'  # of each line
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OK: Final = 200
USED: Final = ("completion_tokens", "output_tokens")  # as OpenAI's two protocols call them
Run = Mapping[str, Mapping[str, Any]]


class AnswersError(AvlError):
    """Answers cannot be written there."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the file.

    Attributes:
        failed: whether it tells of an error.
        tokens: that were generated.
    """

    line: bytes
    failed: bool
    tokens: int


class Answers:
    """The file, open; a second process is kept out.

    Attributes:
        answered: [requests] bools, by their places.
        failed: how many answers are errors.
    """

    def __init__(self, path: Path, questions: Questions, run: Run, resume: bool) -> None:
        """Open it, and cut off a last line that is not whole.

        Args:
            run: what the answers follow from; files with those of another run are refused.
            resume: go on with a file that has answers.

        Raises:
            AnswersError: there is something else, or answers that must not be gone on with.
        """
        self.path, self._questions = path, questions
        self.answered = np.zeros(len(questions), bool)
        self.failed = 0
        self._file, made = _opened(path)
        self._made = False
        try:
            self._lock()
            self._made = made
            end = os.fstat(self._file).st_size
            whole = self._whole(end)
            if end:
                self._check(resume, run)
                self._take()
                self._check_rest(whole)
            os.ftruncate(self._file, whole)
            if not whole:
                self._begin(run)
        except BaseException:
            self._drop()
            os.close(self._file)
            raise

    @property
    def done(self) -> int:
        """How many requests have an answer."""
        return int(self.answered.sum())

    def add(self, place: int, row: Row) -> None:
        """Write the answer of a request.

        Raises:
            AnswersError: it cannot be written; what of it was is cut off the next time.
        """
        if self.answered[place]:
            raise RuntimeError("expected a request without an answer")
        line = memoryview(row.line)
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._unwritten(error) from None
        self.answered[place] = True
        self.failed += row.failed

    def close(self) -> None:
        """Have all of it lie on the disk; a file that was made here and has no answer goes.

        Raises:
            AnswersError: it cannot be written.
        """
        try:
            os.fsync(self._file)
            if self._made and not os.fstat(self._file).st_size:
                _beside(self.path).unlink(missing_ok=True)
            self._drop()
        except OSError as error:
            raise self._unwritten(error) from None
        finally:
            os.close(self._file)

    def _drop(self) -> None:
        """Remove a file that was made here, as long as it is empty."""
        if self._made and not os.fstat(self._file).st_size:
            with suppress(OSError):  # Windows removes no open file
                self.path.unlink()

    def _unwritten(self, error: OSError) -> AnswersError:
        name, reason = shown(self.path), shown(error.strerror or error)
        if error.errno in FULL:
            return AnswersError(
                f"{name}: expected room for an answer, found: {reason}; make some, and go on with "
                "--resume"
            )
        return AnswersError(
            f"{name}: expected to write an answer, found: {reason}; mend that, and go on with "
            "--resume"
        )

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file), self.path.stat()):
                raise BlockingIOError  # it was another's, who has removed it
        except (BlockingIOError, FileNotFoundError):
            raise AnswersError(
                f"{shown(self.path)}: expected a file of its own, found one that another process "
                "writes; name another, or wait"
            ) from None

    def _whole(self, end: int) -> int:
        """Bytes of whole lines, of `end` in all."""
        while end:
            start = max(0, end - (1 << 16))
            os.lseek(self._file, start, os.SEEK_SET)
            at = os.read(self._file, end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0

    def _check(self, resume: bool, run: Run) -> None:
        """Refuse answers that are not of this run."""
        name = shown(self.path)
        if not resume:
            raise AnswersError(
                f"{name}: expected no answers yet, found some; go on with them by --resume, or "
                "name another file"
            )
        beside = _beside(self.path)
        try:
            before = json.loads(beside.read_bytes())
        except (OSError, ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise AnswersError(
                f"{name}: expected {shown(beside.name)} beside it, which says what it answers, "
                "found none; name another file"
            )
        for part, values in run.items():
            earlier = before.get(part)
            for what, value in values.items():
                told = earlier.get(what) if isinstance(earlier, dict) else None
                if told != value:
                    raise AnswersError(
                        f"{name}: expected to go on with what it was begun with, {part} with "
                        f"{what} {quoted(told)}, found {quoted(value)}; put it back, or name "
                        "another file"
                    )

    def _take(self) -> None:
        """Note which requests have an answer."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                place = None
                try:
                    row = json.loads(line)
                    place = self._questions.places.get(key(row["custom_id"]))
                    answer = row["response"]
                    failed = answer is None or answer["status_code"] != OK
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    place = None
                if place is None or self.answered[place]:
                    raise AnswersError(
                        f"{shown(self.path)}: expected answers to {shown(self._questions.path)}, "
                        f"each once, found another line {number}; name another file"
                    )
                self.answered[place] = True
                self.failed += failed

    def _check_rest(self, whole: int) -> None:
        """Refuse to cut off what is no part of an answer."""
        begin = BEGIN.encode()
        os.lseek(self._file, whole, os.SEEK_SET)
        if not begin.startswith(os.read(self._file, len(begin))):
            raise AnswersError(
                f"{shown(self.path)}: expected answers, found another line at its end; name "
                "another file"
            )

    def _begin(self, run: Run) -> None:
        """Say what the answers follow from, before there is one."""
        beside = _beside(self.path)
        draft = beside.with_name(f"{beside.name}-")
        try:
            draft.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
            draft.replace(beside)
        except OSError as error:
            raise AnswersError(
                f"{shown(beside)}: expected to write it, found: {shown(error.strerror)}; name "
                "another file for the answers"
            ) from None
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _opened(path: Path) -> tuple[int, bool]:
    """A file to add to, and whether it was made now.

    Raises:
        AnswersError: there can be none.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    try:
        if path.exists() and not path.is_file():
            raise AnswersError(f"{shown(path)}: expected a file, found none; name another")
        with suppress(FileExistsError):
            return os.open(path, flags | os.O_EXCL, 0o666), True
        return os.open(path, flags, 0o666), False
    except (OSError, ValueError) as error:
        raise AnswersError(
            f"{shown(path)}: expected a file that can be written, found: "
            f"{shown(getattr(error, 'strerror', None) or error)}; name another"
        ) from None


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def row_of(name: str, found: Told | LineError) -> Row:
    """The line of a request; the answer's body in it is what avl-serve sends, byte by byte.

    Args:
        name: of the request.
    """
    front = f'{BEGIN}{secrets.token_hex(12)}", "custom_id": {json.dumps(name)}'
    if isinstance(found, LineError):
        error = json.dumps({"code": "invalid_line", "message": str(found)})
        return Row(f'{front}, "response": null, "error": {error}}}\n'.encode(), True, 0)
    head = json.dumps({"status_code": found.status, "request_id": found.id})[:-1]
    line = b'%b, "response": %b, "body": %b}, "error": null}\n'
    failed = found.status != OK
    tokens = 0 if failed else _tokens(found.body)
    return Row(line % (front.encode(), head.encode(), found.body), failed, tokens)


def _tokens(body: bytes) -> int:
    used = json.loads(body).get("usage") or {}
    return sum(used.get(name) or 0 for name in USED)

"""A folder of blocks, in so many bytes, that outlives the process and may be shared by several.

Files are written by a thread, as drafts that are renamed when they are whole, and used only after
they were looked at (`files`). So nothing that happens to the folder, by other processes, a full
disk or a fault of it, harms more than what is kept there.
"""

from __future__ import annotations

import os
import queue
import re
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from avl_plugins.errors import AvlError, shown
from avl_runtime.kv.disk.files import ForeignFileError, read, size_of, write
from avl_runtime.kv.prefixes import Block

SUFFIX: Final = ".safetensors"
DRAFT: Final = ".draft-"
OLD: Final = 3600.0  # seconds after which nobody writes a draft any more
WAITING: Final = 256 << 20  # bytes of blocks that wait to be written; what comes then is not
CLOSING: Final = 10.0  # seconds for what waits when the cache is closed
TICK: Final = 1000  # nanoseconds between the times of two blocks of a chain
_FOLDER: Final = re.compile(r"[0-9a-f]{32}")
_FILE: Final = re.compile(r"[0-9a-f]{64}" + re.escape(SUFFIX))


class CacheFolderError(AvlError):
    """A folder cannot hold rows of prompts."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A file that is there."""

    used: int
    size: int
    path: Path


class PrefixFolder:
    """Blocks by key, as `PrefixCache` has them, in a folder.

    Each hash of what rows depend on, and each user of the system, has a folder in it.
    """

    def __init__(self, folder: Path, limit: int, whose: str) -> None:
        """
        Args:
            folder: made, if it is not there.
            limit: bytes of all files in it; those that were not used for the longest go first.
            whose: of all that rows depend on beside their keys, a SHA-256.

        Raises:
            CacheFolderError: it cannot be made, or is another user's.
        """
        own = folder / whose[:32]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # what is there may be read, though nothing can be added
                own.mkdir(mode=0o700, exist_ok=True)
            foreign = own.is_symlink() or (own.exists() and not _is_ours(own))
            with os.scandir(folder):  # which has to be allowed
                pass
        except OSError as error:
            raise CacheFolderError(
                f"{shown(folder)}: expected a folder for rows of prompts, found: "
                f"{shown(error.strerror or error)}; name another one"
            ) from None
        if foreign:
            raise CacheFolderError(
                f"{shown(own)}: expected a folder of this user's, found another's; remove it, or "
                "name another one"
            )
        self._own, self._whose = own, whose
        self._writer = _Writer(folder, limit)
        self._end = weakref.finalize(self, self._writer.end)

    def read(self, key: bytes, pattern: Block) -> Block | None:
        """The block of a key, if it is there and whole.

        Args:
            pattern: a block of its form, whose arrays hold anything.
        """
        path = self._path(key)
        try:
            return read(path, key, self._whose, pattern)
        except ForeignFileError:
            with suppress(OSError):
                path.unlink()
            _tell(
                f"{shown(self._own.parent)}: expected rows as they were written, found others in "
                f"{path.name[:8]}…; removed, and not used"
            )
        except FileNotFoundError:
            pass
        except OSError as error:
            self._writer.fails("read", error)
        return None

    def leave(self, keys: Sequence[bytes], blocks: Sequence[Block]) -> None:
        """Have the blocks of a chain written, those that are not there, while others go on."""
        chain = [
            _Job(self._path(key), key, self._whose, block)
            for key, block in zip(keys, blocks, strict=False)
        ]
        self._writer.add(chain)

    def flush(self) -> None:
        """Wait until all that was left is written, or cannot be."""
        self._writer.jobs.join()

    def close(self) -> None:
        """Write what waits, for some seconds at most; also done when Python ends."""
        self._end()

    def _path(self, key: bytes) -> Path:
        return self._own / f"{key.hex()}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class _Job:
    path: Path
    key: bytes
    whose: str
    block: Block


class _Writer:
    """Writes in a thread, which begins with the first block."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self.jobs: queue.Queue[list[_Job] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._failing: set[str] = set()
        self._thread: threading.Thread | None = None

    def add(self, chain: list[_Job]) -> None:
        size = sum(one.block.nbytes for one in chain)
        with self._lock:
            if self._waiting and self._waiting + size > WAITING:
                self._tell("late", "prompts come faster than it is written; some are left out")
                return
            self._waiting += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="avl-disk", daemon=True)
                self._thread.start()
        self.jobs.put(chain)

    def end(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self.jobs.put(None)
            if thread is not threading.current_thread():  # where garbage may be collected too
                thread.join(CLOSING)

    def fails(self, what: str, error: OSError) -> None:
        """Tell that the folder cannot be `what`; once, of writing until it can be again."""
        reason = shown(error.strerror or error)
        self._tell(what, f"cannot be {what}: {reason}; goes on without (said once)")

    def _work(self) -> None:
        while (chain := self.jobs.get()) is not None:
            try:
                self._write_all(chain)
            except OSError as error:
                self.fails("written", error)
            finally:
                with self._lock:
                    self._waiting -= sum(one.block.nbytes for one in chain)
                del chain
                self.jobs.task_done()
        self.jobs.task_done()

    def _write_all(self, chain: Sequence[_Job]) -> None:
        """Write what is not there, and have all of a chain count as used now.

        A block never seems to have been used before those that go on from it.
        """
        now, missing = time.time_ns(), []
        for number, job in enumerate(chain):
            used = now - number * TICK
            try:
                os.utime(job.path, ns=(used, used))
            except FileNotFoundError:
                missing.append((job, used))
        if not missing:
            return
        kept = {job.path for job in chain}
        sizes = [size_of(job.key, job.whose, job.block) for job, _ in missing]
        others = self._make_room(sum(sizes), kept)
        for (job, used), size in zip(missing, sizes, strict=True):
            others += size
            if others > self._limit:
                return
            self._write(job, used)
        self._failing.discard("written")

    def _make_room(self, size: int, kept: Collection[Path]) -> int:
        """Remove what was not used for the longest, until there is room or nothing left.

        Returns:
            Bytes of the files that are there then.
        """
        found = sorted(self._files(), key=lambda one: one.used)
        total = sum(one.size for one in found)
        for one in found:
            if total + size <= self._limit:
                break
            if one.path not in kept:
                with suppress(FileNotFoundError):  # another process was faster
                    one.path.unlink()
                total -= one.size
        return total

    def _files(self) -> Iterator[_Found]:
        """The files of this user's in the folder; drafts that were left behind are removed."""
        for folder in _entries(self._folder):
            if not _FOLDER.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
                continue
            for one in _entries(Path(folder.path)):
                with suppress(FileNotFoundError):
                    known = one.stat(follow_symlinks=False)
                    if _FILE.fullmatch(one.name):
                        yield _Found(known.st_mtime_ns, known.st_size, Path(one.path))
                    elif one.name.startswith(DRAFT) and known.st_mtime < time.time() - OLD:
                        Path(one.path).unlink()

    def _write(self, job: _Job, used: int) -> None:
        job.path.parent.mkdir(mode=0o700, exist_ok=True)
        draft = None
        try:
            number, name = tempfile.mkstemp(prefix=DRAFT, dir=job.path.parent)
            draft = Path(name)
            with os.fdopen(number, "wb") as file:
                write(file, job.key, job.whose, job.block)
            os.utime(draft, ns=(used, used))
            draft.replace(job.path)
        except BaseException:
            if draft is not None:
                draft.unlink(missing_ok=True)
            raise

    def _tell(self, what: str, text: str) -> None:
        if what not in self._failing:
            self._failing.add(what)
            _tell(f"{shown(self._folder)}: {text}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder; nothing of another user's."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _is_ours(folder: Path) -> bool:
    return not hasattr(os, "geteuid") or folder.stat().st_uid == os.geteuid()


def _tell(text: str) -> None:
    print(f"avl: {text}", file=sys.stderr, flush=True)

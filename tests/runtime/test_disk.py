"""Rows of prompts on disk: what was not written as it is found is never used."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_runtime.kv.disk import files, folder
from avl_runtime.kv.disk.files import ForeignFileError
from avl_runtime.kv.disk.folder import CacheFolderError, PrefixFolder
from avl_runtime.kv.prefixes import Block

WHOSE = "ab" * 32
DTYPES = (np.float32, np.float16, np.int8, np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def filled(dtype: Any, *shape: int) -> Any:
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(count).integers(0, 256, count, dtype=np.uint8)
    return data.view(dtype).reshape(shape)


def block(size: int = 3, *, whole: bool = True, mass: bool = False) -> Block:
    """Rows of two segments, kept as codes with scales."""
    planes = tuple(
        filled(dtype, 2, 1, 2, size, width)
        for dtype, width in ((np.int8, 5), (np.int8, 5), (np.float32, 1), (np.float32, 1))
    )
    sums = (filled(np.float32, 2, 2, size),) * 2 if mass else ()
    return Block((planes, planes), sums, None if whole else filled(np.float16, size, 7))


def same(found: Block | None, expected: Block) -> None:
    assert found is not None
    arrays, others = files._parts(found), files._parts(expected)
    assert list(arrays) == list(others)
    assert [len(one) for one in found.states] == [len(one) for one in expected.states]
    for name, array in others.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
        assert not arrays[name].flags.writeable


shapes = st.tuples(*[st.integers(1, 3)] * 5)


@st.composite
def blocks(draw: Any) -> Block:
    """Of any types and sizes; some arrays do not lie in one piece."""

    def drawn(*shape: int) -> Any:
        array = filled(draw(st.sampled_from(DTYPES)), *shape[::-1])
        return array.T if draw(st.booleans()) else filled(array.dtype, *shape)

    rows = draw(st.lists(st.lists(shapes, min_size=1, max_size=12), min_size=1, max_size=3))
    masses = draw(st.lists(shapes, max_size=2))
    kept = [draw(st.lists(shapes, max_size=3)) for _ in rows]
    return Block(
        tuple(tuple(drawn(*shape) for shape in segment) for segment in rows),
        tuple(drawn(*shape[:3]) for shape in masses),
        drawn(2, 3) if draw(st.booleans()) else None,
        tuple(tuple(drawn(*shape) for shape in states) for states in kept) if any(kept) else (),
    )


@settings(max_examples=40)
@given(blocks())
def test_files_are_safetensors_and_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, written: Block
) -> None:
    stream = io.BytesIO()
    files.write(stream, key(1), WHOSE, written)
    data = stream.getvalue()
    assert len(data) == files.size_of(key(1), WHOSE, written)
    theirs = safetensors.numpy.load(data)
    assert theirs.keys() == files._parts(written).keys()
    for name, array in files._parts(written).items():
        assert theirs[name].tobytes() == array.tobytes() and theirs[name].shape == array.shape
    path = tmp_path_factory.mktemp("file") / "x"
    path.write_bytes(data)
    same(files.read(path, key(1), WHOSE, written), written)


def test_no_other_byte_is_taken(tmp_path: Path) -> None:
    """Bytes changed, bytes cut, more behind it; other keys, other models, other forms."""
    written, path = block(1, whole=False, mass=True), tmp_path / "x"
    with path.open("wb") as file:
        files.write(file, key(1), WHOSE, written)
    data = path.read_bytes()
    wrong = [
        data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        for at in range(0, len(data), 3)
    ]
    wrong += [data[:length] for length in range(0, len(data), 7)] + [data + b"\0", data * 2]
    for changed in wrong:
        path.write_bytes(changed)
        with pytest.raises(ForeignFileError):
            files.read(path, key(1), WHOSE, written)
    path.write_bytes(data)
    for other in (
        (key(2), WHOSE, written),
        (key(1), "cd" * 32, written),
        (key(1), WHOSE, block(1, mass=True)),
        (key(1), WHOSE, dataclasses.replace(written, mass=written.mass[:1])),
        (key(1), WHOSE, dataclasses.replace(written, rows=written.rows[::-1][:1])),
    ):
        with pytest.raises(ForeignFileError):
            files.read(path, *other)
    same(files.read(path, key(1), WHOSE, written), written)


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """No link is followed, no pipe waited for, and no memory taken for a size that is another."""
    there, path = tmp_path / "there", tmp_path / "x"
    with there.open("wb") as file:
        files.write(file, key(1), WHOSE, block())
    path.symlink_to(there)
    with pytest.raises(OSError, match="symbolic links"):
        files.read(path, key(1), WHOSE, block())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ForeignFileError):
        files.read(path, key(1), WHOSE, block())
    os.truncate(there, 1 << 40)
    with pytest.raises(ForeignFileError):
        files.read(there, key(1), WHOSE, block())
    with pytest.raises(OSError, match="directory"):
        files.read(tmp_path, key(1), WHOSE, block())


def kept(place: Path) -> dict[str, int]:
    """Numbers of the keys whose files there are, with their sizes."""
    return {one.name: one.stat().st_size for one in place.glob("*/*.safetensors")}


def name(number: int) -> str:
    return f"{key(number).hex()}.safetensors"


def test_blocks_outlive_the_process_and_a_damaged_one_is_dropped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new" / "cache"
    first = PrefixFolder(place, 1 << 20, WHOSE)
    first.leave([key(1), key(2)], [block(3), block(4, whole=False)])
    first.close()
    second = PrefixFolder(place, 1 << 20, WHOSE)
    same(second.read(key(1), block(3)), block(3))
    same(second.read(key(2), block(4, whole=False)), block(4, whole=False))
    assert second.read(key(3), block(3)) is None
    assert PrefixFolder(place, 1 << 20, "cd" * 32).read(key(1), block(3)) is None
    assert capfd.readouterr().err == ""
    (path,) = place.glob(f"*/{name(1)}")
    assert path.stat().st_mode & 0o77 == path.parent.stat().st_mode & 0o77 == 0
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        assert second.read(key(1), block(3)) is None
    assert not path.exists()
    (told,) = capfd.readouterr().err.splitlines()
    assert told.endswith(
        "expected rows as they were written, found others in 00000000…; removed, and not used"
    )
    same(second.read(key(2), block(4, whole=False)), block(4, whole=False))


def test_what_was_not_used_for_the_longest_goes_first(tmp_path: Path) -> None:
    """Never more bytes than are allowed, never a block before those that go on from it."""
    each = files.size_of(key(1), WHOSE, block())
    cache = PrefixFolder(tmp_path, 4 * each + 1, WHOSE)

    def left(*numbers: int) -> set[str]:
        cache.leave([key(one) for one in numbers], [block()] * len(numbers))
        cache.flush()
        found = kept(tmp_path)
        assert sum(found.values()) <= 4 * each + 1
        return set(found)

    assert left(1, 2) == {name(1), name(2)}
    assert left(3, 4) == {name(one) for one in (1, 2, 3, 4)}
    assert left(1, 2) == {name(one) for one in (1, 2, 3, 4)}
    assert left(5) == {name(one) for one in (1, 2, 3, 5)}  # 4 goes on from 3
    assert left(6, 7) == {name(one) for one in (1, 5, 6, 7)}
    assert left(1, 8) == {name(one) for one in (1, 6, 7, 8)}
    assert left(*range(10, 20)) == {name(one) for one in (10, 11, 12, 13)}
    small = PrefixFolder(tmp_path, each - 1, WHOSE)
    small.leave([key(30)], [block()])
    small.close()
    assert name(30) not in kept(tmp_path)
    cache.close()


def test_what_others_left_is_not_touched(tmp_path: Path) -> None:
    """But for drafts, which nobody writes any more after an hour."""
    cache = PrefixFolder(tmp_path, 1, WHOSE)
    (own,) = tmp_path.iterdir()
    others = [tmp_path / "mine.txt", own / "mine.txt", own / f"{'a' * 63}.safetensors"]
    old, fresh = own / ".draft-old", own / ".draft-new"
    for one in (*others, old, fresh):
        one.write_bytes(b"x" * 100)
    os.utime(old, (1, 1))
    (tmp_path / ("f" * 32)).symlink_to(tmp_path)
    cache.leave([key(1)], [block()])
    cache.close()
    assert all(one.exists() for one in (*others, fresh)) and not old.exists()


def test_several_share_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each writes, uses and evicts what others do; what one reads is right or not there."""
    limit = 6 * files.size_of(key(1), WHOSE, block(4))
    caches = [PrefixFolder(tmp_path, limit, WHOSE) for _ in range(3)]
    wrong: list[object] = []

    def work(cache: PrefixFolder, seed: int) -> None:
        drawn = np.random.default_rng(seed).integers(0, 12, 40).tolist()
        for one in drawn:
            size = 1 + one % 4
            found = cache.read(key(one), block(size))
            if found is not None and found.rows[0][0].tobytes() != block(size).rows[0][0].tobytes():
                wrong.append(one)
            cache.leave([key(one)], [block(size)])
        cache.flush()

    threads = [
        threading.Thread(target=work, args=both) for both in zip(caches, range(3), strict=True)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    caches[0].leave([key(20)], [block(1)])
    for cache in caches:
        cache.close()
    assert not wrong and 0 < sum(kept(tmp_path).values()) <= limit
    assert capfd.readouterr().err == "" and not list(tmp_path.glob("*/.draft-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_told_of_once_and_used_again(tmp_path: Path) -> None:
    """What is there is read meanwhile, and nothing that was begun is left."""
    code = f"""
import resource
from pathlib import Path
import numpy as np
from avl_runtime.kv.disk.folder import PrefixFolder
from avl_runtime.kv.prefixes import Block
block = Block(((np.zeros((1, 1, 1, 1, 9000), np.int8),),), (), None)
place = Path({str(tmp_path)!r})
cache = PrefixFolder(place, 1 << 20, {WHOSE!r})
def left(number):
    cache.leave([bytes([number]) * 32], [block])
    cache.flush()
    return len(list(place.glob("*/*")))
found = [left(1)]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
found += [left(2), left(3), cache.read(bytes([1]) * 32, block) is not None]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
found += [left(2), left(3)]
print(*found)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "1", "1", "True", "2", "3"]
    (told,) = ran.stderr.splitlines()
    assert told.endswith(": cannot be written: File too large; goes on without (said once)")


def test_a_folder_that_is_lost_is_told_of_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that cannot be written, or read; a writer that is too slow leaves prompts out."""
    cache = PrefixFolder(tmp_path / "x", 1 << 20, WHOSE)
    (tmp_path / "x" / WHOSE[:32]).rmdir()
    (tmp_path / "x" / WHOSE[:32]).write_text("no folder")
    for _ in range(2):
        cache.leave([key(1)], [block()])
        cache.flush()
        assert cache.read(key(1), block()) is None
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2 and all("Not a directory; goes on without" in one for one in told), told
    monkeypatch.setattr(folder, "WAITING", 1)
    (tmp_path / "x" / WHOSE[:32]).unlink()
    go_on, writing = threading.Event(), folder._Writer._write

    def slow(self: Any, *arguments: Any) -> None:
        go_on.wait()
        writing(self, *arguments)

    monkeypatch.setattr(folder._Writer, "_write", slow)
    for number in range(4):
        cache.leave([key(number)], [block()])
    go_on.set()
    cache.close()
    (told,) = capfd.readouterr().err.splitlines()
    assert "some are left out" in told and list(kept(tmp_path / "x")) == [name(0)]


def test_folders_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheFolderError, match="expected a folder for rows of prompts, found"):
            PrefixFolder(place, 1, WHOSE)
    (tmp_path / WHOSE[:32]).symlink_to(tmp_path)
    with pytest.raises(CacheFolderError, match="this user's"):
        PrefixFolder(tmp_path, 1, WHOSE)
    (tmp_path / WHOSE[:32]).unlink()
    PrefixFolder(tmp_path, 1, WHOSE)
    if hasattr(os, "geteuid"):
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(CacheFolderError, match="this user's"):
            PrefixFolder(tmp_path, 1, WHOSE)

"""Models that make room for one another."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from avl_plugins.errors import AvlError
from avl_runtime.cli import serve
from avl_runtime.machine.pages import Pages
from avl_runtime.package.package import load_package
from avl_runtime.prompts.messages import PromptError
from avl_runtime.serve import shelf as shelves
from avl_runtime.serve.app import App
from avl_runtime.serve.errors import ApiError, told
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.shelf import Shelf, ShelfError, _whole
from support.server import ONE


def weights_of(folder: Path) -> int:
    return sum(shard.size for shard in load_package(folder).manifest.weights.shards)


def loaded(shelf: Shelf) -> list[str]:
    return [one.name for one in shelf.loaded]


async def cancelled(shelf: Shelf, name: str) -> None:
    """Ask for a model, and go away at once."""

    async def enter() -> None:
        async with shelf.using(name):
            pass

    task = asyncio.create_task(enter())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.skipif(sys.platform != "linux", reason="pages are moved as Linux can")
def test_rows_that_a_server_is_told_of_are_there_before_anybody_asks(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Pages()
    held.use()
    monkeypatch.setattr(shelves, "ROWS", held)
    # Of this process, whose memory is not the server's.
    monkeypatch.setattr(serve, "keep_freed", lambda: None)
    begun = []

    def run(app: App, *others: object) -> None:
        begun.append((app.answering.rows.limit, held.held))
        asyncio.run(app.close())

    monkeypatch.setattr("avl_runtime.serve.run.serve", run)
    told = [str(tiny_package), "--port", "0", "--backend", "ort-cpu", "--kv-bytes", str(3 << 20)]
    assert serve.main(told) == 0
    assert begun == [(3 << 20, 3 << 20)]


def test_the_one_not_asked_for_the_longest_makes_room(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three fit. Nothing leaves while it is used, nor is anything half loaded."""
    folders = dict.fromkeys("abc", tiny_package)
    weights = weights_of(tiny_package)
    with pytest.raises(ShelfError, match="expected room for each package"):
        Shelf(folders, Limits(), weights - 1)

    async def asked() -> None:
        shelf = Shelf(folders, Limits(), 2 * weights, backend="ort-cpu")
        with pytest.raises(ShelfError, match=f"--kv-bytes .* beside {2 * weights} of weights"):
            shelf.keep_rows(1 << 60)
        monkeypatch.setattr(shelves, "available_memory", lambda: 1 << 20)
        with pytest.raises(ShelfError, match="what else is in memory, found 1048576; ask for"):
            shelf.keep_rows((1 << 20) + 1)
        monkeypatch.undo()
        assert loaded(shelf) == ["a", "b"] and [one["id"] for one in shelf.listed()] == [*"abc"]
        with pytest.raises(ApiError):
            await shelf.using("d").__aenter__()
        async with AsyncExitStack() as using:
            first = await using.enter_async_context(shelf.using("a"))
            async with AsyncExitStack() as others:
                await others.enter_async_context(shelf.using("b"))
                waiting = asyncio.create_task(others.enter_async_context(shelf.using("c")))
                late = asyncio.create_task(others.enter_async_context(shelf.using("a")))
                await asyncio.sleep(0.05)
                assert not waiting.done() and not late.done() and loaded(shelf) == ["a", "b"]
                waiting.cancel()  # it gives its turn to the next
                assert await late is first
            async with shelf.using("c") as third:
                assert loaded(shelf) == ["a", "c"]  # b left, which nobody used
                keywords = {"max_new_tokens": 4}
                one = await third.model.generate(ONE.prompt, [ONE.image], **keywords)
                other = await first.model.generate(ONE.prompt, [ONE.image], **keywords)
                assert one.token_ids == other.token_ids
            await cancelled(shelf, "b")  # while c is unloaded, or b loaded
            async with shelf.using("b") as second:
                assert loaded(shelf) == ["a", "b"] and second.model.alive
            assert not third.model.alive
        await shelf.close()
        assert shelf.loaded == () and not first.model.alive

    asyncio.run(asked())


def laid(source: Path, folder: Path, **changes: Any) -> None:
    """Have a copy of a package in place of what lies there, as avl-export --force puts it."""
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.copytree(source, new)
    manifest = json.loads((new / "avl.json").read_text())
    (new / "avl.json").write_text(json.dumps(manifest | changes))
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def test_a_package_that_is_replaced_while_it_runs(tiny_package: Path, tmp_path: Path) -> None:
    """Answers of the old one go on; the new one is there when it is loaded again.

    One that cannot be loaded is a fault of its own requests alone, told without its folder.
    """
    folder = tmp_path / "a.avl"
    laid(tiny_package, folder)
    keywords: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40}

    async def asked() -> None:
        memory = weights_of(tiny_package)
        shelf = Shelf({"a": folder, "b": tiny_package}, Limits(), memory, backend="ort-cpu")
        async with shelf.using("a") as old:
            expected = await old.model.generate(ONE.prompt, [ONE.image], **keywords)
            stream = old.model.stream(ONE.prompt, [ONE.image], **keywords)
            first = await stream.__anext__()
            laid(tiny_package, folder, default_policy="fastv")
            pieces = [first, *[piece async for piece in stream]]
            assert stream.result.token_ids == expected.token_ids
            assert "".join(pieces) == expected.text
        async with shelf.using("a") as same:
            assert same is old  # as long as it is loaded
        async with shelf.using("b"):
            assert loaded(shelf) == ["b"]
        async with shelf.using("a") as new:
            assert loaded(shelf) == ["a"] and str(new.model.model.policy).startswith("fastv")
            await new.model.generate(ONE.prompt, [ONE.image], **keywords)
        async with shelf.using("b"):
            pass
        (folder / "avl.json").unlink()
        with pytest.raises(AvlError) as fault:
            await shelf.using("a").__aenter__()
        answer = told(fault.value, shelf.private)
        assert answer.status == 500 and str(tmp_path) not in str(answer)
        async with shelf.using("b") as other:
            assert (await other.model.generate("What?", max_new_tokens=2)).token_ids
        laid(tiny_package, folder)
        async with shelf.using("a") as mended:
            assert str(mended.model.model.policy) == str(old.model.model.policy)
        await shelf.close()

    asyncio.run(asked())


def test_a_package_of_the_working_directory_is_a_whole_path(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its "." would be in every message, and none be told."""
    monkeypatch.chdir(tiny_package)
    private = Shelf({"tiny": Path()}, Limits(), backend="ort-cpu").private
    assert private and all(folder.is_absolute() for folder in private)
    assert told(PromptError("expected 0.5, found text. Send one"), private).status == 400
    assert told(PromptError(f"expected {tiny_package.resolve()}/x"), private).status == 500


def test_work_ends_however_often_who_waits_is_cancelled() -> None:
    async def tried() -> None:
        done, gate = [], asyncio.Event()

        async def work() -> None:
            await gate.wait()
            done.append(True)

        task = asyncio.create_task(_whole(work()))
        for _ in range(3):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert task.cancel() and not task.done()
        gate.set()
        await asyncio.wait([task])
        assert task.cancelled() and done == [True]

    asyncio.run(tried())

"""Models that make room for one another."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from avl_runtime.prompts.messages import PromptError
from avl_runtime.serve.errors import ApiError, told
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.shelf import Shelf, ShelfError, _whole
from support.server import ONE


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


def test_the_one_not_asked_for_the_longest_makes_room(tiny_package: Path) -> None:
    """Two of three fit. Nothing leaves while it is used, nor is anything half loaded."""
    folders = dict.fromkeys("abc", tiny_package)
    weights = Shelf({"a": tiny_package}, Limits(), 1 << 40, backend="ort-cpu")._places["a"].weights
    with pytest.raises(ShelfError, match="expected room for each package"):
        Shelf(folders, Limits(), weights - 1)

    async def asked() -> None:
        shelf = Shelf(folders, Limits(), 2 * weights, backend="ort-cpu")
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

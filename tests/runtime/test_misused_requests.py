"""Requests that are used otherwise than once, in one runner of an open model."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from avl_plugins.errors import AvlError
from avl_runtime import LVLM, AsyncLVLM
from avl_runtime.execute.host.executor import HostExecutor
from avl_runtime.prompts.messages import PromptError
from avl_runtime.prompts.plain_text import PlainText
from avl_runtime.requests import Scheduler
from avl_runtime.requests.loaded import ClosedError
from avl_runtime.requests.request import CancelledError, Request, RequestError
from avl_runtime.requests.stream import GivenUpError
from avl_runtime.tasks import sample

ONE = sample("ocr", "held-out", 40)


def ran(scheduler: Scheduler, request: Request) -> Request:
    while not request.done:
        scheduler.step()
    return request


@pytest.fixture
def own(tiny_package: Path) -> LVLM:
    return LVLM.load(tiny_package, backend="ort-cpu")


def test_a_request_runs_once_and_where_it_was_submitted(tiny: LVLM) -> None:
    """Given twice, its rows would be read twice."""
    scheduler, other = Scheduler(tiny), Scheduler(tiny)
    request = scheduler.add(ONE.prompt, [ONE.image], max_new_tokens=8)
    for again in (scheduler, other):
        with pytest.raises(RequestError, match="submitted before; make another"):
            again.submit(request)
    with pytest.raises(RequestError, match="runs here"):
        other.cancel(request)
    found = ran(scheduler, request).result
    assert found.token_ids == tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=8).token_ids
    with pytest.raises(RequestError, match="submitted before"):
        scheduler.submit(request)
    other.cancel(request)  # it is done
    for wrong in ("x", None):
        with pytest.raises(RequestError, match="expected a request, found"):
            scheduler.submit(wrong)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="expected a request, found"):
            scheduler.cancel(wrong)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="expected a model, found"):
            Scheduler(wrong)  # type: ignore[arg-type]
    assert scheduler.requests == ()


def test_another_models_request_is_refused(tiny: LVLM, own: LVLM) -> None:
    with pytest.raises(RequestError, match="of this model, found one of another"):
        Scheduler(tiny).submit(own.request("What?"))


def test_a_closed_model_ends_what_runs(own: LVLM) -> None:
    scheduler = Scheduler(own)
    done = ran(scheduler, scheduler.add(ONE.prompt, [ONE.image], max_new_tokens=2))
    running = scheduler.add(ONE.prompt, [ONE.image], max_new_tokens=40)
    while running not in scheduler.running:
        scheduler.step()
    waiting = scheduler.add(ONE.prompt, [ONE.image])
    begun, unbegun = own.stream(ONE.prompt, [ONE.image]), own.stream(ONE.prompt, [ONE.image])
    made = own.request("What?")
    next(begun)
    own.close()
    assert scheduler.step() == [running, waiting]
    assert scheduler.requests == ()
    assert scheduler.step() == []
    for request in (running, waiting):
        with pytest.raises(ClosedError):
            _ = request.result
    assert len(done.result.token_ids) == 2
    assert done.result.stats.backend == "ort-cpu"
    for stream in (begun, unbegun):
        with pytest.raises(ClosedError):
            list(stream)
    with pytest.raises(ClosedError):
        scheduler.submit(made)
    with pytest.raises(ClosedError):
        Scheduler(own)


@pytest.mark.parametrize("when", ["reading", "running"])
def test_after_an_interrupt_nothing_goes_on_with_half_a_step(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    scheduler = Scheduler(tiny)
    both = [scheduler.add(ONE.prompt, [ONE.image], max_new_tokens=8) for _ in range(2)]
    while when == "running" and len(scheduler.running) < 2:
        scheduler.step()

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HostExecutor, "read", interrupted)
        patch.setattr("avl_runtime.generate.decode.Decoder.run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scheduler.step()
    ended = both if when == "running" else both[:1]
    assert [one for one in both if one.done] == ended
    last = scheduler.add(ONE.prompt, [ONE.image], max_new_tokens=8)
    expected = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=8).token_ids
    for request in (*both, last):
        if request not in ended:
            assert ran(scheduler, request).result.token_ids == expected


def test_a_batch_tells_the_error_of_the_prompt_that_failed(tiny: LVLM) -> None:
    with pytest.raises(AvlError, match="at most 2048 tokens"):
        tiny.generate_batch(["What?", "a " * 3000])


def test_an_event_loop_that_ends_takes_no_other_with_it(tiny_package: Path) -> None:
    shared = AsyncLVLM.load(tiny_package, backend="ort-cpu")

    async def begin() -> None:
        await shared.stream("Describe the image.", [ONE.image]).__anext__()

    async def ask() -> str:
        return (await shared.generate(ONE.prompt, [ONE.image], max_new_tokens=8)).text

    async def both() -> str:
        return await asyncio.wait_for(ask(), 60)

    asyncio.run(begin())
    text = asyncio.run(both())
    assert text == shared.model.generate(ONE.prompt, [ONE.image], max_new_tokens=8).text
    asyncio.run(shared.close())


def test_a_reply_is_told_in_one_event_loop(tiny_package: Path) -> None:
    shared = AsyncLVLM.load(tiny_package, backend="ort-cpu")
    stream = shared.stream(ONE.prompt, [ONE.image], max_new_tokens=8)

    async def piece() -> str:
        return await asyncio.wait_for(stream.__anext__(), 60)

    async def rest() -> list[str]:
        return [piece async for piece in stream]

    asyncio.run(piece())
    for ask in (piece, rest):
        with pytest.raises(RequestError, match="event loop in which it began, found it in another"):
            asyncio.run(ask())
    asyncio.run(stream.aclose())
    asyncio.run(shared.close())


def test_threads_that_share_a_stream_get_every_piece_once(tiny: LVLM) -> None:
    stream, got, failed = tiny.stream(ONE.prompt, [ONE.image]), [], []

    def take() -> None:
        try:
            got.extend(stream)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted("".join(got)) == sorted(tiny.generate(ONE.prompt, [ONE.image]).text)
    assert stream.result.text == tiny.generate(ONE.prompt, [ONE.image]).text


def test_tasks_that_share_a_stream_begin_it_once(tiny_package: Path) -> None:
    async def run() -> tuple[str, str]:
        async with AsyncLVLM.load(tiny_package, backend="ort-cpu") as model:
            stream = model.stream(ONE.prompt, [ONE.image])
            with pytest.raises(RequestError, match="not begun; iterate it first"):
                _ = stream.result
            pieces = list(await asyncio.gather(*(stream.__anext__() for _ in range(3))))
            pieces += [piece async for piece in stream]
            return "".join(pieces), stream.result.text

    got, text = asyncio.run(asyncio.wait_for(run(), 60))
    assert got == text


def test_a_task_that_is_cancelled_cuts_nobodys_reply_short_unsaid(
    tiny_package: Path, unending: dict[str, int]
) -> None:
    async def run() -> list[Any]:
        async with AsyncLVLM.load(tiny_package, backend="ort-cpu") as model:
            stream = model.stream(ONE.prompt, [ONE.image], **unending)
            await stream.__anext__()
            with pytest.raises(RequestError, match="still runs; iterate it to its end"):
                _ = stream.result

            async def take() -> list[str]:
                return [piece async for piece in stream]

            tasks = [asyncio.create_task(take()) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(asyncio.wait_for(run(), 60))
    assert isinstance(first, asyncio.CancelledError)
    assert all(isinstance(one, CancelledError) for one in others)


def test_giving_up_while_the_prompt_is_prepared_runs_nothing(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with AsyncLVLM.load(tiny_package, backend="ort-cpu") as model:
            made, go_on = threading.Event(), threading.Event()
            request = model.model.request("What?")

            def make(*_: Any, **__: Any) -> Request:
                made.set()
                assert go_on.wait(60)
                return request

            monkeypatch.setattr(model.model, "request", make)
            stream = model.stream("What?")
            task = asyncio.create_task(stream.__anext__())
            await asyncio.to_thread(made.wait, 60)
            await stream.aclose()
            go_on.set()
            with pytest.raises(StopAsyncIteration):
                await task
            with pytest.raises(GivenUpError):
                _ = stream.result
            assert not request.submitted

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_step_in_a_second_thread_is_refused(tiny: LVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(tiny)
    request = scheduler.add(ONE.prompt, [ONE.image], max_new_tokens=4)
    inside, refused = threading.Event(), threading.Event()
    step = Scheduler._step

    def slow(self: Scheduler) -> list[Request]:
        inside.set()
        assert refused.wait(60)
        return step(self)

    monkeypatch.setattr(Scheduler, "_step", slow)
    thread = threading.Thread(target=scheduler.step)
    thread.start()
    assert inside.wait(60)
    with pytest.raises(RequestError, match="one thread at a time"):
        scheduler.step()
    refused.set()
    thread.join()
    assert len(ran(scheduler, request).result.token_ids) == 4


def test_a_request_that_nothing_runs_has_no_result(tiny: LVLM) -> None:
    with pytest.raises(RequestError, match="that nothing runs; submit it"):
        _ = tiny.request("What?").result


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_stream_that_was_given_up_is_at_its_end(
    tiny_package: Path, unending: dict[str, int], pieces: int
) -> None:
    async def run() -> None:
        async with AsyncLVLM.load(tiny_package, backend="ort-cpu") as model:
            stream = model.stream(ONE.prompt, [ONE.image], **unending)
            for _ in range(pieces):
                await stream.__anext__()
            await stream.aclose()
            await stream.aclose()
            with pytest.raises((GivenUpError, CancelledError)):
                _ = stream.result
            assert [piece async for piece in stream] == []

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_is_asked_of_a_model_closed_meanwhile_is_refused_each_time(
    tiny_package: Path,
) -> None:
    async def run() -> None:
        model = AsyncLVLM.load(tiny_package, backend="ort-cpu")
        late, request = model.stream("What?"), model.model.request("What?")
        heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        model.model.close()
        model.submit(request, lambda: loop.call_soon_threadsafe(heard.set))
        await heard.wait()
        with pytest.raises(ClosedError):
            _ = request.result
        await model.close()
        for _ in range(2):
            with pytest.raises(ClosedError):
                await late.__anext__()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_stream_whose_request_was_made_before_the_close_is_refused_each_time(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        model = AsyncLVLM.load(tiny_package, backend="ort-cpu")
        made = model.model.request("What?")
        monkeypatch.setattr(model.model, "request", lambda *_, **__: made)
        stream = model.stream("What?")
        await model.close()
        for _ in range(2):
            with pytest.raises(ClosedError):
                await stream.__anext__()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_prompt_that_the_tokenizer_knows_nothing_of_is_refused(
    own: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainText, "encode", lambda *_, **__: [])
    with pytest.raises(PromptError, match="at least one token, found"):
        own.generate(ONE.prompt)

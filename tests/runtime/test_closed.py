"""Models and replies that were closed refuse what they cannot do any more, in avl's own words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from avl_runtime import LVLM, AsyncLVLM
from avl_runtime.requests.loaded import ClosedError
from avl_runtime.requests.request import RequestError
from avl_runtime.requests.stream import GivenUpError
from avl_runtime.tasks import sample

ONE = sample("ocr", "held-out", 40)


@pytest.fixture
def own(tiny_package: Path) -> LVLM:
    return LVLM.load(tiny_package, backend="ort-cpu")


def test_what_is_closed_is_not_entered_forked_or_sent_to(own: LVLM) -> None:
    chat = own.chat()
    chat.send("What?", max_new_tokens=2)
    given_up, ended = own.stream("What?"), own.stream("What?", max_new_tokens=2)
    given_up.close()
    with pytest.raises(GivenUpError), given_up:
        pass
    with pytest.raises(RequestError, match="expected nothing to send to a reply, found 'more'"):
        ended.send("more")  # type: ignore[arg-type]
    assert ended.result
    ended.close()
    with ended:
        assert list(ended) == []
    own.close()
    own.close()
    with pytest.raises(ClosedError), own:
        pass
    for use in (chat.fork, lambda: chat.send("And?"), own.chat, lambda: own.request("What?")):
        with pytest.raises(ClosedError):
            use()
    assert len(chat.messages) == 2
    chat.undo()
    with pytest.raises(ClosedError):
        AsyncLVLM(own)


def test_a_closed_model_of_coroutines_is_not_entered(own: LVLM) -> None:
    model = AsyncLVLM(own)

    async def run() -> None:
        async with model:
            pass
        with pytest.raises(ClosedError):
            async with model:
                pass
        with pytest.raises(ClosedError):
            await model.generate("What?")

    asyncio.run(run())

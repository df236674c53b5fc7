"""Prompts that come and go while others run, for programs that drive the steps themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Unpack

from avl_plugins.errors import quoted
from avl_runtime.generate.keywords import AskKeywords
from avl_runtime.prompts.messages import Said
from avl_runtime.requests.loaded import Loaded
from avl_runtime.requests.request import Request, RequestError
from avl_runtime.requests.runner import Runner
from avl_runtime.vision.load.images import ImageLike
from avl_runtime.vision.load.videos import VideoLike


class Model(Protocol):
    """What a scheduler asks of an `LVLM`."""

    @property
    def loaded(self) -> Loaded: ...

    def request(self, *arguments: Any, **keywords: Any) -> Request: ...


class Scheduler(Runner):
    """A runner that makes requests of prompts.

    scheduler = Scheduler(model)
    request = scheduler.add("What is it?", images=["cat.png"], policy="avl")
    while not request.done:
        scheduler.step()
    print(request.result.text)
    """

    def __init__(self, model: Model) -> None:
        """
        Raises:
            RequestError: it is no model.
            ClosedError: it was closed.
        """
        loaded = getattr(model, "loaded", None)
        if not isinstance(loaded, Loaded):
            raise RequestError(
                f"expected a model, found {quoted(model)}; pass what LVLM.load gives"
            )
        super().__init__(loaded)
        self._model = model

    def add(
        self,
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        **keywords: Unpack[AskKeywords],
    ) -> Request:
        """Have a prompt answered; arguments as for `LVLM.generate`.

        Raises:
            AvlError: the prompt, an image, an option or the policy cannot be used.
        """
        return self.submit(self._model.request(prompt, images, videos, **keywords))

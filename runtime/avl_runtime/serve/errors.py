"""What a client is told when its request cannot be served, as OpenAI's protocol has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError, PolicyError
from avl_runtime.execute.protocol import PromptTooLongError
from avl_runtime.prompts.chat_template import TemplateError
from avl_runtime.prompts.messages import PromptError
from avl_runtime.prompts.option_values import OptionError
from avl_runtime.prompts.text import TextError
from avl_runtime.vision.load.images import ImageError

# Errors that are about what the client sent; of any other it hears only that there was one.
CLIENTS = (
    ImageError,
    OptionError,
    PolicyError,
    PromptError,
    PromptTooLongError,
    TemplateError,
    TextError,
)
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(AvlError):
    """A request that is answered by an error object.

    Attributes:
        status: of the HTTP answer.
        param: the field that is at fault, as `messages[0].content`.
        code: what programs tell errors apart by.
        headers: of the answer, beside the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = TYPES.get(self.status, TYPES[400] if self.status < 500 else TYPES[500])
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """What the client sent cannot be used."""
    return ApiError(400, message, param, code)


def failed() -> ApiError:
    """Something went wrong here that the client can do nothing about, and is told nothing of."""
    return ApiError(
        500,
        "expected to answer, found a fault of the server; its log has the request's id and more",
        code="internal_error",
    )


def told(error: BaseException, private: tuple[Path, ...] = ()) -> ApiError:
    """What a client hears of an error: its message if it is about what was sent.

    Args:
        private: folders that no answer may name.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, CLIENTS):
        message = str(error)
        if not any(str(folder) in message for folder in private):
            long = isinstance(error, PromptTooLongError)
            return refused(message, code="context_length_exceeded" if long else None)
    return failed()

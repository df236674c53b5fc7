"""Runs exported vision-language models: prefill, decode and refresh without torch.

What the package offers is imported when it is first asked for: commands then start at once, and
can be stopped while the rest is still being imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avl_plugins import policies
    from avl_plugins.errors import AvlError
    from avl_runtime.async_model import AsyncLVLM
    from avl_runtime.chat import Chat
    from avl_runtime.generate.options import Options
    from avl_runtime.generate.results import Result
    from avl_runtime.model import LVLM
    from avl_runtime.requests.stream import Stream

__version__ = "0.1.0"
__all__ = ["LVLM", "AsyncLVLM", "AvlError", "Chat", "Options", "Result", "Stream", "policies"]

_MODULES = {
    "LVLM": "avl_runtime.model",
    "AsyncLVLM": "avl_runtime.async_model",
    "Stream": "avl_runtime.requests.stream",
    "AvlError": "avl_plugins.errors",
    "Chat": "avl_runtime.chat",
    "Options": "avl_runtime.generate.options",
    "Result": "avl_runtime.generate.results",
}


def __getattr__(name: str) -> Any:
    if name == "policies":
        return import_module("avl_plugins.policies")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

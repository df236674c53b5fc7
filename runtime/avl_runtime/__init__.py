"""Runs exported vision-language models: prefill, decode and refresh without torch."""

from avl_plugins import policies
from avl_plugins.errors import AvlError
from avl_runtime.chat import Chat
from avl_runtime.model import LVLM
from avl_runtime.options import Options
from avl_runtime.results import Result

__version__ = "0.1.0"
__all__ = ["LVLM", "AvlError", "Chat", "Options", "Result", "policies"]

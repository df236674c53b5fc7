"""Runs a module of this package under any Python, whatever that lacks of what the runtime needs.

Imports nothing but the standard library, as workers of other libraries use it too.
"""

from __future__ import annotations

from pathlib import Path

_RUNTIME = Path(__file__).parents[1]
# The package's own __init__ is left out, as it needs what a peer's environment may lack.
_BOOT = """
import runpy, sys, types
folder, module = sys.argv[1:3]
sys.argv[1:] = sys.argv[3:]
sys.modules["avl_runtime"] = types.ModuleType("avl_runtime")
sys.modules["avl_runtime"].__path__ = [folder]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def foreign_command(python: str, module: str, *arguments: str) -> list[str]:
    """What runs `module`, as avl_runtime.bench.peers.openvino_peer, under the interpreter."""
    return [python, "-c", _BOOT, str(_RUNTIME), module, *arguments]

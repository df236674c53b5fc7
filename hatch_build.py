"""Compile the CPU kernels when avl is installed, where there is a C compiler."""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILD = "plugins/avl_plugins/cpu/build.py"


class CpuKernels(BuildHookInterface[Any]):
    """A wheel has the library if it could be compiled; it is for one platform then."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        module = runpy.run_path(str(Path(self.root) / BUILD))
        try:
            library = module["build"]()
        except module["CompileError"] as problem:
            self.app.display_warning(f"CPU kernels are left out: {problem}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(str(library.relative_to(self.root)))

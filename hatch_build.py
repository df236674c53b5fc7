"""How avl is built: its CPU kernels where there is a C compiler, and its page on an index."""

from __future__ import annotations

import os
import re
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

BUILD = "plugins/avl_plugins/cpu/build.py"
SWITCH = "AVL_CPU_KERNELS"  # "off" builds the wheel for every platform, as it runs without them
# A link or a picture of Markdown whose target is a file of this repository.
LINK = re.compile(r"(!?)(\[[^\[\]]*\])\((?![a-z]+:|#)([^()\s]+)\)")


class CpuKernels(BuildHookInterface[Any]):
    """A wheel has the library if it could be compiled; it is for one platform then."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if os.environ.get(SWITCH) == "off":
            return
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


class Readme(MetadataHookInterface):
    """README.md with whole addresses, as an index shows it without the files beside it."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository = metadata["urls"]["Repository"]
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_whole_addresses(text, repository),
        }


def with_whole_addresses(text: str, repository: str) -> str:
    """Markdown whose links and pictures do not depend on where it lies."""

    def whole(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        kind = "raw" if picture else "blob"
        return f"{picture}{label}({repository}/{kind}/HEAD/{target})"

    return LINK.sub(whole, text)

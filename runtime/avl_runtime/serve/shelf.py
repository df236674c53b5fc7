"""The models that a server has, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError, quoted
from avl_runtime.async_model import AsyncLVLM
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.served import Served

SUFFIX = ".avl"


class ShelfError(AvlError):
    """Packages cannot be served together."""


class Shelf:
    """Loaded packages.

    Attributes:
        served: by name.
    """

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.served = dict(served)

    @classmethod
    def load(cls, packages: Mapping[str, Path], limits: Limits, **options: Any) -> Shelf:
        """Load packages; options as for `LVLM.load`.

        Raises:
            AvlError: one cannot be loaded.
        """
        return cls(
            {
                name: Served(name, AsyncLVLM.load(folder, **options), limits)
                for name, folder in packages.items()
            }
        )

    def named(self, name: str) -> Served:
        """The model of a name.

        Raises:
            ApiError: there is none.
        """
        found = self.served.get(name)
        if found is None:
            raise ApiError(
                404,
                f"model: expected one of {', '.join(self.served)}, found {quoted(name)}",
                "model",
                "model_not_found",
            )
        return found

    @property
    def alive(self) -> bool:
        """Whether every model can answer."""
        return all(one.model.alive for one in self.served.values())

    @property
    def requests(self) -> int:
        """Choices that schedulers have."""
        return sum(one.model.requests for one in self.served.values())

    def listed(self) -> list[dict[str, Any]]:
        """The models as OpenAI's protocol lists them."""
        return [
            {
                "id": one.name,
                "object": "model",
                "created": one.created,
                "owned_by": "avl",
                "max_model_len": one.context,
            }
            for one in self.served.values()
        ]

    async def close(self) -> None:
        """Give back what loading took."""
        for one in self.served.values():
            await one.model.close()


def names(packages: list[str]) -> dict[str, Path]:
    """Folders by the names of models: NAME=FOLDER, or a folder whose own name it is.

    Raises:
        ShelfError: a name is there twice, or empty.
    """
    found: dict[str, Path] = {}
    for given in packages:
        name, equals, folder = given.partition("=")
        if not equals or "/" in name:
            folder = given
            name = Path(given).resolve().name.removesuffix(SUFFIX)
        if not name or not folder.strip() or not name.isprintable():
            raise ShelfError(
                f"expected a package, or NAME=PACKAGE, found {quoted(given)}; give both a name"
            )
        if name in found:
            raise ShelfError(
                f"expected models of different names, found {quoted(name)} twice; write "
                "OTHER=PACKAGE"
            )
        found[name] = Path(folder)
    return found

"""The models that a server has, by name; those that nobody asks for make room for others."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError, quoted
from avl_runtime.async_model import AsyncLVLM
from avl_runtime.machine.pages import ROWS
from avl_runtime.machine.resources import available_memory, usable_memory
from avl_runtime.package.package import Package, load_package
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.rows import usual_limit
from avl_runtime.serve.served import Served

SUFFIX = ".avl"


class ShelfError(AvlError):
    """Packages cannot be served together."""


@dataclass(slots=True, eq=False)
class Place:
    """A package, loaded or not.

    Attributes:
        package: its manifest and files.
        weights: bytes of its weights, by which memory is shared out.
        served: what it was loaded as, None while it is not.
        users: requests that have it now.
        used: when the last request came.
    """

    package: Package
    weights: int
    served: Served | None = None
    users: int = 0
    used: float = field(default_factory=time.monotonic)


class Shelf:
    """Packages, of which as many are loaded as have room.

    Attributes:
        created: when the server began, in seconds since 1970.
    """

    def __init__(
        self,
        packages: Mapping[str, Path],
        limits: Limits,
        memory: int | None = None,
        **options: Any,
    ) -> None:
        """Look at all packages, and load those that have room together, in order.

        Args:
            memory: bytes of weights that may be loaded at one time; None for those of all.
            options: as for `LVLM.load`.

        Raises:
            ShelfError: a package is larger than `memory` by itself.
            AvlError: one cannot be loaded.
        """
        self._limits, self._memory, self._options = limits, memory, options
        self.created = int(time.time())
        self._places: dict[str, Place] = {}
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        for name, folder in packages.items():
            # Errors name files by whole paths then, which answers are searched for.
            package = load_package(Path(os.path.realpath(folder)))
            self._places[name] = Place(package, self._weights(name, package))
        for name, place in self._places.items():
            if self._fits(place):
                place.served = self._load(name)

    @property
    def names(self) -> tuple[str, ...]:
        """What the models are called."""
        return tuple(self._places)

    @property
    def private(self) -> tuple[Path, ...]:
        """Folders that no answer may name."""
        found = [one.package for one in self._places.values()]
        folders = {folder for one in found for folder in (one.folder, one.weights_folder)}
        folders |= {folder.resolve() for folder in folders}
        return tuple(sorted(folder for folder in folders if folder.is_absolute()))

    @property
    def loaded(self) -> tuple[Served, ...]:
        """The models that are loaded."""
        return tuple(one.served for one in self._places.values() if one.served is not None)

    @property
    def prefix_bytes(self) -> int:
        """Bytes of rows that prompts have left for others."""
        caches = [one.model.model.loaded.prefixes for one in self.loaded]
        return sum(one.nbytes for one in caches if one is not None)

    @property
    def rows_limit(self) -> int | None:
        """Bytes for cached rows where nobody says how many; None on a GPU, which looks itself."""
        return None if self._on_device else usual_limit(self._most_weights, usable_memory())

    def keep_rows(self, nbytes: int) -> None:
        """Hold memory for so many bytes of cached rows; nothing where they lie on a GPU.

        Raises:
            ShelfError: there is not as much beside the weights.
        """
        if self._on_device:
            return
        weights, memory = self._most_weights, usable_memory()
        known = (available_memory(), None if memory is None else max(0, memory - weights))
        room = min((one for one in known if one is not None), default=nbytes)
        if nbytes > room:
            raise ShelfError(
                f"--kv-bytes {nbytes}: expected room for as many bytes beside {weights} of weights "
                f"and what else is in memory, found {room}; ask for fewer"
            )
        try:
            ROWS.keep(nbytes)
        except MemoryError as error:
            raise ShelfError(f"--kv-bytes {nbytes}: {error}; ask for fewer") from None

    @property
    def _on_device(self) -> bool:
        executors = [one.model.model.loaded.executor for one in self.loaded]
        return any(one.device_bytes() is not None for one in executors)

    @property
    def _most_weights(self) -> int:
        """Bytes of weights that may be loaded at one time."""
        weights = sum(one.weights for one in self._places.values())
        return weights if self._memory is None else min(weights, self._memory)

    @property
    def alive(self) -> bool:
        """Whether every model that is loaded can answer."""
        return all(one.model.alive for one in self.loaded)

    @property
    def requests(self) -> int:
        """Choices that schedulers have."""
        return sum(one.model.requests for one in self.loaded)

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Served]:
        """The model of a name, which stays loaded meanwhile; loaded first, if need be.

        Models are loaded one after the other, in the order in which they are asked for. Who asks
        for one that is loaded waits too while another makes room: else a model that is always in
        use would never leave.

        Raises:
            ApiError: there is none of that name.
            AvlError: it cannot be loaded any more.
        """
        place = self._place(name)
        async with self._turn:
            if place.served is None:
                await self._loading(name, place)
            served = place.served
            if served is None:
                raise RuntimeError("expected a model that was loaded")
            place.users += 1
            place.used = time.monotonic()
        try:
            yield served
        finally:
            place.users -= 1
            self._left.set()

    def check(self, name: str) -> None:
        """Refuse a name that no model has.

        Raises:
            ApiError: there is none.
        """
        self._place(name)

    def listed(self) -> list[dict[str, Any]]:
        """The models as OpenAI's protocol lists them."""
        return [
            {
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "avl",
                "max_model_len": place.package.manifest.dims.max_positions,
            }
            for name, place in self._places.items()
        ]

    async def close(self) -> None:
        """Give back what loading took."""
        for one in self._places.values():
            await self._unload(one)

    def _place(self, name: str) -> Place:
        found = self._places.get(name)
        if found is None:
            raise ApiError(
                404,
                f"model: expected one of {', '.join(self._places)}, found {quoted(name)}; name "
                "one of them",
                "model",
                "model_not_found",
            )
        return found

    def _weights(self, name: str, package: Package) -> int:
        """Bytes of a package's weights.

        Raises:
            ShelfError: there is never room for as many.
        """
        weights = sum(shard.size for shard in package.manifest.weights.shards)
        if self._memory is not None and weights > self._memory:
            raise ShelfError(
                f"--memory {self._memory}: expected room for each package, found {quoted(name)} "
                f"with {weights} bytes of weights; raise it, or leave the package out"
            )
        return weights

    def _load(self, name: str) -> Served:
        model = AsyncLVLM.load(self._places[name].package.folder, **self._options)
        return Served(name, model, self._limits)

    def _fits(self, place: Place) -> bool:
        taken = sum(one.weights for one in self._places.values() if one.served is not None)
        return self._memory is None or taken + place.weights <= self._memory

    async def _loading(self, name: str, place: Place) -> None:
        """Unload what has not been asked for the longest, then load.

        Another package may lie there by now, with as much right.
        """
        package = await asyncio.to_thread(load_package, place.package.folder)
        place.package, place.weights = package, self._weights(name, package)
        while not self._fits(place):
            idle = [one for one in self._places.values() if one.served and not one.users]
            if idle:
                await _whole(self._unload(min(idle, key=lambda one: one.used)))
                continue
            self._left.clear()
            await self._left.wait()

        async def load() -> None:
            place.served = await asyncio.to_thread(self._load, name)

        await _whole(load())

    async def _unload(self, place: Place) -> None:
        served, place.served = place.served, None
        if served is not None:
            await served.model.close()


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Do work to its end, also where whoever waits for it is cancelled meanwhile."""
    task, cancelled = asyncio.create_task(work), False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # may come more than once
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()


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
            name = Path(os.path.realpath(given)).name.removesuffix(SUFFIX)
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

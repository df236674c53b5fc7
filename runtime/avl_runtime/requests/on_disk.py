"""Rows of prompts on disk: where they are asked for, and what they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np

from avl_plugins import cpu
from avl_plugins.errors import quoted
from avl_plugins.installation import installed
from avl_runtime.execute.protocol import Executor
from avl_runtime.kv.disk.folder import PrefixFolder
from avl_runtime.machine.resources import cores, processor
from avl_runtime.package.package import Package
from avl_runtime.prompts.option_values import OptionError, whole

USUAL_LIMIT: Final = 10 << 30  # bytes of files


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A folder for rows, and bytes of all files in it."""

    folder: Path
    limit: int

    def opened(
        self, package: Package, executor: Executor, threads: int | None, compute: str
    ) -> PrefixFolder:
        """The folder for rows of a package, as an executor computes them.

        Raises:
            OptionError: the package does not say which weights it has.
            CacheFolderError: the folder cannot be used.
        """
        for shard in package.manifest.weights.shards:
            if shard.sha256 is None and shard.sample_sha256 is None:
                raise OptionError(
                    "cache_dir: expected a package that records hashes of its weights, by which "
                    "rows are known again, found one of an older version; export again"
                )
        return PrefixFolder(self.folder, self.limit, _whose(package, executor, threads, compute))


def disk_of(cache_dir: str | Path | None, cache_limit: int | None, memory: int) -> OnDisk | None:
    """Where rows shall be kept on disk; None for nowhere.

    Args:
        memory: bytes of rows that are kept in memory.

    Raises:
        OptionError: an argument is none, or misses another one.
    """
    if cache_dir is None:
        if cache_limit is not None:
            raise OptionError(
                f"cache_limit: expected cache_dir beside it, found {quoted(cache_limit)} alone; "
                "name a folder, or leave it out"
            )
        return None
    if not isinstance(cache_dir, (str, os.PathLike)) or not os.fspath(cache_dir):
        raise OptionError(
            f"cache_dir: expected a folder, found {quoted(cache_dir)}; name one, . is the working "
            "directory"
        )
    if not memory:
        raise OptionError(
            "cache_dir: expected prefix_cache beside it, through which rows come and go, found "
            "none; set it to 'auto', or leave cache_dir out"
        )
    limit = USUAL_LIMIT if cache_limit is None else whole("cache_limit", cache_limit, 1, "bytes")
    # A program that goes elsewhere later still writes where it said.
    return OnDisk(Path(os.fsdecode(cache_dir)).absolute(), limit)


def _whose(package: Package, executor: Executor, threads: int | None, compute: str) -> str:
    """A hash of all that rows depend on beside the prompt, to the last bit.

    Sums are taken in another order by other kernels, on other processors, in other threads: rows
    that another one has left would be nearly the same, and so would answers.
    """
    manifest = package.manifest
    # Where weights lie and when they were written says nothing of what they are.
    shards = tuple(dataclasses.replace(one, modified_ns=None) for one in manifest.weights.shards)
    weights = dataclasses.replace(manifest.weights, folder=None, shards=shards)
    library, avl = cpu.library(), installed()
    user = str(os.geteuid()) if hasattr(os, "geteuid") else ""
    said = (
        dataclasses.replace(manifest, engines=(), weights=weights).to_json(),
        *("" if avl is None else avl.version, np.__version__, _runtime()),
        "" if library is None else hashlib.sha256(library.read_bytes()).hexdigest(),
        *(processor(), str(threads or cores())),
        *(executor.name, executor.kv, executor.kernels or "", compute),
        user,
    )
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _runtime() -> str:
    """The version of ONNX Runtime, whichever of its builds is installed."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""

"""What requests that name none run under, and how rows are kept, written into a package."""

from __future__ import annotations

import dataclasses
import json
import os

from avl_plugins.errors import shown
from avl_plugins.policies import parse
from avl_runtime.package.manifest import MANIFEST, CheckedRows, PackageError
from avl_runtime.package.package import Package


def write_defaults(package: Package, policy: str, rows: CheckedRows | None) -> None:
    """Have requests to a package that name no policy run under `policy` from now on.

    The manifest is replaced whole or not at all, and nothing else of it changes.

    Args:
        rows: how `kv="auto"` keeps rows on a CPU; None: as the package computes.

    Raises:
        PolicyError: the package cannot serve it.
        PackageError: the manifest cannot be written.
    """
    chosen = parse(policy)
    chosen.check(package.manifest.splits(), package.manifest.dims.num_layers)
    path = package.folder / MANIFEST
    draft = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        found = json.loads(path.read_bytes())
        found["default_policy"] = str(chosen)
        found["checked_rows"] = None if rows is None else dataclasses.asdict(rows)
        draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise PackageError(
            f"{shown(path)}: expected to write the default policy, found: {error.strerror}; make "
            "the folder writable"
        ) from None
    finally:
        draft.unlink(missing_ok=True)

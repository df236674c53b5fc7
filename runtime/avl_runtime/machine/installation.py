"""What the extras of avl need, what is missing of it, and the command that installs it."""

from __future__ import annotations

from importlib.util import find_spec

from avl_plugins.errors import AvlError
from avl_plugins.installation import (
    Requirement,
    checkout,
    extras,
    install,
    install_extra,
    python,
    uninstall,
)
from avl_runtime.machine.libraries import Library, installed, release

__all__ = [
    "MissingError",
    "Requirement",
    "checkout",
    "extras",
    "install",
    "install_extra",
    "need",
    "python",
    "shortage",
    "too_old",
    "uninstall",
]

# Modules that are not called as their packages are.
_MODULES = {
    "scikit-learn": "sklearn",
    "cuda-python": "cuda.bindings",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
}


class MissingError(AvlError):
    """A package that an extra installs is missing, or older than avl takes."""


def shortage(extra: str, *names: str) -> str | None:
    """What this installation lacks of an extra, and the command that installs it.

    Args:
        names: the packages looked for; all of the extra if there are none.

    Returns:
        "expected … found … run: …", or None where nothing is missing.
    """
    known = {one.name: one for one in extras().get(extra, ())}
    wanted = [known.get(name) or Requirement(name, name, None, True) for name in names]
    missing, old = [], []
    for one in wanted or known.values():
        library = installed(one.name)
        if not one.applies:
            continue
        if not _is_there(_MODULES.get(one.name, one.name.replace("-", "_"))):
            missing.append(one.name)
        elif library is not None and too_old(library, one):
            old.append(f"{one.name} {library.version} (not {one.oldest} or later)")
    if not missing and not old:
        return None
    what = ", ".join(names) if names else f"the packages of the {extra} extra"
    found = ([f"no {', '.join(missing)}"] if missing else []) + old
    if len(names) == 1 and missing:
        found = ["none"]
    return f"expected {what}, found {' and '.join(found)}; run: {install_extra(extra)}"


def need(extra: str, *names: str, what_for: str) -> None:
    """Refuse to go on where packages of an extra are missing or too old.

    Raises:
        MissingError: they are.
    """
    lacking = shortage(extra, *names)
    if lacking is not None:
        raise MissingError(f"{what_for}: {lacking}")


def too_old(library: Library, needed: Requirement) -> bool:
    """Whether a package is older than the version that avl takes at least."""
    return needed.oldest is not None and library.release < release(needed.oldest)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of a parent
        return False

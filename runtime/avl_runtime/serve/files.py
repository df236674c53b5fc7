"""The files of the page that `avl-serve` shows at `/`, and what browsers are told with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("page")
FRONT: Final = "index.html"
KINDS: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page runs its own files alone, sends nothing elsewhere, makes no markup of texts (Trusted
# Types), and stands in no other page. blob: is for pictures that were chosen.
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file's bytes and content type."""

    data: bytes
    kind: str


def page_files() -> dict[str, File]:
    """The page's files by the path under which each is asked for."""
    found = {
        f"/page/{one.name}": File(one.read_bytes(), KINDS[one.suffix])
        for one in sorted(FOLDER.iterdir())
        if one.suffix in KINDS
    }
    front = found.pop(f"/page/{FRONT}")
    return {"/": front, **found}

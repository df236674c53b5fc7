"""Where pictures and videos come from: files, addresses, text that holds them, open files.

Sizes are checked before memory is taken for them.
"""

from __future__ import annotations

import base64
import os
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

from avl_plugins.errors import shown
from avl_runtime.machine.sizes import size_text

CONNECT_SECONDS: Final = 15.0
DOWNLOAD_SECONDS: Final = 60.0
LONGEST_NAME: Final = 1 << 15  # characters of a path; systems allow fewer
SLACK: Final = 64
ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_SPACES: Final = dict.fromkeys(map(ord, " \t\r\n\f\v"))


class SourceError(Exception):
    """What was expected and found; whoever catches it adds the name of the source."""


def local_path(source: str | Path) -> Path:
    """The path that a name or a file: address stands for; `~` is the user's home.

    Raises:
        SourceError: the address names another machine.
    """
    text = str(source)
    if not text:
        raise SourceError("expected a file's name, found an empty one")
    if len(text) > LONGEST_NAME:
        raise SourceError(
            f"expected a path, an address or base64, found text of {len(text)} characters"
        )
    if isinstance(source, str) and text[:6].lower() == "file:/":
        rest = text[5:]
        if rest.startswith("//"):
            host, slash, path = rest[2:].partition("/")
            if host.lower() not in ("", "localhost"):
                raise SourceError(
                    f"expected a file of this machine, found one of {shown(host, 60)}; use its path"
                )
            rest = slash + path
        return Path(urllib.request.url2pathname(unquote(rest, errors="surrogateescape")))
    place = Path(source)
    if not text.startswith("~") or _exists(place):
        return place
    try:
        return place.expanduser()
    except RuntimeError:
        raise SourceError("expected the home of a user, found none; write the path out") from None


def is_name(text: str) -> bool:
    """Whether `text` names something that is there."""
    try:
        return _exists(local_path(text))
    except SourceError:
        return False


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):  # no file can be called that
        return False


def file_below(folder: Path, name: str) -> Path | None:
    """The file of that name in `folder` or below it; None where there is none, or it leads out.

    Names that no file can have, and links that lead to themselves, are names of no file.
    """
    try:  # realpath, as Path.resolve fails of such links
        path = Path(os.path.realpath(folder / name))
        return path if path.is_relative_to(os.path.realpath(folder)) and path.is_file() else None
    except (OSError, ValueError):
        return None


def check_file(path: Path, kind: str, limit: int) -> None:
    """Refuse what is no file of `kind` (as "image") with at most `limit` bytes.

    Raises:
        SourceError: nothing, a folder, a device, or a larger file is there.
    """
    try:
        if path.is_dir():
            raise SourceError(f"expected {kind} file, found a folder; name a file in it")
        if not path.exists():
            raise SourceError(f"expected {kind} file, found nothing; check the path")
        if not path.is_file():
            raise SourceError(f"expected {kind} file, found a device or a pipe")
        check_length(path.stat().st_size, limit)
    except (OSError, ValueError) as error:
        raise _unreadable(error, kind) from None


def read_file(path: Path, kind: str, limit: int) -> bytes:
    """The bytes of a file.

    Raises:
        SourceError: as `check_file` does, or the file cannot be read.
    """
    check_file(path, kind, limit)
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(error, kind) from None


def read_stream(file: Any, kind: str, limit: int) -> bytes:
    """The bytes of an open file, from its beginning where it can go back there.

    Raises:
        SourceError: it cannot be read, holds text, or more than `limit` bytes.
    """
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        data = file.read(limit + 1)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(error, kind) from None
    if not isinstance(data, (bytes, bytearray)):
        raise SourceError(f"expected {kind} file open in binary mode, found text; open it as 'rb'")
    check_length(len(data), limit)
    return bytes(data)


def check_length(length: int, limit: int) -> None:
    """Refuse more than `limit` bytes."""
    if length > limit:
        raise _too_long(limit)


def data_address(text: str, limit: int) -> bytes:
    """What a `data:` address holds (RFC 2397), in base64 or percent-encoded.

    Raises:
        SourceError: it is damaged, or holds more than `limit` bytes.
    """
    comma = text.find(",")
    if comma < 0:
        raise SourceError("expected data:image/…;base64,… with a comma before the data, found none")
    base = re.split("[;:]", text[:comma])[-1].strip().lower() == "base64"
    # At most six characters a byte in base64 that is percent-encoded itself, else three.
    if len(text) - comma > (6 if base else 3) * limit + SLACK:
        raise _too_long(limit)
    body = text[comma + 1 :]
    if base:
        return from_base64(unquote(body) if "%" in body else body, limit)
    data = unquote_to_bytes(body)
    check_length(len(data), limit)
    return data


def base64_start(text: str) -> bytes:
    """The first bytes that base64 stands for; none if `text` begins otherwise or is short."""
    start = text[:80].translate(_SPACES)[:24]
    return from_base64(start, len(start)) if len(start) == 24 and _BASE64.fullmatch(start) else b""


def from_base64(text: str, limit: int) -> bytes:
    """What base64 stands for.

    Line breaks and missing padding are taken, and the alphabet of addresses (- and _).

    Raises:
        SourceError: it is no base64, has been cut, or holds more than `limit` bytes.
    """
    if len(text) > 2 * limit + SLACK:  # a third more than bytes, and room for line breaks
        raise _too_long(limit)
    text = text.translate(_SPACES)
    bare = text.rstrip("=")
    if len(bare) * 3 // 4 > limit:
        raise _too_long(limit)
    if not _BASE64.fullmatch(text) or len(bare) % 4 == 1:
        raise SourceError("expected base64, found other characters in it, or its end cut off")
    bare = bare.replace("-", "+").replace("_", "/")
    return base64.b64decode(bare + "=" * (-len(bare) % 4))


def download(address: str, limit: int) -> bytes:
    """What an http or https address answers with.

    Raises:
        SourceError: another kind of address, or no answer within the limits.
    """
    if address.split("://", 1)[0].lower() not in ("http", "https"):
        raise SourceError("expected a path or an http or https address")
    # An opener with these handlers alone follows no redirect to a file: or ftp: address.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPRedirectHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "avl"), ("Accept", "image/*")]
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    try:
        with opener.open(address, timeout=CONNECT_SECONDS) as response:
            data = bytearray()
            while chunk := response.read1(1 << 16):
                data += chunk
                check_length(len(data), limit)
                if time.monotonic() > deadline:
                    raise SourceError(f"expected an answer in {DOWNLOAD_SECONDS:.0f} s")
            return bytes(data)
    except urllib.error.HTTPError as error:
        raise SourceError(
            f"expected an image, found HTTP status {error.code}; check the address"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = shown(" ".join(str(getattr(error, "reason", error)).split()))
        raise SourceError(
            f"expected an answer, found: {reason}; check the address and the network"
        ) from None


def _unreadable(error: Exception, kind: str) -> SourceError:
    reason = shown(getattr(error, "strerror", None) or error)
    return SourceError(f"expected {kind} file that can be read, found: {reason}")


def _too_long(limit: int) -> SourceError:
    return SourceError(f"expected at most {size_text(limit)}, found more; scale it down first")

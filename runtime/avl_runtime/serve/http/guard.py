"""Who may ask: API keys, and names under which browsers may reach a server without one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from avl_plugins.errors import AvlError, shown
from avl_runtime.serve.errors import ApiError

VARIABLE: Final = "AVL_API_KEY"
LARGEST: Final = 1 << 16  # bytes of a file of keys
SHORTEST: Final = 16  # characters of a key
MAKE: Final = "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"


class ApiKeyError(AvlError):
    """Keys cannot be read, or are none that protect anything."""


class Guard:
    """Lets in whoever has one of the keys; without keys, whoever calls this machine by its name.

    A page from elsewhere that a browser shows can have its own name point to this machine, and
    then ask what it wants: that name is what tells it apart.
    """

    def __init__(self, keys: Collection[str], hosts: Collection[str] | None) -> None:
        """
        Args:
            keys: any of them lets in; none asks for none.
            hosts: names that requests without a key may be addressed to, None for any.
        """
        self._keys = [_digest(key) for key in keys]
        self._hosts = None if self._keys or hosts is None else frozenset(hosts)

    def check(self, headers: Mapping[str, str]) -> bytes:
        """Refuse who may not ask; returns a hash of the key, empty where none is asked for.

        Raises:
            ApiError: there is no key, another one, or an address that is not this machine's.
        """
        given = b""
        if self._keys:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = _digest(key.strip())
            # All are compared, each in constant time: how long it takes says nothing.
            found = sum(hmac.compare_digest(given, one) for one in self._keys)
            if scheme.lower() != "bearer" or not found:
                raise ApiError(
                    401,
                    "expected an API key of this server, found another or none; send "
                    "Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        self.check_host(headers)
        return given

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Refuse addresses that are not this machine's, where no key is asked for.

        Raises:
            ApiError: it is one.
        """
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            raise ApiError(
                403,
                "expected a request to this machine's own name, found another; call it localhost, "
                "or have the server started with an API key",
                code="wrong_host",
            )


def keys(file: Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line, and of the environment.

    Raises:
        ApiKeyError: the file cannot be read, or a key is too short.
    """
    lines = [os.environ[VARIABLE]] if os.environ.get(VARIABLE) else []
    if file is not None:
        try:
            with file.open("rb") as opened:
                data = opened.read(LARGEST + 1)
            text = data.decode("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "other bytes than UTF-8"
            raise ApiKeyError(
                f"--api-key: expected a file of keys, found {shown(file)}: {reason}; name another, "
                "or make it readable"
            ) from None
        if len(data) > LARGEST or not text.strip():
            raise ApiKeyError(
                f"--api-key: expected a file with a key on each line, found {shown(file)} "
                + ("larger than 64 KiB; name another" if text.strip() else f"empty; {MAKE}")
            )
        lines += text.splitlines()
    found = tuple(line.strip() for line in lines if line.strip())
    for number, key in enumerate(found, 1):
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable():
            raise ApiKeyError(
                f"expected API keys of at least {SHORTEST} printable ASCII characters, found "
                f"another as number {number}; {MAKE}"
            )
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def local_names(host: str) -> frozenset[str]:
    """What a server on a loopback address may be called."""
    return frozenset(("localhost", "127.0.0.1", "::1", host.lower()))


def _host(value: str) -> str:
    """A Host header without its port."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

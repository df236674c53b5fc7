"""Pictures from addresses, of hosts that whoever runs the server has named, and nobody else's.

A name is resolved once, all its addresses are looked at, and the connection goes to the very
address that was looked at, so that no second answer of a name server can lead elsewhere. So it is
with every redirect.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from avl_plugins.errors import AvlError, quoted
from avl_runtime.serve.errors import refused

SECONDS: Final = 20.0  # for a picture, redirects included
WAITED: Final = 5.0  # for a connection, and between two parts of an answer
REDIRECTS: Final = (301, 302, 303, 307, 308)
MOST_REDIRECTS: Final = 3
LONGEST: Final = 4096  # characters of an address
PORTS: Final = {"http": 80, "https": 443}
PART: Final = 1 << 16
# Of IPv6 the open internet is what has been given out as such, and of that neither what documents
# write, nor what registries keep for protocols (Teredo with them), nor 6to4, whose addresses lead
# to IPv4 ones. Source: IANA's registries of IPv6 addresses.
OPEN: Final = ipaddress.IPv6Network("2000::/3")
CLOSED: Final = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
)
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # ends in an IPv4 address (RFC 6052)
LOOKUPS: Final = 16  # names that are looked up at one time
_lookups = threading.BoundedSemaphore(LOOKUPS)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class HostError(AvlError):
    """Something was named as a host that is none."""


class FetchError(AvlError):
    """What was expected of a host and found; whoever catches it adds the name of the field."""


class Fetcher:
    """Fetches pictures.

    Args:
        hosts: `NAME` or `NAME:PORT`; without a port those of http and https are meant.
        most: bytes of a picture.
    """

    def __init__(self, hosts: Collection[str], most: int) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._most = most

    def fetch(self, url: str, name: str) -> bytes:
        """The bytes that an address answers with.

        Args:
            name: of the field, for messages.

        Raises:
            ApiError: it is no address of a host that is allowed, leads to one that is not, or to
                this machine or its neighbours, or nothing that is a picture comes in time.
        """
        until = time.monotonic() + SECONDS
        for _ in range(MOST_REDIRECTS + 1):
            parts = self._allowed(url, name)
            try:
                found = self._get(parts, until)
                following = urljoin(url, found) if isinstance(found, str) else ""
            except FetchError as error:
                raise refused(f"{name}: {error}", name) from None
            # Certificates of other names and addresses that are none are a ValueError.
            except (OSError, HTTPException, ValueError):
                raise refused(
                    f"{name}: expected an answer of the host, found none in time or a broken one; "
                    "send the picture itself",
                    name,
                ) from None
            if isinstance(found, bytes):
                return found
            if parts.scheme == "https" and not following.lower().startswith("https:"):
                raise refused(f"{name}: expected redirects to https, found another", name)
            url = following
        raise refused(f"{name}: expected at most {MOST_REDIRECTS} redirects, found more", name)

    def _allowed(self, url: str, name: str) -> SplitResult:
        """The parts of an address, if its host is one of those allowed."""
        plain = len(url) <= LONGEST and url.isascii() and url.isprintable() and " " not in url
        try:
            parts = urlsplit(url) if plain else None
            host, port = (parts.hostname, parts.port) if parts is not None else (None, None)
        except ValueError:
            parts = host = port = None
        if parts is None or parts.scheme not in PORTS or not host or "@" in parts.netloc:
            raise refused(
                f"{name}: expected a data:, http or https address without a user, found another",
                name,
            )
        standard = port is None or port == PORTS[parts.scheme]
        if f"{host}:{port}" not in self._hosts and not (standard and host in self._hosts):
            raise refused(
                f"{name}: expected a host that --allow-url-host names, found another; send the "
                "picture itself",
                name,
                "host_not_allowed",
            )
        return parts

    def _get(self, parts: SplitResult, until: float) -> bytes | str:
        """What is there, or where it is said to be.

        Raises:
            FetchError: the host is not a public one, or answers with an error or too much.
            OSError: the time is up, or the connection broke.
        """
        _check_time(until)
        host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
        address = public_address(host, port, until)
        connection = _Pinned(host, port, address, parts.scheme == "https", until)
        # A host that sends a byte now and then would outlast the time between two of them.
        timer = threading.Timer(max(0.0, until - time.monotonic()), connection.cut)
        timer.daemon = True
        timer.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Accept": "image/*", "User-Agent": "avl", "Accept-Encoding": "identity"}
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            if answer.status in REDIRECTS and answer.headers.get("Location"):
                return str(answer.headers["Location"])
            if answer.status != 200:
                raise FetchError(f"expected a picture, found HTTP status {answer.status}")
            return self._read(answer, until)
        finally:
            timer.cancel()
            connection.close()

    def _read(self, answer: HTTPResponse, until: float) -> bytes:
        data = bytearray()
        while part := answer.read1(PART):
            _check_time(until)
            data += part
            if len(data) > self._most:
                raise FetchError(f"expected a picture of at most {self._most} bytes, found more")
        _check_time(until)  # a connection that was cut ends like one that is done
        return bytes(data)


class _Pinned(HTTPConnection):
    """A connection to an address that was looked at, to a host of a name."""

    def __init__(self, host: str, port: int, address: str, encrypted: bool, until: float) -> None:
        super().__init__(host, port, timeout=WAITED)
        self._address, self._encrypted, self._until = address, encrypted, until
        self.default_port = PORTS["https" if encrypted else "http"]

    def connect(self) -> None:
        """Connect; a proxy of the environment is not asked."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._encrypted:
            context = ssl.create_default_context()
            # Shaking hands comes after, where `cut` can reach it.
            self.sock = encrypted = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            _check_time(self._until)
            encrypted.do_handshake()
        _check_time(self._until)  # it may have come up while there was nothing to cut

    def cut(self) -> None:
        """End whatever is waited for, from another thread."""
        if self.sock is not None:
            with suppress(OSError):
                # That of ssl would take away what the other thread is using.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _check_time(until: float) -> None:
    """Raise TimeoutError once `until`, in seconds of `time.monotonic`, has come."""
    if time.monotonic() >= until:
        raise TimeoutError


def public_address(host: str, port: int, until: float) -> str:
    """An address of a host, if all that it has are public ones.

    Args:
        until: when the time is up, in seconds of `time.monotonic`.

    Raises:
        FetchError: it has none, or one that is not.
        TimeoutError: no name server has answered in time.
    """
    try:
        addresses = _addresses(host, port, until)
    except TimeoutError:
        raise
    except (OSError, UnicodeError):
        raise FetchError("expected a host with an address, found none") from None
    if not addresses or not all(is_public(one) for one in addresses):
        raise FetchError("expected a host with public addresses, found another")
    return addresses[0]


def _addresses(host: str, port: int, until: float) -> list[str]:
    """All addresses of a host.

    The system's own function has no limit of time, and cannot be stopped: it runs in a thread that
    is left to itself when the time is up, of which there are never more than `LOOKUPS`.
    """
    found: Future[list[Any]] = Future()

    def look() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except BaseException as error:
            found.set_exception(error)
        finally:
            _lookups.release()

    if not _lookups.acquire(timeout=max(0.0, until - time.monotonic())):
        raise TimeoutError
    # One of a pool would be waited for when the server ends.
    threading.Thread(target=look, name="avl-lookup", daemon=True).start()
    return [str(entry[4][0]) for entry in found.result(max(0.0, until - time.monotonic()))]


def is_public(text: str) -> bool:
    """Whether an address is one of the open internet: no private, link-local or own one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return _is_global(address)
    if address.scope_id is not None:  # a zone, which link-local addresses have alone
        return False
    if address in NAT64:
        return _is_global(ipaddress.IPv4Address(address.packed[12:]))
    closed = any(address in network for network in CLOSED)
    return address in OPEN and not closed and _is_global(address)


def _is_global(address: Address) -> bool:
    closed = (
        address.is_private,
        address.is_loopback,
        address.is_link_local,
        address.is_multicast,
        address.is_reserved and address.version == 4,
        address.is_unspecified,
    )
    return address.is_global and not any(closed)


def checked_hosts(hosts: Collection[str]) -> tuple[str, ...]:
    """Hosts as `Fetcher` takes them.

    Raises:
        HostError: one is no name, or holds a path or a wildcard.
    """
    for host in hosts:
        name, colon, port = host.partition(":")
        labels = name.split(".")
        fits = all(one.replace("-", "").isalnum() and one.isascii() for one in labels)
        if not fits or (colon and not (port.isdecimal() and 0 < int(port[:6]) < 1 << 16)):
            raise HostError(
                f"--allow-url-host: expected NAME or NAME:PORT, found {quoted(host)}; write "
                "pictures.example"
            )
    return tuple(hosts)

"""Pictures by address come from hosts that were named, and from the open internet alone."""

from __future__ import annotations

import io
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.http import fetch
from avl_runtime.serve.http.fetch import (
    Fetcher,
    FetchError,
    HostError,
    checked_hosts,
    is_public,
    public_address,
)

FUTURE = 1e9  # by the clock of a machine that has run for less than thirty years
PRIVATE = (
    *("127.0.0.1", "127.255.0.3", "0.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.7", "198.18.0.1", "203.0.113.9"),
    *("224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00::1"),
    *("fe80::1%eth0", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "::7f00:1"),
    *("2001:0:7f00:1::", "fd00:ec2::254", "no address", ""),
    *("3fff::1", "3fff:fff::1", "4000::1", "1::1", "64:ff9b:1::808:808", "64:ff9b::1:808:808"),
    *("2002:808:808::1", "2001::1", "2001:1ff::1", "::ffff:8.8.8.8", "::808:808", "2606::1%eth0"),
)  # fmt: skip
PUBLIC = ("1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "2001:4860::1", "64:ff9b::808:808")


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_in_another_is_as_good_as_itself(address: ipaddress.IPv4Address) -> None:
    """However an IPv6 address leads to an IPv4 one, and nothing that Python holds private is."""
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        inside = int(ipaddress.IPv6Address(prefix)) + int(address)
        assert not is_public(str(ipaddress.IPv6Address(inside))) or is_public(str(address))
    assert not is_public(str(address)) or address.is_global


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def found(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_one_private_address_among_others_is_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(FetchError, match="public addresses"):
        public_address("x.example", 80, FUTURE)
    resolving(monkeypatch, "8.8.8.8", "1.1.1.1")
    assert public_address("x.example", 80, FUTURE) == "8.8.8.8"


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/x.png",
        "http://good.example.evil.example/",
        "http://good.example@evil.example/",
        "http://user@good.example/",
        "http://good.example:81/",
        "https://good.example:80/",
        "http://good.example\\@evil.example/",
        "http://good.example /",
        "http://good.example/\r\nHost: x",
        "http://[::1]/",
        "http://[good.example/",
        "http://good.example:99999/",
        "http://127.0.0.1/",
        "http:///x",
        "file:///etc/passwd",
        "ftp://good.example/x",
        "gopher://good.example/",
        "//good.example/x",
        "http://good.exämple/",
        "http://good.example/" + "x" * 5000,
    ],
)
def test_addresses_that_are_refused_before_anything_is_asked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(socket, "create_connection", never)
    with pytest.raises(ApiError) as refused:
        Fetcher(["good.example"], 1000).fetch(url, "x")
    assert refused.value.status == 400
    with pytest.raises(ApiError):
        Fetcher([], 1000).fetch("http://good.example/", "x")


class Pages(BaseHTTPRequestHandler):
    data: ClassVar[bytes] = b""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['Host']}{self.path}")
        where = {
            "/away": "http://other.example/x",
            "/inside": "http://metadata.example:1/latest",
            "/round": "/round",
            "/file": "file:///etc/passwd",
            "/on": "/picture?again",
            "/broken": "http://[good.example/",
        }.get(self.path)
        self.send_response(302 if where else 404 if self.path == "/none" else 200)
        if where:
            self.send_header("Location", where)
        body = self.data * (1000 if self.path == "/large" else 1)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server of this machine, to which a name leads that is taken for a public one."""
    stream = io.BytesIO()
    Image.new("RGB", (3, 3)).save(stream, "PNG")
    monkeypatch.setattr(Pages, "data", stream.getvalue())
    monkeypatch.setattr(Pages, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def address(host: str, port: int, until: float) -> str:
            if host == "good.example":
                return "127.0.0.1"
            raise FetchError("expected a host with public addresses, found another")

        monkeypatch.setattr(fetch, "public_address", address)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_picture_is_fetched(pages: int) -> None:
    base = f"http://good.example:{pages}"
    fetcher = Fetcher([f"good.example:{pages}", "metadata.example:1"], 10_000)
    for path in ("/picture", "/on", ""):
        assert fetcher.fetch(base + path, "x") == Pages.data
    assert Pages.asked[0] == f"good.example:{pages}/picture"
    for path, reason in (
        ("/away", "that --allow-url-host names"),
        ("/inside", "public addresses"),
        ("/file", "data:, http or https"),
        ("/round", "3 redirects"),
        ("/none", "status 404"),
        ("/broken", "or a broken one"),
        ("/large", "at most 10000 bytes"),
    ):
        with pytest.raises(ApiError, match=reason):
            fetcher.fetch(base + path, "x")
    assert sum(one.endswith("/round") for one in Pages.asked) == 4


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_nothing_is_done_once_the_time_is_up(
    pages: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is looked at the clock: before, when connected, for each part, at the end."""
    looks = iter([0.0] * (left + 2))  # later ones are too late

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return next(looks, 1e9)

    monkeypatch.setattr(fetch, "time", Clock)
    with pytest.raises(ApiError, match="none in time"):
        Fetcher([f"good.example:{pages}"], 10_000).fetch(f"http://good.example:{pages}/", "x")


def test_name_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are waited for as long as the rest; threads that hang there are counted."""
    answer = threading.Event()
    asked: list[threading.Thread] = []

    def hangs(*arguments: Any, **options: Any) -> Any:
        asked.append(threading.current_thread())
        answer.wait()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    monkeypatch.setattr(fetch, "SECONDS", 0.01)
    try:
        for _ in range(fetch.LOOKUPS + 2):
            with pytest.raises(ApiError, match="none in time"):
                Fetcher(["good.example"], 10_000).fetch("http://good.example/", "x")
        assert len(asked) <= fetch.LOOKUPS
        assert all(one.daemon for one in asked)  # a server that ends does not wait for them
    finally:
        answer.set()
    for one in asked:
        one.join()
    resolving(monkeypatch, "8.8.8.8")
    for _ in range(fetch.LOOKUPS + 1):
        assert public_address("x.example", 80, FUTURE) == "8.8.8.8"


@pytest.mark.parametrize("error", [ValueError("x"), ssl.CertificateError("x"), OSError("x")])
def test_what_libraries_raise_is_not_repeated(
    pages: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ApiError, match="or a broken one"):
        Fetcher([f"good.example:{pages}"], 10_000).fetch(f"http://good.example:{pages}/", "x")


def test_hosts_that_can_be_allowed() -> None:
    assert checked_hosts(["a.example", "b-c.example:8080"]) == ("a.example", "b-c.example:8080")
    for wrong in ("", "*", "*.example", "http://a.example", "a.example/x", "a:0", "a:x", "a:99999"):
        with pytest.raises(HostError, match="expected NAME"):
            checked_hosts([wrong])

"""A stand-in for the Hugging Face hub's HTTP API, as far as downloads use it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "1" * 40
OTHER = "2" * 40
LARGE = (".safetensors", ".bin")  # what the hub keeps in LFS and answers with a redirect


@dataclass
class Hub:
    """Repositories to serve, what went wrong on purpose, and what was asked for.

    Attributes:
        repositories: hub id -> revision -> file name -> bytes; revision "main" is COMMIT.
        gated: hub ids whose files need an accepted licence.
        status: answers every request with this HTTP status, if set.
        cut: file name -> how often its connection breaks off halfway.
        requests: (method, path) of all requests, in order.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    status: int | None = None
    cut: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def add(self, hub_id: str, folder: Path, revision: str = COMMIT) -> None:
        """Serve the files below `folder` as `hub_id`."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.repositories.setdefault(hub_id, {})[revision] = files

    def fetched(self) -> list[str]:
        """Names of the files whose contents were asked for."""
        marks = ("/resolve/", "/lfs/")
        return [
            path.rsplit("/", 1)[1]
            for method, path in self.requests
            if method == "GET" and any(mark in path for mark in marks)
        ]


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            _answer(self, hub)

        def do_HEAD(self) -> None:
            _answer(self, hub)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    path = unquote(urlsplit(request.path).path)
    hub.requests.append((request.command, path))
    parts = path.strip("/").split("/")
    if hub.status is not None:
        return _fail(request, hub.status, "", "out of order")
    if parts[:2] == ["api", "models"]:
        return _api(request, hub, "/".join(parts[2:4]), parts[4:])
    if parts[0] == "lfs":
        return _file(request, hub, hub.repositories["/".join(parts[1:3])][parts[3]], parts[-1])
    if parts[2:3] != ["resolve"]:
        return _fail(request, 404, "", "not served here")
    return _resolve(request, hub, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))


def _find(hub: Hub, hub_id: str, revision: str) -> tuple[int, str, str]:
    """(status, error code, commit)."""
    if hub_id not in hub.repositories:
        return 401, "RepoNotFound", ""
    commit = COMMIT if revision == "main" else revision
    if commit not in hub.repositories[hub_id]:
        return 404, "RevisionNotFound", ""
    return 200, "", commit


def _api(request: BaseHTTPRequestHandler, hub: Hub, hub_id: str, rest: list[str]) -> None:
    status, code, commit = _find(hub, hub_id, rest[1] if len(rest) > 1 else "main")
    if status != 200:
        return _fail(request, status, code, "not found")
    entries = []
    for name, data in hub.repositories[hub_id][commit].items():
        digest = hashlib.sha256(data).hexdigest()
        large = name.endswith(LARGE)
        lfs = {"size": len(data), "sha256": digest, "oid": digest, "pointerSize": 134}
        entry: dict[str, Any] = {
            "size": len(data),
            "oid": digest[:40],
            **({"lfs": lfs} if large else {}),
        }
        entries.append({**entry, "type": "file", "path": name, "rfilename": name, "blobId": digest})
    if rest[:1] == ["tree"]:
        return _send(request, json.dumps(entries).encode(), {"Content-Type": "application/json"})
    info = {"id": hub_id, "modelId": hub_id, "sha": commit, "siblings": entries, "tags": []}
    return _send(request, json.dumps(info).encode(), {"Content-Type": "application/json"})


def _resolve(
    request: BaseHTTPRequestHandler, hub: Hub, hub_id: str, revision: str, name: str
) -> None:
    status, code, commit = _find(hub, hub_id, revision)
    if status == 200 and hub_id in hub.gated:
        status, code = 403, "GatedRepo"
    elif status == 200 and name not in hub.repositories[hub_id][commit]:
        status, code = 404, "EntryNotFound"
    if status != 200:
        return _fail(request, status, code, "refused")
    files = hub.repositories[hub_id][commit]
    digest = hashlib.sha256(files[name]).hexdigest()
    if not name.endswith(LARGE):
        return _file(request, hub, files, name, {"X-Repo-Commit": commit})
    request.send_response(302)
    for key, value in {
        # As on the real hub, large files lie at another host.
        "Location": f"{hub.url.replace('127.0.0.1', 'localhost')}/lfs/{hub_id}/{commit}/{name}",
        "X-Repo-Commit": commit,
        "X-Linked-Etag": f'"{digest}"',
        "X-Linked-Size": str(len(files[name])),
        "Content-Length": "0",
    }.items():
        request.send_header(key, value)
    return request.end_headers()


def _file(
    request: BaseHTTPRequestHandler,
    hub: Hub,
    files: dict[str, bytes],
    name: str,
    headers: dict[str, str] | None = None,
) -> None:
    data, first = files[name], 0
    wanted = request.headers.get("Range")
    if wanted is not None:
        first = int(wanted.removeprefix("bytes=").partition("-")[0])
    etag = hashlib.sha256(data).hexdigest()
    more = {**(headers or {}), "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if wanted is not None:
        more["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
    breaks = request.command == "GET" and hub.cut.get(name, 0) > 0
    if breaks:
        hub.cut[name] -= 1
    _send(request, data[first:], more, 206 if wanted is not None else 200, breaks)


def _send(
    request: BaseHTTPRequestHandler,
    body: bytes,
    headers: dict[str, str],
    status: int = 200,
    breaks: bool = False,
) -> None:
    request.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    request.wfile.write(body[: len(body) // 2] if breaks else body)
    if breaks:
        request.close_connection = True
        request.wfile.flush()
        request.connection.close()


def _fail(request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
    headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
    _send(request, json.dumps({"error": message}).encode(), headers, status)


def use(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the client of this process talk to `hub` and keep what it fetches in `cache`."""
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)

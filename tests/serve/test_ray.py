"""The server and its batches on Ray; scripts/ray_check.py is the longer check, on two workers."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.cli.batch import main, make_parser
from avl_runtime.package.package import load_package
from avl_runtime.serve.batch.run import BatchError
from avl_runtime.serve.batch.workers import check_reached
from avl_runtime.serve.ray import Replica, settings_of
from support.server import KEY, ONE

ROOT = Path(__file__).parents[2]
START = "import sys; from avl_runtime.cli.start import batch; sys.exit(batch())"
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed here")


@needs_ray
def test_a_worker_answers_as_the_command_alone(
    tiny_package: Path, tiny: LVLM, tmp_path: Path
) -> None:
    ONE.image.save(tmp_path / "one.png")
    lines = [{"images": ["one.png"], "prompt": ONE.prompt}, {"prompt": 1}, {"prompt": "Hello."}]
    questions, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    questions.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    words = [str(tiny_package), str(questions), "--out", str(out), "--max-new-tokens", "8"]
    copies = tmp_path / "copies"
    copying = ["--copy-to", str(copies)]
    command = [sys.executable, "-c", START, *words, *copying, "--workers", "1", "--ray"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    rows = {row["custom_id"]: row["response"] for row in map(json.loads, out.open())}
    assert [rows[f"line-{number}"]["status_code"] for number in (1, 2, 3)] == [200, 400, 200]
    (choice,) = rows["line-1"]["body"]["choices"]
    expected = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=8)
    assert choice["message"]["content"] == expected.text
    (copy,) = copies.glob("*/package")
    assert load_package(copy).manifest.model == load_package(tiny_package).manifest.model


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed here")
def test_what_is_missing_is_told(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_text('{"prompt": "Hello."}\n')
    words = [str(tiny_package), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--ray"]
    assert main(words) == 1
    assert "--ray: expected the packages of the ray extra, found no ray" in capsys.readouterr().err


def test_a_head_that_is_not_there_is_told() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(BatchError, match=f"--ray {address}: expected a cluster's head, .* HO"):
            check_reached(address)
        held.listen()
        check_reached(address)
    for wrong in ("nonsense", "", ":6379", "host:", "host:x", "host:0", "host:65536", "a:-1"):
        with pytest.raises(BatchError, match=f"expected a cluster's address, found '{wrong}'; na"):
            check_reached(wrong)
    with pytest.raises(BatchError, match="expected a cluster's address"):
        check_reached(f"host:{'1' * 5000}")
    with pytest.raises(BatchError, match="expected a cluster's head"):
        check_reached(f"{'a' * 64}.invalid:6379")  # a label that no name server can be asked for
    for named in ("auto", "local"):
        check_reached(named)


def test_a_replica_lives_as_long_as_it_is_told(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(KEY)
    args = {"package": f"tiny={tiny_package}", "backend": "ort-cpu", "running": "2"}
    with pytest.raises(AvlError, match="expected API keys"):
        Replica(settings_of(args))
    monkeypatch.setenv("AVL_API_KEY", KEY)
    with pytest.raises(AvlError, match="open: expected no API key beside it, found AVL_API_KEY"):
        Replica(settings_of(args | {"open": "true"}))
    monkeypatch.delenv("AVL_API_KEY")
    more = {"keys": str(tmp_path / "keys"), "max_replicas": 3, "queue": 0, "policy": "avl"}
    rows = {"kv_bytes": "20000000000", "cache_dir": str(tmp_path / "rows"), "cache_limit": 1000}
    settings = settings_of(args | more | rows)
    assert (settings.limits.queue, settings.loading["policy"]) == (0, "avl")
    assert (settings.limits.running, settings.limits.choices) == (2, 2)
    assert settings.limits.kv_bytes == 20_000_000_000
    assert (settings.loading["threads"], settings.replicas) == (1, (1, 3))
    sent: list[Any] = []

    async def asked() -> None:
        replica = Replica(settings)
        incoming: asyncio.Queue[Any] = asyncio.Queue()

        async def send(message: Any) -> None:
            sent.append(message)

        life = asyncio.create_task(replica({"type": "lifespan"}, incoming.get, send))
        await incoming.put({"type": "lifespan.startup"})
        while not sent:
            await asyncio.sleep(0)
        for key in (KEY, "another-key-0123456789"):
            headers = [(b"authorization", f"Bearer {key}".encode())]
            scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
            await replica(scope, incoming.get, send)
        await incoming.put({"type": "lifespan.shutdown"})
        await life

    asyncio.run(asked())
    assert sent[0]["type"] == "lifespan.startup.complete"
    assert sent[-1]["type"] == "lifespan.shutdown.complete"
    assert (tmp_path / "rows").is_dir()
    begun = [one["status"] for one in sent if one["type"] == "http.response.start"]
    assert begun == [200, 401]
    (listed, _) = (one["body"] for one in sent if one["type"] == "http.response.body")
    assert [one["id"] for one in json.loads(listed)["data"]] == ["tiny"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, "package: expected a folder"),
        ({"package": ["a", 1]}, "package: expected a folder"),
        ({"package": []}, "package: expected a folder, or some"),
        ({"package": ""}, "expected a package"),
        ({"package": "a", "nothing": 1}, "found 'nothing'"),
        ({"package": "a", "running": True}, "running: expected a whole number"),
        ({"package": "a", "threads": "1.5"}, "threads: expected a whole number"),
        ({"package": "a", "min_replicas": 3, "max_replicas": 2}, "max_replicas: expected"),
        ({"package": "a", "open": "yes"}, "open: expected true or false"),
        ({"package": "a", "open": 1}, "open: expected true or false"),
        ({"package": "a", "open": None}, "open: expected true or false"),
        ({"package": "a", "running": 0}, "running: expected a whole number of at least 1"),
        ({"package": "a", "kv_bytes": 0}, "kv_bytes: expected a whole number of at least 1"),
        ({"package": "a", "cache_dir": ""}, "cache_dir: expected a text"),
        ({"package": "a", "queue": -1}, "queue: expected a whole number of at least 0"),
        ({"package": "a", "backend": "cuda"}, "backend: expected one of auto, "),
        ({"package": "a", "kv": "int9"}, "kv: expected one of auto, "),
        ({"package": "a", "keys": ""}, "keys: expected a text, found ''"),
        ({"package": "a", "policy": "avl:keep=2"}, "keep"),
        ({"package": "a", "policy": 5}, "policy: expected a text"),
        ({"package": "a", "open": True, "keys": "k"}, "open: expected no keys"),
    ],
)
def test_arguments_that_cannot_be_used(args: dict[str, Any], told: str) -> None:
    with pytest.raises(AvlError, match=told):
        settings_of(args)


def test_the_example_for_kubernetes() -> None:
    found = list(yaml.safe_load_all((ROOT / "deploy/kuberay.yaml").read_text()))
    service, job = found
    (served,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert served["import_path"] == "avl_runtime.serve.ray:application"
    settings = settings_of(served["args"])
    cluster = service["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    processors = int(container["resources"]["limits"]["cpu"])
    assert settings.loading["threads"] <= processors
    assert settings.replicas[1] <= group["maxReplicas"] * (
        processors // settings.loading["threads"]
    )
    command, *words = job["spec"]["entrypoint"].split()
    parsed = make_parser().parse_args(words)
    assert (command, parsed.ray, parsed.resume) == ("avl-batch", "auto", True)

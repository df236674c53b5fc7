#!/usr/bin/env python3
"""Check avl-batch --ray and the deployment of Ray Serve on a Ray of two processors here.

    .venv/bin/python scripts/ray_check.py build/avl-tiny.avl --json benchmarks/ray-check.json

Needs the extra ray, and some GB of memory. A file of requests is answered by avl-batch alone and by
two workers with a copy of the package, of which one is killed while it answers; then a deployment
is asked by openai's client while its replicas become more. Whatever differs ends with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from avl_runtime.bench.surroundings import machine

ROOT = Path(__file__).parents[1]
REQUESTS = 48
START = "import sys; from avl_runtime.cli.start import batch; sys.exit(batch())"
KEY = "a-key-for-the-check-0123456789"
VARYING = ("id", "created", "request_id", "kv_bytes", "cached_tokens", "prefix_tokens")
Found = TypeVar("Found")


def processes(name: str) -> dict[int, int]:
    """Bytes of resident memory of processes whose command line holds a text, by their ids."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                pages = int((folder / "statm").read_text().split()[1])
            except (OSError, ValueError):
                continue
            if name in command:
                found[int(folder.name)] = pages * os.sysconf("SC_PAGE_SIZE")
    return found


class Peak:
    """The most memory that Ray's processes have together, looked at every half second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self.bytes

    def _look(self) -> None:
        while not self._done.wait(0.5):
            ours = processes("ray::") | processes("raylet") | processes("gcs_server")
            self.bytes = max(self.bytes, sum(ours.values()))


def without(found: Any) -> Any:
    """An answer without what differs from one time to the next."""
    if isinstance(found, dict):
        return {name: without(one) for name, one in found.items() if name not in VARYING}
    return [without(one) for one in found] if isinstance(found, list) else found


def answers(out: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = {row["custom_id"]: without(row) for row in rows}
    assert len(found) == len(rows) == REQUESTS, (len(found), len(rows))
    return found


def batch(package: Path, questions: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, str(package), str(questions), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--backend", "ort-cpu", "--threads", "1", "--running", "2", *words],
        stderr=subprocess.PIPE,
        text=True,
    )


def check_batch(package: Path, folder: Path) -> dict[str, Any]:
    """A killed worker is replaced, and each request has the answer it has without Ray, once."""
    questions = folder / "questions.jsonl"
    pictures = [str(ROOT / "samples" / name) for name in ("page.png", "scene.png")]
    questions.write_text(
        "".join(
            json.dumps(
                {
                    "images": [pictures[number % 2]],
                    "prompt": f"Read the text, {number}.",
                    "policy": ("dense", "avl", "fastv")[number % 3],
                    "max_tokens": 200,
                    "min_new_tokens": 200,
                }
            )
            + "\n"
            for number in range(REQUESTS)
        )
    )
    beside = ["--images", str(ROOT / "samples")]
    alone, _ = timed(lambda: batch(package, questions, folder / "alone", *beside).wait())
    out, killed = folder / "ray", 0
    peak, begun = Peak(), time.monotonic()
    cluster = ["--workers", "2", "--ray", "local", "--copy-to", str(folder / "copies")]
    process = batch(package, questions, out, *beside, *cluster)
    while process.poll() is None:
        workers = sorted(processes("ray::MapWorker"))
        if not killed and workers and out.exists() and out.stat().st_size:
            killed = workers[0]
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.02)
    assert process.stderr is not None
    told = process.stderr.read()
    assert process.returncode == 0 and killed, told
    found, expected = answers(out), answers(folder / "alone")
    differ = {name: (found[name], one) for name, one in expected.items() if found[name] != one}
    assert not differ, differ
    (copy,) = (folder / "copies").glob("*/package")
    return {
        "requests": REQUESTS,
        "workers": 2,
        "killed": 1,
        "copied_bytes": sum(one.stat().st_size for one in copy.parent.rglob("*") if one.is_file()),
        "seconds_alone": alone,
        "seconds": time.monotonic() - begun,
        "peak_bytes": peak.stop(),
    }


def timed(work: Callable[[], Found]) -> tuple[float, Found]:
    begun = time.monotonic()
    found = work()
    return time.monotonic() - begun, found


@contextmanager
def deployed(package: Path, keys: Path) -> Iterator[str]:
    import ray
    from ray import serve

    from avl_runtime.serve.ray import application

    ray.init(num_cpus=2, address="local", include_dashboard=False, object_store_memory=256 << 20)
    try:
        serve.start(http_options={"port": 8123})
        asked = {"package": f"tiny={package}", "keys": str(keys), "backend": "ort-cpu"}
        serve.run(application(asked | {"running": 2, "max_replicas": "2"}), name="avl")
        yield "http://127.0.0.1:8123/v1"
    finally:
        serve.shutdown()
        ray.shutdown()


def check_serve(package: Path, folder: Path) -> dict[str, Any]:
    """Answers are those of `LVLM.generate`, streamed or not, and replicas become two."""
    import openai

    from avl_runtime import LVLM

    picture = ROOT / "samples" / "page.png"
    data = base64.b64encode(picture.read_bytes()).decode()
    address = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [address, {"type": "text", "text": "Read the text."}]
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    with LVLM.load(package, backend="ort-cpu", threads=1) as model:
        texts = {
            policy: model.generate(
                "Read the text.", [picture], policy=policy, max_new_tokens=400, min_new_tokens=400
            ).text
            for policy in ("dense", "avl")
        }
    keys = folder / "keys"
    keys.write_text(KEY)
    peak = Peak()
    most = 0
    with deployed(package, keys) as base:

        async def ask(client: openai.AsyncOpenAI, number: int) -> None:
            policy = ("dense", "avl")[number % 2]
            extra = {"policy": policy, "min_new_tokens": 400}
            found: Any = await client.chat.completions.create(
                **asked, max_tokens=400, stream=number % 3 == 0, extra_body=extra
            )
            if number % 3:
                text = found.choices[0].message.content
            else:
                text = "".join([one.choices[0].delta.content or "" async for one in found])
            assert text == texts[policy], (policy, text)

        async def load() -> int:
            nonlocal most
            async with openai.AsyncOpenAI(base_url=base, api_key=KEY, max_retries=0) as client:
                done, until = 0, time.monotonic() + 120
                while time.monotonic() < until and (most < 2 or done < 24):
                    await asyncio.gather(*(ask(client, number) for number in range(12)))
                    done += 12
                    most = max(most, len(processes("ray::ServeReplica")))
                try:
                    stranger = openai.AsyncOpenAI(base_url=base, api_key="no", max_retries=0)
                    await stranger.models.list()
                except openai.AuthenticationError:
                    return done
                raise AssertionError("expected a stranger to be refused")

        seconds, done = timed(lambda: asyncio.run(load()))
    assert most == 2, f"expected two replicas under load, found {most}"
    return {
        "requests": done,
        "most_replicas": most,
        "seconds": seconds,
        "peak_bytes": peak.stop(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="avl-tiny's folder")
    parser.add_argument("--json", type=Path, help="write what was found there")
    parsed = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    package = parsed.package.resolve()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "ray": ray.__version__,
            "batch": check_batch(package, Path(folder)),
            "serve": check_serve(package, Path(folder)),
        }
    print(json.dumps(found, indent=1))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

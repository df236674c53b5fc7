#!/usr/bin/env python
"""Load a server for minutes: every answer is that of `LVLM.generate`, and no memory is lost.

    .venv/bin/python scripts/load_serve.py build/avl-tiny.avl --json benchmarks/load-serve.json
    .venv/bin/python scripts/load_serve.py build/bench/half-billion-fp16-int4.avl \
        --kv-bytes 1600000000 --json benchmarks/load-serve-half-billion.json

Kinds of requests are drawn (pictures, policies, lengths, sampling, streamed or not) and answered by
`LVLM.generate` first. Then avl-serve is started on this machine, and clients ask it for kinds in
random order, each over connections of its own; a tenth go away in the middle of their answer. What
does not count as a fault is 429, behind which a client waits as long as it is told.

The memory of the server's processes must not grow by more than 2 % once the first fifth of the
time is over. With --kv-bytes a server holds the memory of rows from its start on; without, it takes
as much as its largest batch so far has needed. What would be lost is told apart from that: before
this time there is a fifth more of it as a warm-up, and behind both the server rests, and gives back
what it has freed. What it then holds beside rows that prompts have left, whose bytes it tells
itself, must not have grown by more either. Exits with 1 where one of this fails.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import re
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.bench.surroundings import machine
from avl_runtime.cli import lists
from avl_runtime.tasks import TASKS, samples
from places import in_folder
from started import Process, served

CHAT = "/v1/chat/completions"
POLICIES = ("dense", "avl", "fastv", "avl+fastv", "avl:keep=0.3,core=0.1,refresh=2")
LENGTHS = (1, 5, 17, 48)
CANCELLED = 0.1  # share of requests
PARTS = 5  # of the time; the first is the warm-up
GROWTH = 0.02
ANSWER_S = 600.0  # what takes longer is a fault
SAMPLE_S = 0.5
LEAST_MINUTES = 0.2  # four samples or so for each part
REST_S = 10.0  # behind the last answer; after GIVES_BACK_S avl-serve gives back what it has freed
GIVES_BACK_S = 2
TOLD = 20  # faults that the record holds


@dataclass(frozen=True, slots=True)
class Kind:
    """A request that can be asked again and again.

    Attributes:
        body: as it is sent, but for `stream`.
        text: what the answer says.
        tokens: how many it has.
    """

    body: dict[str, Any]
    text: str
    tokens: int


def draw_kinds(model: LVLM, count: int, seed: int) -> list[Kind]:
    """Different requests with their answers, the same ones for the same seed."""
    draw = random.Random(seed)
    shown = [sample for task in TASKS for sample in samples(task, "held-out", 8)]
    kinds = []
    for number in range(count):
        asked = draw.sample(shown, draw.choice((0, 1, 1, 1, 2)))
        images = [sample.image for sample in asked]
        prompt = asked[0].prompt if asked else "What is there to say?"
        options: dict[str, Any] = {"policy": POLICIES[number % len(POLICIES)]}
        if draw.random() < 0.3:
            options |= {"temperature": 0.8, "top_k": 20, "seed": number}
        most = draw.choice(LENGTHS)
        result = model.generate(prompt, images, max_new_tokens=most, **options)
        content = [{"type": "image_url", "image_url": {"url": data_url(one)}} for one in images]
        said = [*content, {"type": "text", "text": prompt}]
        body = {"model": "loaded", "messages": [{"role": "user", "content": said}]}
        kinds.append(
            Kind(body | {"max_tokens": most, **options}, result.text, result.stats.new_tokens)
        )
    return kinds


def data_url(image: Image.Image) -> str:
    """A picture as requests hold it."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


class Load:
    """Clients of a server, and what they found."""

    def __init__(self, port: int, kinds: list[Kind], until: float) -> None:
        self._port, self._kinds, self._until = port, kinds, until
        self._turn = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.compared = self.cancelled = self.tokens = 0
        self.faults: list[str] = []

    def client(self, name: str) -> None:
        """Ask until the time is up; the same name asks for the same."""
        draw = random.Random(name)
        while time.monotonic() < self._until:
            place = draw.randrange(len(self._kinds))
            cancels = draw.random() < CANCELLED
            streams = cancels or draw.random() < 0.5
            wait = 0.0
            try:
                wait = self._ask(self._kinds[place], streams, draw.randint(1, 4) if cancels else 0)
            except (OSError, ValueError, AssertionError) as error:
                with self._turn:
                    self.faults.append(f"kind {place}: {type(error).__name__}: {error}"[:300])
            time.sleep(min(wait, max(0.0, self._until - time.monotonic())))

    def _ask(self, kind: Kind, streams: bool, chunks: int) -> float:
        """Ask once; returns how long to wait before the next time.

        Args:
            chunks: after which the client goes away; 0 for never.
        """
        connection = HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            body = json.dumps(kind.body | {"stream": streams}).encode()
            connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            with self._turn:
                self.statuses[answer.status] += 1
            if answer.status == 429:
                answer.read()
                return float(answer.headers["Retry-After"])
            assert answer.status == 200, f"{answer.status} {answer.read()[:200]!r}"
            text = streamed(answer, chunks) if streams else whole(answer)
            told = kind.text[: len(text)] if chunks else kind.text
            pairs = enumerate(zip(text, told, strict=False))
            same = next((at for at, (mine, theirs) in pairs if mine != theirs), len(text))
            assert text == told, (
                f"{streams=}: of {len(told)} characters expected the first {same} are there, then "
                f"{text[same : same + 60]!r} in place of {told[same : same + 60]!r}"
            )
            with self._turn:
                self.compared += 1
                self.cancelled += bool(chunks)
                self.tokens += 0 if chunks else kind.tokens
            return 0.0
        finally:
            connection.close()


def whole(answer: HTTPResponse) -> str:
    """The text of an answer that came at once."""
    (choice,) = json.loads(answer.read())["choices"]
    return str(choice["message"]["content"])


def streamed(answer: HTTPResponse, chunks: int) -> str:
    """The text of a stream, or of its first chunks where it is left after so many."""
    text, seen, ended = "", 0, False
    for line in answer:
        data = line.removeprefix(b"data: ").strip()
        if not data:
            continue
        if data == b"[DONE]":
            ended = True
            break
        found = json.loads(data)
        assert "error" not in found, found
        text += found["choices"][0]["delta"].get("content") or ""
        seen += 1
        if chunks and seen >= chunks:
            return text
    assert ended, "expected a stream with its end, found one without"
    return text


def resident(pid: int) -> int:
    """Bytes of resident memory of a process and those that it began."""
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                status = (folder / "status").read_text()
            except OSError:  # it has ended
                continue
            fields = dict(re.findall(r"^(PPid|VmRSS):\s*(\d+)", status, re.MULTILINE))
            if pid in (int(folder.name), int(fields["PPid"])):
                total += int(fields.get("VmRSS", 0)) * 1024
    return total


def rested(process: Process) -> int:
    """Bytes of a server that has nothing to do, without the rows that prompts have left."""
    time.sleep(REST_S)
    connection = HTTPConnection("127.0.0.1", process.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/metrics")
        told = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = re.search(r"^avl_prefix_bytes (\S+)$", told, re.MULTILINE)
    assert found is not None, told
    return resident(process.pid) - int(float(found[1]))


def put_under(process: Process, load: Load, clients: int, name: str, until: float) -> list[int]:
    """Have clients ask until a time; bytes of memory meanwhile."""
    threads = [
        threading.Thread(target=load.client, args=(f"{name} {number}",))
        for number in range(clients)
    ]
    for one in threads:
        one.start()
    memory = []
    while any(one.is_alive() for one in threads):
        if time.monotonic() < until:
            memory.append(resident(process.pid))
        time.sleep(SAMPLE_S)
    return memory


def loaded(package: Path, kinds: list[Kind], parsed: argparse.Namespace) -> dict[str, Any]:
    """Load a server; what was found."""
    words = f"--backend ort-cpu --quiet --rest {GIVES_BACK_S} --running {parsed.running}".split()
    words += ["--queue", str(parsed.queue)]
    for option, value in (("--threads", parsed.threads), ("--kv-bytes", parsed.kv_bytes)):
        words += [] if value is None else [option, str(value)]
    with served([f"loaded={package}"], words) as process:
        until = time.monotonic() + 60 * parsed.minutes / PARTS
        first = Load(process.port, kinds, until)
        put_under(process, first, parsed.clients, "warm-up", until)
        before = rested(process)
        begun = time.monotonic()
        until = begun + 60 * parsed.minutes
        load = Load(process.port, kinds, until)
        memory = put_under(process, load, parsed.clients, "load", until)
        seconds = time.monotonic() - begun
        after = rested(process)
    size = max(1, len(memory) // PARTS)
    parts = [int(statistics.median(memory[i : i + size])) for i in range(0, size * PARTS, size)]
    faults = first.faults + load.faults
    return {
        "minutes": parsed.minutes,
        "clients": parsed.clients,
        "running": parsed.running,
        "queue": parsed.queue,
        "kv_bytes": parsed.kv_bytes,
        "requests": load.statuses.total(),
        "by_status": {str(status): count for status, count in sorted(load.statuses.items())},
        "compared": load.compared,
        "cancelled": load.cancelled,
        "tokens_per_second": round(load.tokens / seconds, 1),
        "faults": len(faults),
        "first_faults": faults[:TOLD],
        "rss_bytes_by_fifth": parts,
        "rss_growth": round(parts[-1] / parts[1] - 1, 4),
        "rested_bytes": [before, after],
        "rested_growth": round(after / before - 1, 4),
    }


def some_minutes(text: str) -> float:
    """A time in which memory is looked at often enough."""
    found = lists.number(text)
    if found < LEAST_MINUTES:
        raise argparse.ArgumentTypeError(
            f"expected at least {LEAST_MINUTES} minutes, found {text!r}"
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("package", type=Path)
    add("--minutes", type=some_minutes, default=10.0)
    add("--clients", type=lists.count, default=64)
    add("--kinds", type=lists.count, default=40)
    add("--running", type=lists.count, default=8, help="of avl-serve")
    add("--queue", type=lists.none_or_more, default=48, help="of avl-serve; the rest is told 429")
    add("--kv-bytes", type=lists.count, help="of avl-serve")
    add("--threads", type=lists.threads, help="of avl-serve")
    add("--seed", type=int, default=0)
    add("--json", type=in_folder, help="write what was found there")
    parsed = parser.parse_args(arguments)
    try:
        with LVLM.load(parsed.package, backend="ort-cpu", threads=parsed.threads) as model:
            kinds = draw_kinds(model, parsed.kinds, parsed.seed)
            name = model.package.manifest.model
    except AvlError as error:
        sys.exit(f"load_serve: {error}")
    report = {
        "model": name,
        **loaded(parsed.package, kinds, parsed),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if parsed.json is not None:
        parsed.json.write_text(text + "\n", encoding="utf-8")
    grown = [name for name in ("rss_growth", "rested_growth") if report[name] > GROWTH]
    for name in grown:
        print(f"load_serve: {name}: memory grew by {report[name]:.1%}", file=sys.stderr)
    if report["faults"] or not report["compared"]:
        print(f"load_serve: {report['faults']} faults", file=sys.stderr)
    return int(bool(grown) or bool(report["faults"]) or not report["compared"])


if __name__ == "__main__":
    sys.exit(main())

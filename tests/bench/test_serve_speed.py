"""What serve_speed.py makes of times, and how it asks a server."""

from __future__ import annotations

from pathlib import Path

import serve_speed
from avl_runtime.bench.wire import Job
from serve_speed import Sizes, figures, llama_job, sentences

ROUND = {
    "avl": {"together_s": 10.0, "one_by_one_s": 20.0},
    "llama.cpp": {"together_s": 30.0, "one_by_one_s": 40.0},
}
FIRST = {"waits_chunks": {"median": 0.5, "most": 1.5}, "chunk_s": 0.25}


def test_ratios_say_how_many_times_as_fast_the_server_is() -> None:
    sizes = Sizes(requests=2, new=100)
    found = figures([ROUND] * 3, sizes)
    ratios = {name: one["median"] for name, one in found["times_as_fast_as"].items()}
    assert ratios == {"one_by_one": 2, "llama.cpp_slots": 3, "llama.cpp_one_by_one": 4}
    assert found["new_tokens_a_second"]["avl"] == {"together": 20, "one_by_one": 10}
    told = sentences(
        {"sizes": {"requests": 2, "short": 1, "long": 9}, "first_tokens": FIRST, **found}
    )
    assert "2 requests at once are 3.00 times as fast as llama.cpp slots" in told[1]
    assert "waits 0.50 chunks' time (at most 1.50) of 0.250 s" in told[-1]
    alone = figures([{"avl": ROUND["avl"]}], sizes)
    assert list(alone["times_as_fast_as"]) == ["one_by_one"]


def test_llama_cpp_is_asked_for_as_many_tokens(tmp_path: Path) -> None:
    job: Job = llama_job(Sizes(), tmp_path / "half-billion-fp16", tmp_path, 2, 8)
    assert len(job["input_ids"]) == 640 and (job["new_tokens"], job["batch"]) == (128, 8)
    # Each checkpoint's conversion is its own: one that lies there is taken.
    other = llama_job(Sizes(), tmp_path / "small-fp16", tmp_path, 2, 8)
    assert job["folder"] != other["folder"]
    assert serve_speed.parser().parse_args([]).moments == 8

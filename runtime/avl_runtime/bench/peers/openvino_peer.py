"""The worker that runs a checkpoint's text decoder in OpenVINO GenAI's LLMPipeline, on the CPU."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from avl_runtime.bench.peers.text import build, one_sequence, row_numbers, text_tokens
from avl_runtime.bench.wire import Job, Run, serve

ROW_BYTES = {"u8": 1, "f16": 2, "f32": 4}


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Convert the decoder, load it, and prepare a prompt of as many tokens.

    Raises:
        ValueError: a batch, or one thread in a precision in which OpenVINO crashes with it.
    """
    one_sequence(job, "OpenVINO")
    usable(job)
    import numpy as np
    import openvino
    import openvino_genai as genai

    made = Path(job["folder"]) / f"openvino-{job['weights']}"
    build("openvino_build", job["checkpoint"], made, job["weights"])
    ids = np.array([text_tokens(job)], np.int64)
    total = ids.shape[1] + job["new_tokens"]
    tokenizer = genai.Tokenizer(str(made / "tokenizer"))
    pipeline = genai.LLMPipeline(
        str(made / "model"), tokenizer, "CPU", scheduler_config=schedule(genai), **properties(job)
    )
    asked = genai.GenerationConfig()
    asked.max_new_tokens = asked.min_new_tokens = job["new_tokens"]
    asked.ignore_eos = True
    asked.do_sample = False
    asked.apply_chat_template = False
    config = json.loads((made / "model" / "config.json").read_text())

    def run() -> dict[str, Any]:
        times = [time.perf_counter()]
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        found = pipeline.generate(inputs, asked, streamer(genai, times))
        tokens = [int(token) for token in found.tokens[0]]
        if len(times) - 1 != job["new_tokens"] or len(tokens) != job["new_tokens"]:
            raise RuntimeError(
                f"expected {job['new_tokens']} tokens one by one, found {len(tokens)} in "
                f"{len(times) - 1} pieces"
            )
        spent = [later - sooner for sooner, later in pairwise(times)]
        return {
            "encode_s": None,
            "prefill_s": spent[0],
            "steps_s": spent[1:],
            # By formula: codes alone, without their scales.
            "kv_bytes": total * row_numbers(config) * ROW_BYTES[job["rows"]],
            "tokens": [tokens],
        }

    names = ("openvino", "openvino-genai", "optimum-intel", "nncf")
    return run, {"weights": job["weights"], "versions": {name: version(name) for name in names}}


def usable(job: Job) -> None:
    """Refuse one thread in a precision in which OpenVINO crashes with it.

    Raises:
        ValueError: this is such a job.
    """
    if job["threads"] == 1 and job["weights"] == "fp16" and job["precision"] is None:
        raise ValueError(
            "expected two threads or more, found 1, with which OpenVINO 2026.4.1 ends by a "
            "division by zero where it computes fp16 weights in bf16; ask for --threads 2"
        )


def properties(job: Job) -> dict[str, Any]:
    """How a pipeline is to be made."""
    asked = {"INFERENCE_NUM_THREADS": job["threads"], "KV_CACHE_PRECISION": job["rows"]}
    if job["precision"] is not None:
        asked["INFERENCE_PRECISION_HINT"] = job["precision"]
    return asked


def schedule(genai: Any) -> Any:
    """A pipeline's own schedule, but without its cache of prefixes.

    By that cache, which is on unless one says otherwise, a prompt seen before costs next to
    nothing. A schedule of one's own reads prompts in pieces of 256 tokens, which that of a
    pipeline does not.
    """
    found = genai.SchedulerConfig()
    found.enable_prefix_caching = False
    found.max_num_batched_tokens = 1 << 20
    return found


def streamer(genai: Any, times: list[float]) -> Any:
    """What a pipeline tells tokens to; adds to `times` when they come."""

    def write(self: Any, token: int | list[int]) -> Any:
        times.append(time.perf_counter())
        return genai.StreamingStatus.RUNNING

    return type("Times", (genai.StreamerBase,), {"write": write, "end": lambda self: None})()


if __name__ == "__main__":
    serve(load)

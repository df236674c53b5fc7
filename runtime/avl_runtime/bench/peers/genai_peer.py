"""The worker that runs a checkpoint's text decoder in onnxruntime-genai.

Its model builder knows text models, so the decoder is built as one (`genai_build`). Visual tokens
of the prompt are replaced by text tokens, so the decoder has as many rows to compute and to cache;
what it answers differs.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avl_runtime.bench.peers.text import build, row_numbers, text_tokens
from avl_runtime.bench.wire import Job, Run, serve

ROW_BYTES = 4  # of a number in its cache, which is fp32 on a CPU


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Build the decoder's model, load it, and prepare a prompt of as many tokens."""
    import numpy as np
    import onnxruntime_genai as genai

    made = Path(job["folder"]) / f"genai-{job['precision']}"
    build("genai_build", job["checkpoint"], made, job["precision"])
    config_file = made / "model" / "genai_config.json"
    config = json.loads(config_file.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = job["threads"]
    config_file.write_text(json.dumps(config))
    numbers = row_numbers(json.loads((made / "config.json").read_text()))
    model = genai.Model(str(made / "model"))
    ids = text_tokens(job)
    prompt = np.array([ids] * job["batch"], np.int32)
    total = len(ids) + job["new_tokens"]
    search = {
        "do_sample": False,
        "batch_size": job["batch"],
        "min_length": total,
        "max_length": total,
        "repetition_penalty": 1.0,  # which its builder takes from the checkpoint
    }

    def run() -> dict[str, Any]:
        params = genai.GeneratorParams(model)
        params.set_search_options(**search)
        last = time.perf_counter()
        generator = genai.Generator(model, params)
        generator.append_tokens(prompt)
        spent = []
        for _ in range(job["new_tokens"]):
            generator.generate_next_token()
            now = time.perf_counter()
            spent.append(now - last)
            last = now
        tokens = [generator.get_sequence(row)[len(ids) :].tolist() for row in range(job["batch"])]
        return {
            "encode_s": None,
            "prefill_s": spent[0],
            "steps_s": spent[1:],
            # By formula, as buffers cannot be asked for.
            "kv_bytes": job["batch"] * total * numbers * ROW_BYTES,
            "tokens": tokens,
        }

    versions = {
        "onnxruntime-genai": version("onnxruntime-genai"),
        "onnxruntime beside it": version("onnxruntime"),  # which need not be avl's
    }
    return run, {"weights": job["precision"], "versions": versions}


if __name__ == "__main__":
    serve(load)

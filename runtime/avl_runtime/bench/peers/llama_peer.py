"""The worker that runs a checkpoint's text decoder in llama.cpp.

By the low-level interface of llama-cpp-python, as the other one wants a vocabulary of words.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avl_runtime.bench.peers.text import build, one_sequence, row_numbers, text_tokens
from avl_runtime.bench.wire import Job, Run, serve

FLASH = {False: 0, True: 1}  # of llama.h; where nothing is said, it chooses itself
ROW_BYTES = 2  # of a number in its cache, which is fp16 unless one says otherwise


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Write the decoder's GGUF, load it, and prepare a prompt of as many tokens.

    Raises:
        RuntimeError: llama.cpp refuses the file or the context.
    """
    one_sequence(job, "llama.cpp")
    import numpy as np
    from llama_cpp import llama_cpp as library

    made = Path(job["folder"]) / f"gguf-{job['weights']}"
    build("gguf_build", job["checkpoint"], made, job["weights"])
    ids = text_tokens(job)
    total = len(ids) + job["new_tokens"]
    library.llama_backend_init()
    file = str(made / "model.gguf")
    model = library.llama_model_load_from_file(file.encode(), library.llama_model_default_params())
    if not model:
        raise RuntimeError(f"expected a model that llama.cpp loads, found {file}")
    asked = library.llama_context_default_params()
    asked.n_ctx, asked.n_batch = total, len(ids)
    asked.n_threads = asked.n_threads_batch = job["threads"]
    asked.flash_attn_type = FLASH[job["flash"]]
    context = library.llama_init_from_model(model, asked)
    if not context:
        raise RuntimeError(f"expected a context of {total} tokens, found that llama.cpp has none")
    words = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    prompt = (library.llama_token * len(ids))(*ids)
    one = (library.llama_token * 1)()
    config = json.loads((made / "config.json").read_text())

    def decode(tokens: Any) -> int:
        status = library.llama_decode(context, library.llama_batch_get_one(tokens, len(tokens)))
        if status:
            raise RuntimeError(f"llama_decode failed with status {status}")
        logits = library.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, (words,)).argmax())

    def run() -> dict[str, Any]:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        last = time.perf_counter()
        spent: list[float] = []
        found: list[int] = []
        for _ in range(job["new_tokens"]):
            one[0] = decode(one if found else prompt)
            found.append(one[0])
            now = time.perf_counter()
            spent.append(now - last)
            last = now
        return {
            "encode_s": None,
            "prefill_s": spent[0],
            "steps_s": spent[1:],
            "kv_bytes": total * row_numbers(config) * ROW_BYTES,
            "tokens": [found],
        }

    versions = {"llama-cpp-python": version("llama-cpp-python")}
    # What it was compiled for: speed depends on it as on the version.
    versions["llama.cpp"] = " ".join(library.llama_print_system_info().decode().split())
    return run, {"weights": job["weights"], "versions": versions}


if __name__ == "__main__":
    serve(load)

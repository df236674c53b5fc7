"""The worker that runs a checkpoint's text decoder in llama.cpp.

By the low-level interface of llama-cpp-python, as the other one wants a vocabulary of words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avl_runtime.bench.peers.text import build, row_numbers, text_tokens
from avl_runtime.bench.wire import Job, Run, serve

FLASH = {False: 0, True: 1}  # of llama.h; where nothing is said, it chooses itself
ROWS = 256  # of which a sequence's share of a context is made
Token = tuple[int, int, int]  # itself, its position, its sequence
ROW_BYTES = 2  # of a number in its cache, which is fp16 unless one says otherwise


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Write the decoder's GGUF, load it, and prepare prompts of as many tokens.

    Of a batch prompts are read one after the other, and steps are of all its sequences, as in the
    parallel slots of llama.cpp's server.

    Raises:
        RuntimeError: llama.cpp refuses the file or the context.
    """
    from llama_cpp import llama_cpp as library

    made = Path(job["folder"]) / f"gguf-{job['weights']}"
    build("gguf_build", job["checkpoint"], made, job["weights"])
    ids, count = text_tokens(job), job["batch"]
    total = len(ids) + job["new_tokens"]
    library.llama_backend_init()
    file = str(made / "model.gguf")
    model = library.llama_model_load_from_file(file.encode(), library.llama_model_default_params())
    if not model:
        raise RuntimeError(f"expected a model that llama.cpp loads, found {file}")
    asked = library.llama_context_default_params()
    # Sequences share a context's rows alike, in whole numbers of ROWS.
    asked.n_ctx = total if count == 1 else count * -(-total // ROWS) * ROWS
    asked.n_batch, asked.n_seq_max = max(len(ids), count), count
    asked.n_threads = asked.n_threads_batch = job["threads"]
    asked.flash_attn_type = FLASH[job["flash"]]
    context = library.llama_init_from_model(model, asked)
    if not context:
        raise RuntimeError(f"expected a context of {total} tokens, found that llama.cpp has none")
    slots = Slots(library, model, context, max(len(ids), count))
    config = json.loads((made / "config.json").read_text())

    def run() -> dict[str, Any]:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        last = time.perf_counter()
        spent: list[float] = []
        found: list[list[int]] = []
        for place in range(count):
            read = [(token, number, place) for number, token in enumerate(ids)]
            found.append(slots.decode(read, read[-1:]))
        for number in range(job["new_tokens"]):
            if number:
                step = [
                    (tokens[-1], len(ids) + number - 1, place) for place, tokens in enumerate(found)
                ]
                for tokens, token in zip(found, slots.decode(step, step), strict=True):
                    tokens.append(token)
            now = time.perf_counter()
            spent.append(now - last)
            last = now
        return {
            "encode_s": None,
            "prefill_s": spent[0],
            "steps_s": spent[1:],
            "kv_bytes": count * total * row_numbers(config) * ROW_BYTES,
            "tokens": found,
        }

    versions = {"llama-cpp-python": version("llama-cpp-python")}
    # What it was compiled for: speed depends on it as on the version.
    versions["llama.cpp"] = " ".join(library.llama_print_system_info().decode().split())
    return run, {"weights": job["weights"], "versions": versions}


class Slots:
    """Runs tokens of several sequences in one call of llama.cpp."""

    def __init__(self, library: Any, model: Any, context: Any, most: int) -> None:
        """
        Args:
            most: tokens of a call.
        """
        self._library, self._context = library, context
        self._words = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._batch = library.llama_batch_init(most, 0, 1)

    def decode(self, tokens: Sequence[Token], answered: Sequence[Token]) -> list[int]:
        """Run tokens, of which some are answered by the likeliest next one.

        Raises:
            RuntimeError: llama.cpp cannot run them.
        """
        batch, wanted = self._batch, set(answered)
        batch.n_tokens = len(tokens)
        for index, (token, position, sequence) in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = (token, position, sequence) in wanted
        status = self._library.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode failed with status {status}")
        return [self.likeliest(index) for index, one in enumerate(tokens) if one in wanted]

    def likeliest(self, index: int) -> int:
        """The likeliest token behind one of the last call's; -1 is its last one."""
        import numpy as np

        logits = self._library.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, (self._words,)).argmax())


if __name__ == "__main__":
    serve(load)

"""The worker that asks llama.cpp about pictures, by its libmtmd: what llama-mtmd-cli runs."""

from __future__ import annotations

import ctypes
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avl_runtime.bench.peers.llama_peer import FLASH, Slots
from avl_runtime.bench.peers.text import build
from avl_runtime.bench.wire import Job, Run, serve

ROOM = 64  # rows of a context beside a prompt's and an answer's
BATCH = 512  # tokens of a prompt that are run at once: llama.cpp's own default


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Write both GGUF files, load them, and open the pictures of every round.

    Raises:
        RuntimeError: llama.cpp refuses a file or the context.
    """
    from llama_cpp import llama_cpp as library
    from llama_cpp import mtmd_cpp as pictures

    made = Path(job["folder"]) / f"gguf-vlm-{job['weights']}"
    build("gguf_vlm_build", job["checkpoint"], made, job["weights"])
    longest = max(len(one["input_ids"]) for requests in job["rounds"] for one in requests)
    library.llama_backend_init()
    file = str(made / "model.gguf").encode()
    model = library.llama_model_load_from_file(file, library.llama_model_default_params())
    asked = library.llama_context_default_params()
    asked.n_ctx = longest + job["new_tokens"] + ROOM
    asked.n_batch = BATCH
    asked.n_threads = asked.n_threads_batch = job["threads"]
    asked.flash_attn_type = FLASH[job["flash"]]
    context = library.llama_init_from_model(model, asked)
    seen = pictures.mtmd_context_params_default()
    seen.use_gpu, seen.print_timings, seen.n_threads = False, False, job["threads"]
    seen.flash_attn_type = asked.flash_attn_type
    tower = pictures.mtmd_init_from_file(str(made / "vision.gguf").encode(), model, seen)
    if not (model and context and tower):
        raise RuntimeError(f"expected a model that llama.cpp loads, found {made}")
    slots = Slots(library, model, context, longest)
    visual = json.loads((Path(job["checkpoint"]) / "config.json").read_text())["image_token_id"]
    rounds = iter(
        [
            [(Image.open(one["picture"]).convert("RGB"), one["input_ids"]) for one in requests]
            for requests in job["rounds"]
        ]
    )

    def ask(picture: Image.Image, input_ids: list[int]) -> dict[str, Any]:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        begun = time.perf_counter()
        chunks = divided(pictures, tower, picture)
        before, after, count = around(pictures, chunks, input_ids, visual)
        if before:
            slots.decode([(token, at, 0) for at, token in enumerate(before)], [])
        at = ctypes.c_int32(len(before))
        status = pictures.mtmd_helper_eval_chunks(
            tower, context, chunks, at.value, 0, BATCH, not after, ctypes.byref(at)
        )
        if status:
            raise RuntimeError(f"mtmd_helper_eval_chunks failed with status {status}")
        tokens = [(token, at.value + number, 0) for number, token in enumerate(after)]
        last = slots.decode(tokens, tokens[-1:])[0] if tokens else slots.likeliest(-1)
        times, place = [time.perf_counter()], at.value + len(after)
        for number in range(job["new_tokens"] - 1):
            step = (last, place + number, 0)
            (last,) = slots.decode([step], [step])
            times.append(time.perf_counter())
        pictures.mtmd_input_chunks_free(chunks)
        return {
            "first_s": times[0] - begun,
            "total_s": times[-1] - begun,
            "prompt_tokens": count,
            "text": "",
        }

    def run() -> dict[str, Any]:
        return {"requests": [ask(picture, ids) for picture, ids in next(rounds)]}

    versions = {"llama-cpp-python": version("llama-cpp-python")}
    versions["llama.cpp"] = " ".join(library.llama_print_system_info().decode().split())
    return run, {"weights": job["weights"], "versions": versions}


def divided(pictures: Any, tower: Any, picture: Image.Image) -> Any:
    """A picture as llama.cpp divides it: its tiles, and the tokens that it puts around them.

    Raises:
        RuntimeError: llama.cpp cannot read it.
    """
    pixels = np.ascontiguousarray(picture, np.uint8)
    data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = pictures.mtmd_bitmap_init(picture.width, picture.height, data)
    marker = pictures.mtmd_default_marker()
    text = pictures.mtmd_input_text(marker, len(marker), False, True)
    chunks = pictures.mtmd_input_chunks_init()
    bitmaps = (pictures.mtmd_bitmap_p_ctypes * 1)(bitmap)
    status = pictures.mtmd_tokenize(tower, chunks, ctypes.byref(text), bitmaps, 1)
    pictures.mtmd_bitmap_free(bitmap)
    if status:
        raise RuntimeError(f"mtmd_tokenize failed with status {status}")
    return chunks


def around(
    pictures: Any, chunks: Any, input_ids: list[int], visual: int
) -> tuple[list[int], list[int], int]:
    """Text before and after a picture, and how many tokens the prompt has with it.

    avl's prompt without as many tokens as llama.cpp puts around a picture itself: text behind it
    is cut first, then that before it, so that prompts are as long where pictures are.
    """
    count = sum(
        pictures.mtmd_input_chunk_get_n_tokens(pictures.mtmd_input_chunks_get(chunks, number))
        for number in range(pictures.mtmd_input_chunks_size(chunks))
    )
    places = [number for number, token in enumerate(input_ids) if token == visual]
    before, after = input_ids[: places[0]], input_ids[places[-1] + 1 :]
    room = max(0, len(input_ids) - count)
    before = before[:room]
    after = after[len(after) - min(len(after), room - len(before)) :]
    return before, after, len(before) + count + len(after)


if __name__ == "__main__":
    serve(load)

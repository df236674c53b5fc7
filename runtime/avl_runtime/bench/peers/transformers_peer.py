"""The worker that runs a checkpoint in transformers' own generate."""

from __future__ import annotations

import time
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, GenerationConfig

from avl_runtime.bench.wire import Job, Run, serve


class Ticks:
    """A streamer that notes when tokens come; the first is the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        """Called with the prompt, then with each step's tokens."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called at the end."""


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Load the checkpoint in fp32 and prepare the same tokens and pictures."""
    torch.set_num_threads(job["threads"])
    model = AutoModelForImageTextToText.from_pretrained(
        job["checkpoint"],
        dtype=torch.float32,
        attn_implementation=job["attention"],
        local_files_only=True,
        use_safetensors=True,
    ).eval()
    # Neither penalties nor an end, whatever the checkpoint's settings.
    model.generation_config = GenerationConfig(pad_token_id=0)
    inputs = _inputs(job, model)
    entered: list[float] = []
    model.get_submodule("model.language_model").register_forward_pre_hook(
        lambda *_: entered.append(time.perf_counter())
    )

    def run() -> dict[str, Any]:
        entered.clear()
        ticks = Ticks()
        begun = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                max_new_tokens=job["new_tokens"],
                do_sample=False,
                streamer=ticks,
                return_dict_in_generate=True,
            )
        times = ticks.times[1:]
        start = entered[0] if job["images"] else begun
        cache = out.past_key_values.layers
        return {
            "encode_s": start - begun if job["images"] else None,
            "prefill_s": times[0] - start,
            "steps_s": [later - sooner for sooner, later in pairwise(times)],
            "kv_bytes": sum(array.nbytes for layer in cache for array in _kept(layer)),
            "tokens": out.sequences[:, len(job["input_ids"]) :].tolist(),
        }

    versions = {name: version(name) for name in ("transformers", "torch")}
    return run, {"weights": "fp32", "versions": versions}


def _kept(layer: Any) -> list[Any]:
    """What a layer of a cache holds: rows, or states."""
    if hasattr(layer, "keys"):
        return [layer.keys, layer.values]
    states = [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return [state for state in states if state is not None]


def _inputs(job: Job, model: Any) -> dict[str, Any]:
    batch: int = job["batch"]
    ids = torch.tensor([job["input_ids"]] * batch)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if job["images"]:
        pictures = [Image.open(path).convert("RGB") for path in job["images"]]
        processor = AutoImageProcessor.from_pretrained(job["checkpoint"], local_files_only=True)
        inputs |= dict(processor(images=pictures * batch, return_tensors="pt"))
        inputs.pop("num_patches", None)
    if model.config.model_type in ("qwen2_5_vl", "qwen3_vl", "qwen3_5"):
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    return inputs


if __name__ == "__main__":
    serve(load)

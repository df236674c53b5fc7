"""The worker that asks transformers about pictures: its image processor, model and generate."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoModelForImageTextToText, GenerationConfig

from avl_runtime.bench.peers.transformers_peer import Ticks
from avl_runtime.bench.wire import Job, Run, serve

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Models that are told which tokens are a picture's.
TYPED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
TOLD = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes")


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Load the checkpoint in the job's dtype, and open the pictures of every round.

    A request has its prompt's token ids, as avl reads it: transformers' processors, which put them
    together, want files that a checkpoint of random weights does not have.
    """
    torch.set_num_threads(job["threads"])
    model = AutoModelForImageTextToText.from_pretrained(
        job["checkpoint"],
        dtype=DTYPES[job["dtype"]],
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
    ).eval()
    # Neither penalties nor an end, whatever the checkpoint's settings.
    model.generation_config = GenerationConfig(pad_token_id=0)
    processor = AutoImageProcessor.from_pretrained(job["checkpoint"], local_files_only=True)
    tokenizer = Tokenizer.from_file(str(Path(job["checkpoint"]) / "tokenizer.json"))
    rounds = iter(
        [
            [(Image.open(one["picture"]).convert("RGB"), one["input_ids"]) for one in requests]
            for requests in job["rounds"]
        ]
    )

    def ask(picture: Image.Image, input_ids: list[int]) -> dict[str, Any]:
        begun = time.perf_counter()
        ids = torch.tensor([input_ids])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        seen = processor(images=[[picture]], return_tensors="pt")
        inputs |= {name: seen[name] for name in TOLD if name in seen}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        if model.config.model_type in TYPED:
            inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
        ticks = Ticks()
        with torch.inference_mode():
            out = model.generate(
                **inputs, max_new_tokens=job["new_tokens"], do_sample=False, streamer=ticks
            )
        times = ticks.times[1:]
        if len(times) != job["new_tokens"]:
            raise RuntimeError(f"expected {job['new_tokens']} tokens, found {len(times)}")
        return {
            "first_s": times[0] - begun,
            "total_s": times[-1] - begun,
            "prompt_tokens": len(input_ids),
            "text": tokenizer.decode(out[0, len(input_ids) :].tolist()),
        }

    def run() -> dict[str, Any]:
        return {"requests": [ask(picture, ids) for picture, ids in next(rounds)]}

    versions = {name: version(name) for name in ("transformers", "torch")}
    return run, {"weights": job["dtype"], "versions": versions}


if __name__ == "__main__":
    serve(load)

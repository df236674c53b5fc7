"""The worker that asks OpenVINO GenAI's VLMPipeline about pictures, on the CPU."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avl_runtime.bench.peers.openvino_peer import properties, schedule, streamer, usable
from avl_runtime.bench.peers.text import build
from avl_runtime.bench.wire import Job, Run, serve


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Convert the checkpoint, load it, and open the pictures of every round.

    Raises:
        ValueError: one thread in a precision in which OpenVINO crashes with it.
    """
    usable(job)
    import numpy as np
    import openvino
    import openvino_genai as genai
    from PIL import Image

    made = Path(job["folder"]) / f"openvino-vlm-{job['weights']}"
    build("openvino_vlm_build", job["checkpoint"], made, job["weights"])
    pipeline = genai.VLMPipeline(
        str(made / "model"), "CPU", scheduler_config=schedule(genai), **properties(job)
    )
    asked = genai.GenerationConfig()
    asked.max_new_tokens = job["new_tokens"]
    asked.ignore_eos = True  # a least number of tokens would forbid it instead
    asked.do_sample = False
    asked.apply_chat_template = has_template(made / "model")
    rounds = iter(
        [
            [(Image.open(one["picture"]).convert("RGB"), one["prompt"]) for one in requests]
            for requests in job["rounds"]
        ]
    )

    def ask(picture: Any, prompt: str) -> dict[str, Any]:
        begun = time.perf_counter()
        times: list[float] = []
        images = [openvino.Tensor(np.asarray(picture)[None])]
        found = pipeline.generate(
            prompt, images=images, generation_config=asked, streamer=streamer(genai, times)
        )
        if len(times) != job["new_tokens"]:
            raise RuntimeError(
                f"expected {job['new_tokens']} tokens one by one, found {len(times)} pieces"
            )
        return {
            "first_s": times[0] - begun,
            "total_s": times[-1] - begun,
            "prompt_tokens": found.perf_metrics.get_num_input_tokens(),
            "text": found.texts[0],
        }

    def run() -> dict[str, Any]:
        return {"requests": [ask(picture, prompt) for picture, prompt in next(rounds)]}

    names = ("openvino", "openvino-genai", "optimum-intel", "nncf")
    return run, {"weights": job["weights"], "versions": {name: version(name) for name in names}}


def has_template(model: Path) -> bool:
    """Whether a converted model holds a chat template, without which it must not be asked for."""
    if (model / "chat_template.jinja").is_file() or (model / "chat_template.json").is_file():
        return True
    return "chat_template" in json.loads((model / "tokenizer_config.json").read_text())


if __name__ == "__main__":
    serve(load)

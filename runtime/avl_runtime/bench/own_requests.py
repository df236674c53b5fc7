"""The worker that asks a package about pictures, under one policy."""

from __future__ import annotations

import time
from typing import Any

from PIL import Image

from avl_runtime.bench.candidates import weights_of
from avl_runtime.bench.own import endless, versions
from avl_runtime.bench.wire import Job, Run, serve
from avl_runtime.generate.options import Options
from avl_runtime.model import LVLM
from avl_runtime.prompts.features import FeatureCache
from avl_runtime.requests import Scheduler


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Load the package, and open the pictures of every round.

    Raises:
        AvlError: the package or the policy cannot be used.
    """
    model = LVLM.load(
        job["package"],
        backend="ort-cpu",
        policy=job["policy"],
        threads=job["threads"],
        kv=job["kv"],
        compute=job["compute"],
    )
    loaded = model.loaded
    loaded.package = endless(loaded.package)
    options = Options.neutral(job["new_tokens"])
    rounds = iter(
        [
            [(Image.open(one["picture"]).convert("RGB"), one["prompt"]) for one in requests]
            for requests in job["rounds"]
        ]
    )

    def ask(picture: Image.Image, prompt: str) -> dict[str, Any]:
        begun = time.perf_counter()
        scheduler = Scheduler(model)
        request = scheduler.add(prompt, images=[picture], options=options)
        times = []
        while scheduler.requests:
            if scheduler.step():
                times.append(time.perf_counter())
        if len(times) != job["new_tokens"]:
            raise RuntimeError(f"expected {job['new_tokens']} tokens, found {len(times)} steps")
        result = request.result
        return {
            "first_s": times[0] - begun,
            "total_s": times[-1] - begun,
            "prompt_tokens": result.stats.prompt_tokens,
            "text": result.text,
        }

    def run() -> dict[str, Any]:
        loaded.features = FeatureCache(loaded.backend, loaded.package.manifest.encoded)
        return {"requests": [ask(picture, prompt) for picture, prompt in next(rounds)]}

    return run, {"weights": weights_of(loaded.package), "versions": versions()}


if __name__ == "__main__":
    serve(load)

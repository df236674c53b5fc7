"""The worker that runs a package under one policy."""

from __future__ import annotations

import dataclasses
import time
from importlib.metadata import version
from typing import Any

import numpy as np

from avl_plugins import cpu
from avl_runtime.bench.candidates import weights_of
from avl_runtime.bench.wire import Job, Run, serve
from avl_runtime.generate.options import Options
from avl_runtime.generate.prefill import finished
from avl_runtime.model import LVLM
from avl_runtime.package.package import Package
from avl_runtime.prompts.features import FeatureCache
from avl_runtime.prompts.processor import Prompt
from avl_runtime.requests import Request, Scheduler


def load(job: Job) -> tuple[Run, dict[str, Any]]:
    """Load the package and prepare the prompt.

    Raises:
        AvlError: the package, the backend or the policy cannot be used.
    """
    model = LVLM.load(
        job["package"],
        backend=job["backend"],
        policy=job["policy"],
        threads=job["threads"],
        kv=job["kv"],
        compute=job["compute"],
    )
    loaded = model.loaded
    loaded.package = endless(loaded.package)
    manifest = loaded.package.manifest
    processor, visual = loaded.processor, manifest.visual_tokens
    media = processor.encode("x", job["images"]).media
    text = [token for token in job["input_ids"] if token not in visual]
    prompt = Prompt.of(
        np.array(job["input_ids"], np.int64),
        visual,
        media,
        manifest.dims.position_axes,
        manifest.reach,
        processor.decode(text),
    )
    options = Options.neutral(job["new_tokens"])
    batch: int = job["batch"]

    def run() -> dict[str, Any]:
        loaded.features = FeatureCache(loaded.backend, loaded.package.manifest.encoded)
        begun = time.perf_counter()
        finished(loaded.features.encoding(prompt.media))
        encoded = last = time.perf_counter()
        scheduler = Scheduler(model)
        requests = [
            scheduler.submit(Request(loaded, prompt, model.policy, options)) for _ in range(batch)
        ]
        spent = []
        while scheduler.requests:
            if scheduler.step():
                now = time.perf_counter()
                spent.append(now - last)
                last = now
        results = [request.result for request in requests]
        return {
            "encode_s": encoded - begun if job["images"] else None,
            "prefill_s": spent[0],
            "steps_s": spent[1:],
            "kv_bytes": sum(result.stats.kv_bytes for result in results),
            "tokens": [list(result.token_ids) for result in results],
        }

    return run, {"weights": weights_of(loaded.package), "versions": versions()}


def versions() -> dict[str, str]:
    """What runs a package."""
    kernels = "none" if cpu.library() is None else "compiled"
    return {"onnxruntime": version("onnxruntime"), "CPU kernels": kernels}


def endless(package: Package) -> Package:
    """`package` without tokens that end a reply, so that every run has as many steps."""
    manifest = package.manifest
    tokens = dataclasses.replace(manifest.tokens, eos=())
    return dataclasses.replace(package, manifest=dataclasses.replace(manifest, tokens=tokens))


if __name__ == "__main__":
    serve(load)

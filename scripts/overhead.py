#!/usr/bin/env python
"""Time a decode step spends outside the sessions: caches, policies, sampling, text.

    .venv/bin/python scripts/overhead.py --json benchmarks/overhead.json

Exports an 8-layer random-weight LLaVA, then decodes with every session call timed. Reports mean
and quartiles in milliseconds a token; policies are interleaved in one run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.generate.options import Options
from avl_runtime.requests import Request, Scheduler

LAYERS = 8
POLICIES = ("dense", "avl", "avl:text=0.6", "fastv", "avl+fastv")


class Timed:
    """A session that adds up the time spent inside it."""

    spent = 0.0

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        begun = time.perf_counter()
        self._session.run_with_iobinding(binding, options)
        Timed.spent += time.perf_counter() - begun


def make_package(checkpoint: Path, package: Path) -> None:
    """Export an 8-layer model of avl-tiny's shape, with avl-tiny's own processor.

    Runs in a process of its own: torch's heap would make every garbage collection a pause.
    """
    sys.path.insert(0, str(Path(__file__).parent / "tiny"))
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from avl_export.cli import main as export
    from checkpoint import make_processor
    from tokens import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=168,
            patch_size=14,
            projection_dim=64,
        ),
        text_config=LlamaConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=2048,
        ),
        image_token_index=3,
        vision_feature_layer=-1,
        image_seq_length=144,
    )
    LlavaForConditionalGeneration(config).save_pretrained(checkpoint)
    make_processor(tokenizer).save_pretrained(checkpoint)
    export(["--model", str(checkpoint), "--out", str(package), "--no-check"])


def step_overheads(model: LVLM, policy: str, tokens: int) -> list[float]:
    """Milliseconds outside the sessions for each decode step of one generation."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (168, 168, 3), np.uint8))
    prompt = model.processor.encode("Describe the image.", [image])
    loaded, options = model.loaded, Options.neutral(tokens)
    request = Request(loaded, prompt, parse(policy), options)
    scheduler = Scheduler(model)
    scheduler.submit(request)
    found: list[float] = []
    while not scheduler.step():  # prefill and the first token
        pass
    before, begun = Timed.spent, time.perf_counter()
    while not request.done:
        ran = scheduler.step()
        now = time.perf_counter()
        if ran:  # the first binds buffers alone
            found.append((now - begun - (Timed.spent - before)) * 1e3)
        before, begun = Timed.spent, now
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Mean, as refreshes cost more than other steps, and quartiles."""
    first, median, third = statistics.quantiles(values, n=4)
    numbers = {
        "mean": statistics.fmean(values),
        "quartile_1": first,
        "median": median,
        "quartile_3": third,
    }
    return {name: round(value, 4) for name, value in numbers.items()}


def sentence(report: dict[str, Any]) -> str:
    """The figures as the documents quote them."""
    times = report["milliseconds_per_token_outside_sessions"]
    told = ", ".join(
        f"`{policy}` {values['median']:.2f} ms (mean {values['mean']:.2f})"
        for policy, values in times.items()
    )
    return (
        f"Median time a token outside the ONNX Runtime sessions at {report['layers']} layers "
        f"(`scripts/overhead.py`, [JSON](benchmarks/overhead.json)): {told}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, package = Path(folder, "checkpoint"), Path(folder, "package")
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(make_package, checkpoint, package).result()
        model = LVLM.load(package)
        backend: Any = model.loaded.backend
        backend._sessions = [Timed(session) for session in backend._sessions]
        times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for _ in range(args.repeats):
            for policy in POLICIES:
                times[policy] += step_overheads(model, policy, args.tokens)
    report = {
        "layers": LAYERS,
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": time.strftime("%Y-%m-%d"),
        "milliseconds_per_token_outside_sessions": {
            policy: summary(values) for policy, values in times.items()
        },
    }
    text = json.dumps(report, indent=2)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

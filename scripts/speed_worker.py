"""The worker of side_by_side.py: runs a package step by step, as it is told.

    PYTHON speed_worker.py

One JSON object a line on stdin, one answer a line; a failure is answered with {"error": sentence}.

    {"do": "load", "job": {...}}                ->  prompt_tokens, visual_tokens
    {"do": "whole", "policy": P}                ->  tokens
    {"do": "begin", "policy": P}                ->  seconds to the first piece of text
    {"do": "steps", "count": N}                 ->  seconds and pieces, of N at most

Every answer has cpu_s, what was used for it, and peak_rss_bytes, since the process began.

A job's fields: package, threads, pictures, side (pixels), text_tokens (the template's included),
new_tokens; and kv, unless cached rows are kept in the checkout's own way. Runs under the Python of
any checkout, so it names nothing of avl but `avl_runtime.LVLM`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avl_runtime import LVLM
from greedy_requests import GREEDY

STATUS = Path("/proc/self/status")


class Runner:
    """A loaded package and the prompt that it is asked."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        kept = {"kv": job["kv"]} if "kv" in job else {}
        self._model = LVLM.load(job["package"], backend="ort-cpu", threads=job["threads"], **kept)
        self._images = [noise(job["side"], seed) for seed in range(job["pictures"])]
        self._pieces: Iterator[str] = iter(())
        self._prompt, stats = fill(self._model, self._images, job["text_tokens"])
        self.facts = {"prompt_tokens": stats.prompt_tokens, "visual_tokens": stats.visual_tokens}
        self._new_tokens = job["new_tokens"]

    def whole(self, policy: str) -> dict[str, Any]:
        """A whole reply."""
        return {"tokens": list(map(int, self._whole(policy).token_ids))}

    def begin(self, policy: str) -> dict[str, Any]:
        """Read the prompt anew; the first token is its last part."""
        begun = time.perf_counter()
        self._pieces = iter(
            self._model.stream(
                self._prompt,
                images=self._images,
                policy=policy,
                max_new_tokens=self._new_tokens,
                **GREEDY,
            )
        )
        found = next(self._pieces, None)
        if found is None:
            raise ValueError("expected a reply with text, found none")
        return {"seconds": time.perf_counter() - begun}

    def steps(self, count: int) -> dict[str, Any]:
        """Go on."""
        begun = last = time.perf_counter()
        pieces = 0
        for _ in islice(self._pieces, count):
            pieces += 1
            last = time.perf_counter()  # what follows the last piece is no step
        return {"seconds": last - begun, "pieces": pieces}

    def _whole(self, policy: str) -> Any:
        return self._model.generate(
            self._prompt,
            images=self._images,
            policy=policy,
            max_new_tokens=self._new_tokens,
            **GREEDY,
        )


def words(count: int, seed: int = 0) -> str:
    """So many words of make_random.py's tokenizers; another seed gives others."""
    return " ".join(f"w{20 + (37 * seed + number) % 200}" for number in range(count))


def fill(model: LVLM, images: Sequence[Image.Image], text_tokens: int) -> tuple[str, Any]:
    """A prompt of as many text tokens as asked for, its template's included.

    Returns:
        The prompt, and a request's stats with it.

    Raises:
        ValueError: there is none.
    """

    def stats(prompt: str) -> Any:
        return model.generate(
            prompt, images=images, policy="dense", max_new_tokens=1, **GREEDY
        ).stats

    found = stats(words(1))
    missing = text_tokens - (found.prompt_tokens - found.visual_tokens)
    prompt = words(1 + max(0, missing))
    if missing > 0:
        found = stats(prompt)
    text = found.prompt_tokens - found.visual_tokens
    if text != text_tokens:
        raise ValueError(
            f"expected {text_tokens} text tokens, found {text}; the template alone may have more, "
            "or the tokenizer is none of make_random.py's"
        )
    return prompt, found


def noise(side: int, seed: int) -> Image.Image:
    """A square picture of noise."""
    numbers = np.random.default_rng(seed)
    return Image.fromarray(numbers.integers(0, 256, (side, side, 3), np.uint8))


def peak_rss_bytes() -> int:
    """Peak memory of this process, which the process that started it does not count towards."""
    (line,) = (one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Answer until stdin ends."""
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    runner: Runner | None = None
    for line in sys.stdin:
        request = json.loads(line)
        cpu = time.process_time()
        try:
            if request["do"] == "load":
                runner = Runner(request["job"])
                answer = dict(runner.facts)
            elif runner is None:
                raise ValueError("expected a job first")
            else:
                told = {name: value for name, value in request.items() if name != "do"}
                answer = getattr(runner, request["do"])(**told)
            answer["cpu_s"] = time.process_time() - cpu
            answer["peak_rss_bytes"] = peak_rss_bytes()
        # Any library's any error is told to who asked.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: " + " ".join(str(error).split())[:400]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""What peers of text decoders share: the prompt, the conversion, and the size of their cache."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avl_runtime.bench.boot import foreign_command
from avl_runtime.bench.wire import Job


def text_tokens(job: Job) -> list[int]:
    """The prompt, its visual tokens replaced by ordinary ones."""
    visual = set(job["visual_tokens"])
    ordinary = [token for token in job["input_ids"] if token not in visual]
    draw = random.Random(0)
    return [draw.choice(ordinary) if t in visual else t for t in job["input_ids"]]


def build(module: str, checkpoint: str, made: Path, kind: str) -> None:
    """Convert a checkpoint into the folder `made`, unless that is there.

    It is where the worker was started before, or another one takes the same weights. The module
    runs in a process whose memory is not counted as the worker's.

    Raises:
        RuntimeError: with the last line that it said.
    """
    if made.exists():
        return
    module = f"avl_runtime.bench.peers.{module}"
    command = foreign_command(sys.executable, module, checkpoint, str(made), kind)
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(said[-1])


def one_sequence(job: Job, library: str) -> None:
    """Refuse batches, for a library whose steps cannot be timed in one."""
    if job["batch"] != 1:
        raise ValueError(
            f"expected one sequence, found a batch of {job['batch']}, in which {library}'s steps "
            "are not timed here; leave it out of --against, or leave out --batch"
        )


def row_numbers(config: Mapping[str, Any]) -> int:
    """How many numbers all layers together cache of a token, from a decoder's config.json."""
    heads: int = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * size)

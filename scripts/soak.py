#!/usr/bin/env python
"""Thousands of mixed requests in one process: no memory lost, and the same answer every time.

    .venv/bin/python scripts/soak.py build/avl-tiny.avl --json benchmarks/soak.json
    .venv/bin/python scripts/soak.py --families qwen3_5,lfm2_vl,gemma3,gemma4 --requests 300

With --families it makes small models of random weights, whose layers keep states or windows, and
asks all of them in turn.

Draws kinds of requests (pictures, policies, lengths, sampling, batches, two-turn conversations,
some cancelled half way) and asks them over and over in random order. Every answer must equal the
first one of its kind, cancelled ones its beginning. Memory is read after each request: from the
warm-up on it must not grow by more than a tolerance. Exits with 1 where one of this fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from avl_runtime import LVLM
from avl_runtime.bench.surroundings import machine
from avl_runtime.machine.memory import rss_bytes
from avl_runtime.tasks import TASKS, samples
from avl_runtime.vision.load.images import ImageLike

POLICIES = (
    "dense",
    "fastv",
    "avl",
    "avl+fastv",
    "avl:keep=0.3,core=0.1,refresh=2,text=0.6,text_min=8",
    "random:of=avl",
)
LAYER = 2  # before which FastV drops by default
LENGTHS = (1, 5, 17, 48)
WAYS = ("generate", "generate", "stream", "cancel", "batch", "chat")
# Where pictures go in prompts of the families that are made.
IMAGES = {
    "qwen3_5": "<|vision_start|><|image_pad|><|vision_end|>",
    "lfm2_vl": "<image>",
    "gemma3": "<start_of_image>",
    "gemma4": "<|image|>",
}
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for item in message['content'] %}{% if item['type'] == 'image' %}IMAGE"
    "{% elif item['type'] == 'video' %}VIDEO{% else %}{{ item['text'] }}{% endif %}{% endfor %}"
    "{% endif %}: {% endfor %}"
)
TOLERANCE = 8 << 20  # bytes; page caches and arenas breathe by a few
PARTS = 10  # of the series that are compared


@dataclass(frozen=True, slots=True)
class Kind:
    """A request that can be asked again and again."""

    way: str
    prompt: str
    images: tuple[ImageLike, ...]
    policy: str
    options: dict[str, Any]
    stop_after: int  # pieces of text, where it is cancelled
    model: int = 0  # which of those that are asked


def draw_kinds(count: int, seed: int, models: int = 1) -> list[Kind]:
    """Different requests of so many models, the same ones for the same seed."""
    draw = random.Random(seed)
    shown = [sample for task in TASKS for sample in samples(task, "held-out", 8)]
    kinds = []
    for number in range(count):
        asked = draw.sample(shown, draw.choice((1, 1, 1, 2, 3)))
        images = () if draw.random() < 0.1 else tuple(sample.image for sample in asked)
        sampled = {"temperature": 0.8, "top_k": 20, "seed": number} if draw.random() < 0.3 else {}
        kinds.append(
            Kind(
                draw.choice(WAYS),
                asked[0].prompt,
                images,
                POLICIES[number % len(POLICIES)],
                {"max_new_tokens": draw.choice(LENGTHS), **sampled},
                draw.randint(1, 4),
                number // len(POLICIES) % models,
            )
        )
    return kinds


def policy_of(model: LVLM, policy: str) -> str:
    """A policy without FastV, or with it, where the model's decoder is cut."""
    cuts = model.package.manifest.splits()
    if "fastv" not in policy or LAYER in cuts:
        return policy
    if not cuts:
        return policy.replace("+fastv", "").replace("fastv", "dense")
    return policy.replace("fastv", f"fastv:layer={cuts[0]}")


def ask(model: LVLM, kind: Kind) -> str:
    """All that the model answers, as one text."""
    policy = policy_of(model, kind.policy)
    options = {"policy": policy, **kind.options}
    if kind.way == "stream":
        return "".join(model.stream(kind.prompt, kind.images, **options))
    if kind.way == "cancel":
        stream = model.stream(kind.prompt, kind.images, **options)
        text = "".join(islice(stream, kind.stop_after))
        stream.close()
        return text
    if kind.way == "batch":
        found = model.generate_batch([kind.prompt, "Read."], [kind.images, ()], **options)
        return "\n".join(str(result.token_ids) for result in found)
    if kind.way == "chat":
        chat = model.chat(policy=policy)
        first = chat.send(kind.prompt, list(kind.images), **kind.options)
        second = chat.send("Read.", list(kind.images[:1]), **kind.options)
        return f"{first.token_ids}\n{second.token_ids}"
    return str(model.generate(kind.prompt, kind.images, **options).token_ids)


def soak(
    models: Sequence[LVLM], kinds: list[Kind], requests: int, minutes: float, seed: int
) -> dict[str, Any]:
    """Ask; returns the report."""
    draw = random.Random(seed)
    answers: dict[int, str] = {}
    different: list[str] = []
    memory: list[int] = []
    asked = dict.fromkeys(WAYS, 0)
    begun = time.monotonic()
    while len(memory) < requests and time.monotonic() - begun < 60 * minutes:
        number = draw.randrange(len(kinds))
        kind = kinds[number]
        answer = ask(models[kind.model], kind)
        asked[kind.way] += 1
        if answers.setdefault(number, answer) != answer:
            told = f"{kind.way}, {kind.policy}, model {kind.model}"
            different.append(f"{told}, request {len(memory)}")
        memory.append(rss_bytes() or 0)
    seconds = time.monotonic() - begun
    _compare_cancelled(models, kinds, answers, different)
    return {
        "requests": len(memory),
        "by_way": asked,
        "kinds": len(kinds),
        "repeats": len(memory) - len(answers),
        "different": different,
        "seconds": round(seconds, 1),
        **memory_growth(memory),
    }


def memory_growth(memory: list[int]) -> dict[str, Any]:
    """How memory went, in tenths of the run; the first is the warm-up."""
    size = len(memory) // PARTS
    if not size:
        return {"rss_bytes_by_tenth": [], "rss_growth_bytes": 0}
    parts = [statistics.median(memory[i : i + size]) for i in range(0, size * PARTS, size)]
    return {
        "rss_bytes_by_tenth": [int(part) for part in parts],
        "rss_growth_bytes": int(parts[-1] - parts[1]),
    }


def _compare_cancelled(
    models: Sequence[LVLM], kinds: list[Kind], answers: dict[int, str], different: list[str]
) -> None:
    """What was said before a cancellation must begin what is said without one."""
    for number, answer in answers.items():
        kind = kinds[number]
        if kind.way == "cancel":
            model = models[kind.model]
            policy = policy_of(model, kind.policy)
            stream = model.stream(kind.prompt, kind.images, policy=policy, **kind.options)
            if not "".join(stream).startswith(answer):
                different.append(f"cancelled, {kind.policy}")


def made(family: str, folder: Path) -> Path:
    """A package of a small model of a family, with random weights; its tokens are bytes."""
    from avl_export.cli import main as avl_export
    from export_size import special_tokens
    from make_random import write
    from random_config import Shape, files_of

    shape = Shape(family, 256, 704, 8, 4, 2, 1024, 2048, None, 64, 1)
    write(folder / family, shape)
    write_bytes(folder / family / "tokenizer.json", special_tokens(files_of(shape)))
    image = IMAGES[family]
    template = TEMPLATE.replace("IMAGE", image)
    template = template.replace("VIDEO", image.replace("image", "video"))
    (folder / family / "chat_template.jinja").write_text(template, encoding="utf-8")
    out = folder / f"{family}.avl"
    if avl_export(["--model", str(folder / family), "--out", str(out), "--force"]):
        raise SystemExit(f"soak: {family} could not be exported")
    return out


def write_bytes(path: Path, special: Mapping[int, str]) -> None:
    """A tokenizer whose ordinary tokens are bytes, as BPE, which all of the families have."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    free = (number for number in range(1024) if number not in special)
    words = {text: number for number, text in special.items()}
    words |= dict(zip(sorted(ByteLevel.alphabet()), free, strict=False))
    tokenizer = Tokenizer(BPE(words, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = Decoder()
    tokenizer.add_special_tokens([special[number] for number in sorted(special)])
    tokenizer.save(str(path))


def main(arguments: list[str] | None = None) -> int:
    """Run; returns 1 where memory grew or answers differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, nargs="*")
    parser.add_argument("--families", help=f"some of {', '.join(IMAGES)}, made anew")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=60, help="stop after so long")
    parser.add_argument("--kinds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    families = parsed.families.split(",") if parsed.families else []
    if unknown := set(families) - set(IMAGES):
        parser.error(f"--families: expected some of {', '.join(IMAGES)}, found {unknown}")
    if not parsed.package and not families:
        parser.error("expected a package, or --families")
    with tempfile.TemporaryDirectory() as place:
        packages = [*parsed.package, *(made(one, Path(place)) for one in families)]
        models = [LVLM.load(one, threads=parsed.threads) for one in packages]
        gc.collect()
        kinds = draw_kinds(parsed.kinds, parsed.seed, len(models))
        found = soak(models, kinds, parsed.requests, parsed.minutes, parsed.seed)
    report = {
        "model": ", ".join(model.package.manifest.model for model in models),
        **found,
        "tolerance_bytes": TOLERANCE,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(report, indent=2)
    if parsed.json:
        parsed.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    grown = report["rss_growth_bytes"]
    if report["different"]:
        print(f"soak: {len(report['different'])} answers differ", file=sys.stderr)
    if grown > TOLERANCE:
        print(f"soak: memory grew by {grown} bytes, at most {TOLERANCE} may be", file=sys.stderr)
    return int(bool(report["different"]) or grown > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

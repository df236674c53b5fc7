#!/usr/bin/env python
"""Train avl-tiny from scratch on images drawn on the fly; writes a Hugging Face checkpoint.

    python scripts/tiny/train.py --minutes 100 --out avl_export/models/avl-tiny

The learning rate rises over 100 steps, stays, and falls to zero over the last 35 % of the time;
easy images fade out over the first `--ease-steps` steps. A checkpoint is written every ten
minutes. A CPU step is mostly small matrix products: `_tune_process` sets an environment in which
MKL uses AVX-512 also on AMD and no memory is returned to the system between steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ENVIRONMENT = {
    "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "500000000",
}


def _tune_process() -> None:
    """Restart this process under ENVIRONMENT, which is only read at start-up."""
    if any(os.environ.get(key) != value for key, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})


def _rate(part: float, step: int) -> float:
    """Learning-rate factor at `part` (0 to 1) of the time."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, (1 - part) / 0.35))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=100.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ease-steps", type=int, default=1500)
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--saliency", type=float, default=0.1, help="weight of the saliency loss")
    parser.add_argument("--pointing", type=float, default=0.2, help="weight of the pointing loss")
    return parser.parse_args()


def main() -> None:
    args = _arguments()

    import torch
    import transformers
    from tokenizers import Tokenizer

    from batches import batches
    from checkpoint import save
    from network import losses, make_model
    from tokens import build_tokenizer

    transformers.logging.set_verbosity_error()
    torch.manual_seed(args.seed)
    tokenizer = (
        Tokenizer.from_file(str(args.resume / "tokenizer.json"))
        if args.resume
        else build_tokenizer()
    )
    prefix = tokenizer.encode("USER: ").ids
    model = make_model(tokenizer.get_vocab_size())
    if args.resume:
        trained = transformers.LlavaForConditionalGeneration.from_pretrained(
            args.resume, dtype=torch.float32
        )
        model.load_state_dict(trained.state_dict())
    model.set_attn_implementation({"text_config": "avl_tiny_training", "vision_config": "eager"})
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    inner = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inner]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    base = [[group["lr"] for group in o.param_groups] for o in optimizers]
    drawn = batches(tokenizer, args.batch, args.seed, args.ease_steps)
    start, step, saved, recent = time.monotonic(), 0, 0.0, []
    while (elapsed := time.monotonic() - start) < args.minutes * 60:
        factor = args.rate * _rate(elapsed / (args.minutes * 60), step)
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer, saliency, pointing = losses(model, next(drawn), prefix)
        (answer + args.saliency * saliency + args.pointing * pointing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        recent.append((answer.item(), saliency.item(), pointing.item()))
        if step % 50 == 0:
            means = [sum(column) / len(recent) for column in zip(*recent, strict=True)]
            record = {
                "step": step,
                "seconds": round(elapsed),
                "loss": round(means[0], 4),
                "saliency": round(means[1], 4),
                "pointing": round(means[2], 4),
                "images_per_second": round(step * args.batch / elapsed, 1),
            }
            print(json.dumps(record), file=sys.stderr, flush=True)
            recent = []
        if elapsed - saved > 600:
            saved = elapsed
            save(model, tokenizer, args.out)
    save(model, tokenizer, args.out)
    print(json.dumps({"steps": step, "images": step * args.batch}))


if __name__ == "__main__":
    _tune_process()
    main()

"""Random weights and a small tokenizer, for checkpoints that tests make.

Weights are scaled so that attention is peaked and logits have a spread of some units: then
rankings by attention have clear gaps, and a token kept or dropped wrongly shows in the logits.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

SCORE_SPREAD = 1.3  # standard deviation of attention scores before softmax, about its square
LOGIT_SPREAD = 2.0


def randomize(model: Any, special: int) -> None:
    """Draw every weight of a model of any family.

    The logits of the first `special` tokens become 0, which never is the largest of hundreds: so
    greedy decoding has as many steps as it is asked for.
    """
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    gains = {
        "q_proj": SCORE_SPREAD,
        "k_proj": SCORE_SPREAD,
        "qkv": SCORE_SPREAD,
        "position_embedding": 0.7,
        "class_embedding": 1.0,
        "newline": 5.0,
        "embed_tokens": LOGIT_SPREAD / model.lm_head.weight.shape[1] ** 0.5 if tied else 1.0,
        "lm_head": LOGIT_SPREAD,
    }
    with torch.no_grad():
        for name, weight in model.named_parameters():
            gain = next((g for part, g in gains.items() if part in name), 1.0)
            noise = torch.randn_like(weight)
            if weight.dim() == 1 and name.endswith("weight"):
                # A norm, around what it begins with, as some multiply by one and their weight.
                weight.copy_(float(weight.any()) + 0.3 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.2 * gain * noise)  # a bias, or an embedding of one token
            elif "embed" in name and "patch" not in name:
                weight.copy_(gain * noise)
            else:
                weight.copy_(gain * noise / weight[0].numel() ** 0.5)
        for module in model.modules():
            if getattr(module, "scaling", None) == 1 and hasattr(module, "q_norm"):
                # Nothing but the norm's weight keeps scores of normed queries and keys in bounds.
                module.q_norm.weight.mul_(SCORE_SPREAD * module.head_dim**-0.5)
        model.lm_head.weight[:special] = 0


@functools.cache
def byte_level_tokenizer(
    corpus: str, special: tuple[str, ...], bos: str | None, vocabulary: int
) -> Tokenizer:
    """Byte-level BPE with few merges, so that generated text often splits UTF-8 characters.

    Args:
        special: special tokens, in the order of their ids from 0.
        bos: the one that every text begins with, or None.
        vocabulary: tokens in all; words fill it, so that every id decodes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus] * 4, trainer)
    missing = vocabulary - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"word{i}", normalized=False) for i in range(missing)])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, special.index(bos))]
        )
    return tokenizer

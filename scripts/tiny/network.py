"""The architecture of avl-tiny and its training forward pass.

The model is transformers' own `LlavaForConditionalGeneration`. Only the attention function is
replaced while training: rows of the image attend causally among themselves, rows of the text
under the batch's segment mask, and the text rows' attention on image patches is handed out for
the saliency loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from avl_runtime.tasks.scene import IMAGE_SIZE
from batches import IMAGE_TOKENS, PATCH, Batch

PREFIX = 3  # <s>, USER:, space
IMAGE_END = PREFIX + IMAGE_TOKENS
POINTING_LAYERS = (2, 3)  # for words of a question, and for its answer
MARGIN = 1.0  # nats by which an inked patch should outrank the mean background patch


def make_model(vocabulary: int) -> LlavaForConditionalGeneration:
    """avl-tiny with random weights."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            projection_dim=192,
        ),
        text_config=LlamaConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=3,
            vocab_size=vocabulary,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=3,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
    )
    return LlavaForConditionalGeneration(config)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    text_bias: torch.Tensor,
    seen: list[torch.Tensor] | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """[B, H, S, D] attention in two parts; appends to `seen`.

    One entry a layer: attention of text rows on image patches [B, T, IMAGE_TOKENS], the mean over
    all heads; after those of POINTING_LAYERS a second one of their first KV head alone.
    """
    end = IMAGE_END
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    ahead = torch.ones(end, end, dtype=torch.bool).triu(1)
    scores = query[:, :, :end] @ key[:, :, :end].transpose(2, 3) * scaling
    image = scores.masked_fill(ahead, -1e9).softmax(-1).to(value.dtype) @ value[:, :, :end]
    scores = query[:, :, end:] @ key.transpose(2, 3) * scaling + text_bias
    weights = scores.softmax(-1)
    if seen is not None:
        seen.append(weights[..., PREFIX:end].mean(1))
        if module.layer_idx in POINTING_LAYERS:
            seen.append(weights[:, :group, :, PREFIX:end].mean(1))
    text = weights.to(value.dtype) @ value
    return torch.cat([image, text], 2).transpose(1, 2), None


AttentionInterface.register("avl_tiny_training", _attention)


def saliency_loss(seen: list[torch.Tensor], ink: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """How far inked patches fall short of outranking the background, in each layer.

    Large models look at objects rather than at empty background; a tiny one trained for an hour
    need not. Without this the order of patches by attention, which every pruning policy relies
    on, is noise among patches that hardly matter.

    Args:
        seen: per layer, head-mean attention on image patches, [B, T, IMAGE_TOKENS].
        ink: [B, IMAGE_TOKENS], patches that are not background.
        rows: [B, T] float, 1 for rows that predict an answer token.
    """
    inked, blank = ink[:, None].float(), (~ink)[:, None].float()
    loss = torch.zeros(())
    for attention in seen:
        log = (attention + 1e-8).log()
        mean_blank = ((attention * blank).sum(-1) / blank.sum(-1) + 1e-8).log()
        short = F.relu(MARGIN + mean_blank[..., None] - log)
        loss = loss + ((short * inked).sum(-1) / inked.sum(-1) * rows).sum() / rows.sum()
    return loss / len(seen)


def pointing_loss(attention: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
    """Cross entropy of looking at what a word of a question names.

    A short answer is a weak signal for finding an object by its colour, which answers to most
    questions hang on; this shows one KV head of two layers where to look.

    Args:
        attention: [B, T, IMAGE_TOKENS] of that head.
        named: [B, T, IMAGE_TOKENS] bool; rows without a patch do not count.
    """
    mass = ((attention * named).sum(-1) + 1e-4).log()
    rows = named.any(-1).float()
    return -(mass * rows).sum() / rows.sum().clamp(min=1)


def losses(
    model: LlavaForConditionalGeneration, batch: Batch, prefix_ids: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross entropy of the answers, saliency loss and pointing loss of one batch.

    Args:
        prefix_ids: the PREFIX tokens before the image.
    """
    size, text = batch.text_ids.shape
    inner = model.model
    features = torch.stack(list(inner.get_image_features(batch.pixel_values).pooler_output))
    embed = inner.get_input_embeddings()
    prefix = embed(torch.tensor(prefix_ids)).expand(size, PREFIX, -1)
    hidden = torch.cat([prefix, features, embed(batch.text_ids)], 1)
    positions = torch.cat(
        [torch.arange(IMAGE_END).expand(size, -1), batch.text_positions + IMAGE_END], 1
    )
    seen = list[torch.Tensor]()
    output = inner.language_model(
        inputs_embeds=hidden,
        position_ids=positions,
        text_bias=text_bias(batch),
        seen=seen,
        use_cache=False,
    ).last_hidden_state[:, IMAGE_END:-1]
    weights = batch.weights[:, 1:]
    logits = model.lm_head(output)
    entropy = F.cross_entropy(
        logits.flatten(0, 1), batch.text_ids[:, 1:].flatten(), reduction="none"
    ).view(size, text - 1)
    rows = (weights > 0).float()
    answer = (entropy * weights).sum() / weights.sum()
    pointed = [seen.pop(layer + 1) for layer in POINTING_LAYERS]
    pointing = pointing_loss(pointed[0], batch.named) + pointing_loss(pointed[1], batch.about)
    return answer, saliency_loss([one[:, :-1] for one in seen], batch.ink, rows), pointing


def text_bias(batch: Batch) -> torch.Tensor:
    """[B, 1, T, IMAGE_END + T] additive mask of the text rows."""
    size, text = batch.segment.shape
    causal = torch.ones(text, text, dtype=torch.bool).tril()
    same = batch.segment[:, :, None] == batch.segment[:, None, :]
    if batch.chat:
        same = torch.ones_like(same)
    mine = (causal & same)[:, None]
    bias = torch.zeros(size, 1, text, IMAGE_END + text)
    bias[..., IMAGE_END:].masked_fill_(~mine, -1e9)
    return bias

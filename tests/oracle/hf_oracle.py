"""What each policy must compute, from Hugging Face's own model and masks alone.

Nothing is gathered, compacted or cached here. Every step runs the whole sequence again through
the Hugging Face decoder, with a boolean table `visible[layer][kv_head, row, key]` that says which
keys each row saw when it was first computed. A row's table entry never changes afterwards, so its
hidden state, key and value come out as they did then. Dropping a token for good means that no
later row sees it; the token itself stays in the sequence and does no harm.

Layers that keep a state see no masks. Where a model has some, tokens that a prompt drops before a
layer are cut out of what it and all later layers are given, and are never read by their states.

Any family will do: what its decoder reads (embeddings with features in them, positions, deepstack
features) is taken from a call of the family's own forward pass, see `reading`.

This file must not import avl_runtime or avl_plugins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from oracle.reading import Shown, decoder_of, read
from oracle.restoring import bias_of

STATES = ("linear_attention", "conv")  # kinds of layers that keep a state


@dataclass(frozen=True, slots=True)
class PruneRule:
    """FastV: after `layer` full layers only the fraction `keep` of the image tokens remains."""

    layer: int
    keep: float


@dataclass(frozen=True, slots=True)
class SplitRule:
    """A-VL: fractions of all image tokens that are secondary (`keep`) and core (`core`).

    Where `checked` is given, every step reads all rows, and the core is told after these steps, but
    stays what the prompt drew: drafts are right.
    """

    keep: float
    core: float
    refresh: int
    checked: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class TextRule:
    """H2O on text behind the first image token: a budget, of which `heavy` are heavy hitters."""

    ratio: float
    minimum: int
    heavy: float = 0.7


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy; all None is dense attention."""

    prune: PruneRule | None = None
    split: SplitRule | None = None
    text: TextRule | None = None


class ByAttention:
    """Ranks image tokens by attention and remembers how close the closest decision was.

    Scores are float32 [n]; results are ascending indices into them. `gap` is the smallest relative
    difference between the last one taken and the first one left behind, over all decisions.
    """

    def __init__(self) -> None:
        self.gap = float("inf")

    def prune(self, scores: Tensor, total: int, count: int) -> list[int]:
        return self.top(scores, count)

    def partition(
        self, scores: Tensor, total: int, secondary: int, core: int, layer: int
    ) -> tuple[list[int], list[int]]:
        """Indices of the core, and of the secondary tokens outside it."""
        kept, first = self.top(scores, secondary), self.top(scores, core)
        return first, [index for index in kept if index not in first]

    def refresh(self, scores: Tensor, total: int, count: int, layer: int, step: int) -> list[int]:
        return self.top(scores, count)

    def top(self, scores: Tensor, count: int) -> list[int]:
        """The `count` largest; among equals the lower index."""
        values = scores.tolist()
        order = sorted(range(len(values)), key=lambda index: (-values[index], index))
        if 0 < count < len(values):
            last, next_one = values[order[count - 1]], values[order[count]]
            self.gap = min(self.gap, (last - next_one) / max(last, 1e-30))
        return sorted(order[:count])


@dataclass(frozen=True, slots=True)
class Places:
    """Where the image tokens are from decode step `step` on; neither core nor parked: dropped.

    core, parked: bool [layers, image tokens]. Without a split rule all that remain are core.
    """

    step: int
    core: NDArray[np.bool_]
    parked: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Run:
    """A greedy (or followed) run of `steps` tokens.

    Attributes:
        tokens: the argmax of every step's logits, whether it was followed or not.
        logits: float32 [steps, vocab].
        gap: smallest relative gap at any selection boundary; near 0 the choice is ambiguous.
        places: one entry after prefill and one for every refresh.
        rows: cache rows that hold a live token at the end, [layers, KV heads].
        evictions: text rows evicted, summed over layers and KV heads.
    """

    tokens: tuple[int, ...]
    logits: NDArray[np.float32]
    gap: float
    places: tuple[Places, ...]
    rows: NDArray[np.int64]
    evictions: int


@dataclass(slots=True)
class _Layer:
    """What one layer knows. `alive` and `core` speak about the next row to be computed.

    visible: bool [Hkv, S, S], for rows already computed; alive: bool [Hkv, S], tokens not dropped;
    core: bool [S], the image tokens an ordinary decode step sees; acc: [Hkv, S], H2O's sums.
    """

    visible: Tensor
    alive: Tensor
    core: Tensor
    acc: Tensor


def sources_of(text: Any) -> dict[int, int]:
    """Layers that have no keys and values, each with the last one of its type that has some."""
    shared, types = (
        getattr(text, "num_kv_shared_layers", None) or 0,
        getattr(text, "layer_types", []),
    )
    first = text.num_hidden_layers - shared
    return {
        n: max(m for m in range(first) if types[m] == types[n])
        for n in range(first, text.num_hidden_layers)
    }


def blocks_of(family: str, visual: Tensor) -> Tensor:
    """For each token [N] of a turn the number of the block whose tokens all see one another, or -1.

    Gemma 3: each run of a picture's tokens; PaliGemma: all of a turn.
    """
    if family == "paligemma":
        return torch.zeros(len(visual), dtype=torch.int64)
    if family != "gemma3":
        return torch.full((len(visual),), -1)
    starts = visual & ~torch.nn.functional.pad(visual, (1, 0))[:-1]
    return torch.where(visual, starts.cumsum(0) - 1, -1)


class Oracle:
    """One conversation under `rules`, batch 1.

    Args:
        model: in evaluation mode; its dtype is the dtype of the run.
        ranking: how image tokens are ranked; the tests of random policies bring their own.
        restore: whether attention is biased from the turn with the first picture on.
        gate: steps whose likeliest token has at most the first as its probability p are computed
            again, attention to images multiplied by (1 - p) times the second, and p, before it is
            normalised.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rules: Rules,
        ranking: ByAttention | None = None,
        restore: bool = False,
        gate: tuple[float, float] | None = None,
    ) -> None:
        self.model = model
        self.gate = gate
        self.confidences: list[float] = []
        self.factors = torch.ones(0, dtype=torch.float64)
        # Rows from the first number on give keys of these numbers [n] so many times the attention
        # before it is normalised, [H, n] in each layer that is named.
        self.evens: list[tuple[int, Tensor, dict[int, Tensor]]] = []
        # Of each layer: keys and values [S, D] that rows from the first number on see, of each KV
        # head, are a product [Hkv, S, S] with what they were before.
        self.merges: dict[int, list[tuple[int, Tensor]]] = {}
        self.keys: dict[int, Tensor] = {}  # [Hkv, S, D] that the newest row has seen
        self.rules = rules
        self.ranking = ByAttention() if ranking is None else ranking
        text = decoder_of(model).config
        self.heads = text.num_attention_heads
        self.kv_heads = text.num_key_value_heads
        types = getattr(text, "layer_types", None) or [""] * text.num_hidden_layers
        self.windows = [text.sliding_window if "sliding" in one else None for one in types]
        self.embeds = torch.zeros(0, text.hidden_size, dtype=model.dtype)  # [S, hidden]
        self.is_image = torch.zeros(0, dtype=torch.bool)  # [S]
        self.positions = torch.zeros(1, 0, dtype=torch.int64)  # [axes, S]
        self.deepstack = torch.zeros(0, 0, text.hidden_size, dtype=model.dtype)  # [K, visual, C]
        self.before: tuple[int, ...] = ()
        self.restore = restore
        self.counts = torch.zeros(0, dtype=torch.int64)  # [S], tokens that each stands for
        self.biased = torch.zeros(0, dtype=torch.bool)  # [S], rows whose attention is biased
        self.beside: Tensor | None = None  # [S, layers, size]
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        states = [index for index, kind in enumerate(kinds) if kind in STATES]
        self.has_states = bool(states)
        sources = sources_of(text)
        # Layers that keep rows: states are none, and some layers read those of another.
        self.attend = [n for n in range(len(kinds)) if n not in states and n not in sources]
        self.cuts: list[tuple[int, Tensor]] = []  # before which layer, and what goes on [S]
        self.layers = [
            _Layer(
                visible=torch.zeros(self.kv_heads, 0, 0, dtype=torch.bool),
                alive=torch.zeros(self.kv_heads, 0, dtype=torch.bool),
                core=torch.zeros(0, dtype=torch.bool),
                acc=torch.zeros(self.kv_heads, 0, dtype=torch.float32),
            )
            for _ in range(text.num_hidden_layers)
        ]
        for index, source in sources.items():
            self.layers[index] = self.layers[source]
        self.own = [n for n in range(len(kinds)) if n not in sources]
        self.step_of_turn = 0
        self.places: list[Places] = []
        self.evictions = 0

    def turn(self, inputs: Mapping[str, Tensor] | Shown) -> Tensor:
        """Prefill of a turn, logits [V]: what the model itself takes, batch 1, or its decoder."""
        shown = inputs if isinstance(inputs, Shown) else read(self.model, inputs)
        before, count = len(self.is_image), len(shown.visual)
        self._append(shown)
        new = slice(before, before + count)
        block = blocks_of(self.model.config.model_type, shown.visual)
        together = (block[:, None] == block) & (block >= 0)
        seen = torch.ones(count, count, dtype=torch.bool).tril() | together
        for number in self.own:
            layer = self.layers[number]
            layer.visible[:, new, :before] = layer.alive[:, None, :before]
            layer.visible[:, new, new] = seen
            layer.visible[:, new] &= self._near(number)[new]
        if self.rules.prune is not None:
            self._prune(self.rules.prune, new)
        logits, attention = self._forward()
        self._accumulate(attention, new)
        self.step_of_turn = 0
        if self.rules.split is not None:
            self._partition(self.rules.split, attention)
        else:
            for number in self.own:
                layer = self.layers[number]
                layer.core = layer.alive[0] & self.is_image
        self._record(step=0)
        self._evict_text()
        return logits

    def step(self, token: int) -> Tensor:
        """One decode step on `token`; logits [V]."""
        self.step_of_turn += 1
        self._append(read(self.model, {"input_ids": torch.tensor([[token]])}))
        split = self.rules.split
        whole = draws = split is not None and self.step_of_turn % split.refresh == 0
        if split is not None and split.checked is not None:
            whole, draws = True, False
        for number in self.own:
            layer = self.layers[number]
            seen = layer.alive if whole else layer.alive & (layer.core | ~self.is_image)
            layer.visible[:, -1, :] = seen & self._near(number)[-1]
        logits, attention = self._forward()
        if self.gate is not None and self.is_image.any():
            below, most = self.gate
            sure = float(logits.double().softmax(0).max())
            self.confidences.append(sure)
            if sure <= below:
                self.factors[-1] = sure + (1 - sure) * most
                logits, attention = self._forward()
        self._accumulate(attention, slice(-1, None))
        if split is not None and draws:
            self._refresh(split, attention)
        if split is not None and self.step_of_turn in (split.checked or ()):
            self._record(step=self.step_of_turn + 1)
        self._evict_text()
        return logits

    def _near(self, layer: int) -> Tensor:
        """[S, S], which tokens a layer's window leaves in sight."""
        places, window = self.positions[0], self.windows[layer]
        if window is None:
            return torch.ones(len(places), len(places), dtype=torch.bool)
        return places[:, None] - places < window

    def attention(self) -> dict[int, Tensor]:
        """[H, S, S] of each layer."""
        return self._forward()[1]

    def live_rows(self) -> NDArray[np.int64]:
        """Tokens not dropped, [layers, KV heads]."""
        return np.stack([self.layers[n].alive.sum(1).numpy() for n in self.own])

    # The model.

    def _append(self, shown: Shown) -> None:
        """Add rows that are alive and that nobody has seen yet."""
        count = len(shown.visual)
        start = int(self.positions.max()) + 1 if len(self.is_image) else 0
        axes = max(len(self.positions), len(shown.positions))
        parts = [self.positions, start + shown.positions]
        self.positions = torch.cat([part.expand(axes, -1) for part in parts], 1)
        if len(shown.deepstack):
            stacks = [self.deepstack, shown.deepstack] if len(self.deepstack) else [shown.deepstack]
            self.deepstack = torch.cat(stacks, 1)
            self.before = shown.before
        self.embeds = torch.cat([self.embeds, shown.embeds])
        self.is_image = torch.cat([self.is_image, shown.visual])
        more = torch.ones(count, dtype=torch.int64) if shown.counts is None else shown.counts
        self.counts = torch.cat([self.counts, more])
        self.factors = torch.cat([self.factors, torch.ones(count, dtype=torch.float64)])
        biased = torch.full((count,), self.restore and bool(self.is_image.any()))
        self.biased = torch.cat([self.biased, biased])
        if shown.beside is not None:
            parts = [] if self.beside is None else [self.beside]
            self.beside = torch.cat([*parts, shown.beside])
        for layer in (self.layers[number] for number in self.own):
            layer.visible = torch.nn.functional.pad(layer.visible, (0, count, 0, count))
            layer.alive = torch.nn.functional.pad(layer.alive, (0, count), value=True)
            layer.core = torch.nn.functional.pad(layer.core, (0, count))
            layer.acc = torch.nn.functional.pad(layer.acc, (0, count))
        pad = torch.nn.functional.pad
        self.cuts = [(before, pad(goes, (0, count), value=True)) for before, goes in self.cuts]

    def _forward(self) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits [V] of the last row, and attention [H, S, S] of each layer under `visible`."""
        attention: dict[int, Tensor] = {}
        group = self.heads // self.kv_heads
        # A dropped token's own row would be empty: let every row see itself.
        itself = torch.eye(len(self.embeds), dtype=torch.bool)
        masks = [(layer.visible | itself).repeat_interleave(group, dim=0) for layer in self.layers]
        axes = len(self.positions)
        more: dict[str, Any] = {}
        if self.before:
            more["vision_mask"] = self.is_image[None, :, None]
            more["deepstack_features"] = dict(zip(self.before, self.deepstack, strict=True))
        elif self.beside is not None:
            more["per_layer_inputs"] = self.beside[None]
        elif len(self.deepstack):
            more["visual_pos_masks"] = self.is_image[None]
            more["deepstack_visual_embeds"] = list(self.deepstack)
        if self.restore:
            bias = bias_of(self.model, self.positions, self.counts, self.biased)
            more["oracle_bias"] = bias.to(self.model.dtype)
        if self.gate is not None:
            more["oracle_factors"] = torch.where(self.is_image, self.factors[:, None], 1.0)
        if self.evens:
            more["oracle_evens"] = self._evened()
        goes = self._goes_on()
        masks = [mask[:, rows][:, :, rows] for mask, rows in zip(masks, goes, strict=True)]
        with _masked_attention(self.model), _cut(decoder_of(self.model).layers, goes):
            hidden = decoder_of(self.model)(
                inputs_embeds=self.embeds[None],
                position_ids=self.positions if axes == 1 else self.positions[:, None],
                use_cache=False,
                oracle_masks=masks,
                oracle_attention=attention,
                oracle_merges=self.merges,
                oracle_keys=self.keys,
                **more,
            ).last_hidden_state[0, -1]
        divisor = getattr(decoder_of(self.model).config, "logits_scaling", 1.0)
        logits = self.model.lm_head(hidden) / divisor
        cap = getattr(decoder_of(self.model).config, "final_logit_softcapping", None)
        if (
            cap is not None and self.model.config.model_type != "gemma3"
        ):  # which does not look at it
            logits = cap * torch.tanh(logits / cap)
        return logits, {index: _spread(one, goes[index]) for index, one in attention.items()}

    def _evened(self) -> dict[int, Tensor]:
        """[H, S, S] of each layer in which there is something to even out."""
        count = len(self.embeds)
        found: dict[int, Tensor] = {}
        for first, keys, tables in self.evens:
            for layer, table in tables.items():
                whole = torch.ones(self.heads, count, count, dtype=torch.float64)
                factors = found.setdefault(layer, whole)
                factors[:, first:, keys] *= table[:, None]
        return found

    def _goes_on(self) -> list[Tensor]:
        """For each layer the rows [S] that it is given."""
        found = [torch.ones_like(self.is_image) for _ in self.layers]
        for before, goes in self.cuts:
            found = [rows & goes if i >= before else rows for i, rows in enumerate(found)]
        return found

    # The rules.

    def _image_scores(self, attention: Tensor, tokens: Tensor) -> Tensor:
        """Head-mean attention [n] of the newest row on `tokens` [n], from [H, S, S]."""
        return attention[:, -1, :].float().mean(0)[tokens]

    def _prune(self, rule: PruneRule, new: slice) -> None:
        """Hide this turn's image tokens with the least attention in layer `rule.layer` - 1."""
        in_turn = torch.zeros_like(self.is_image)
        in_turn[new] = True
        tokens = torch.nonzero(self.is_image & in_turn)[:, 0]
        if not len(tokens):
            return
        # What layer K-1 does depends on layers before K only, which see everything.
        _, attention = self._forward()
        ranks = max(index for index in self.attend if index < rule.layer)
        scores = self._image_scores(attention[ranks], tokens)
        count = max(1, round(rule.keep * len(tokens)))
        kept = tokens[self.ranking.prune(scores, len(tokens), count)]
        dropped = self.is_image & in_turn
        dropped[kept] = False
        for layer in (self.layers[n] for n in self.own if n >= rule.layer):
            layer.visible[:, :, dropped] = False
            layer.alive[:, dropped] = False
        if self.has_states:
            self.cuts.append((rule.layer, ~dropped))

    def _partition(self, rule: SplitRule, attention: Mapping[int, Tensor]) -> None:
        total = int(self.is_image.sum())
        for index in self.attend:
            layer = self.layers[index]
            tokens = torch.nonzero(layer.alive[0] & self.is_image)[:, 0]
            layer.core = torch.zeros_like(self.is_image)
            if not len(tokens):
                continue
            if self.windows[index] is not None:  # no policy decides about its rows
                layer.core[tokens] = True
                continue
            secondary = min(max(1, int(rule.keep * total + 1e-9)), len(tokens))
            core = min(max(1, int(rule.core * total + 1e-9)), secondary)
            scores = self._image_scores(attention[index], tokens)
            first, parked = self.ranking.partition(scores, total, secondary, core, index)
            layer.alive[:, tokens] = False
            layer.alive[:, tokens[first + parked]] = True
            layer.core[tokens[first]] = True

    def _refresh(self, rule: SplitRule, attention: Mapping[int, Tensor]) -> None:
        total = int(self.is_image.sum())
        for index in self.attend:
            layer = self.layers[index]
            tokens = torch.nonzero(layer.alive[0] & self.is_image)[:, 0]
            layer.core = torch.zeros_like(self.is_image)
            if not len(tokens):
                continue
            if self.windows[index] is not None:  # no policy decides about its rows
                layer.core[tokens] = True
                continue
            core = min(max(1, int(rule.core * total + 1e-9)), len(tokens))
            scores = self._image_scores(attention[index], tokens)
            chosen = self.ranking.refresh(scores, total, core, index, self.step_of_turn)
            layer.core[tokens[chosen]] = True
        self._record(step=self.step_of_turn + 1)

    def _accumulate(self, attention: Mapping[int, Tensor], rows: slice) -> None:
        """Add the group-mean attention of the text rows among `rows` to H2O's sums."""
        chosen = torch.zeros_like(self.is_image)
        chosen[rows] = True
        chosen &= ~self.is_image
        group = self.heads // self.kv_heads
        for index in self.attend:
            one, layer = attention[index], self.layers[index]
            by_kv_head = one.float().unflatten(0, (self.kv_heads, group)).mean(1)
            layer.acc += by_kv_head[:, chosen].sum(1)

    def _evict_text(self) -> None:
        rule = self.rules.text
        if rule is None or rule.ratio >= 1 or not self.is_image.any():
            return
        positions = torch.arange(len(self.is_image))
        first_image = int(torch.nonzero(self.is_image)[0, 0])
        evictable = ~self.is_image & (positions > first_image)
        budget = max(round(rule.ratio * int(evictable.sum())), rule.minimum)
        heavy = int(budget * rule.heavy)
        for index in (n for n in self.attend if self.windows[n] is None):
            layer = self.layers[index]
            for head in range(self.kv_heads):
                tokens = torch.nonzero(layer.alive[head] & evictable)[:, 0]
                if len(tokens) <= budget:
                    continue
                older = tokens[: len(tokens) - (budget - heavy)]
                hitters = self.ranking.top(layer.acc[head][older], heavy)
                gone = torch.ones_like(older, dtype=torch.bool)
                gone[hitters] = False
                layer.alive[head, older[gone]] = False
                self.evictions += int(gone.sum())

    def _record(self, step: int) -> None:
        layers = [self.layers[number] for number in self.own]
        alive = torch.stack([layer.alive[0][self.is_image] for layer in layers])
        core = torch.stack([layer.core[self.is_image] for layer in layers])
        self.places.append(Places(step, (alive & core).numpy(), (alive & ~core).numpy()))


def run(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    rules: Rules,
    steps: int,
    *,
    follow: Sequence[int] | None = None,
    ranking: ByAttention | None = None,
) -> Run:
    """One prompt, then `steps` tokens: greedy, or those of `follow` where given.

    Args:
        inputs: the prompt as the model itself takes it, batch 1.
        follow: at least `steps` - 1 tokens to feed instead of the argmax, so that logits stay
            comparable with another run's even where two tokens tie.
    """
    oracle = Oracle(model, rules, ranking)
    logits: list[Tensor] = []
    with torch.inference_mode():
        for step in range(steps):
            if step == 0:
                logits.append(oracle.turn(inputs))
            else:
                token = int(logits[-1].argmax()) if follow is None else follow[step - 1]
                logits.append(oracle.step(token))
    stacked = torch.stack(logits)
    return Run(
        tokens=tuple(stacked.argmax(1).tolist()),
        logits=stacked.float().numpy(),
        gap=oracle.ranking.gap,
        places=tuple(oracle.places),
        rows=oracle.live_rows(),
        evictions=oracle.evictions,
    )


NONE: Mapping[int, Tensor] = MappingProxyType({})


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    *,
    oracle_masks: list[Tensor],
    oracle_attention: dict[int, Tensor],
    oracle_bias: Tensor | None = None,
    oracle_factors: Tensor | None = None,
    oracle_evens: Mapping[int, Tensor] = NONE,
    oracle_merges: Mapping[int, list[tuple[int, Tensor]]] = MappingProxyType({}),
    oracle_keys: dict[int, Tensor] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """As `_plain`, whose keys and values are others for later rows."""
    index = module.layer_idx
    mask, rest = oracle_masks[index], (oracle_bias, oracle_factors, oracle_evens.get(index))
    out, weights = _plain(query, key, value, scaling, mask, *rest)
    for first, table in oracle_merges.get(index, ()):
        for rows in (key, value):
            before = rows[0, :, : table.shape[1]].double()
            rows[0, :, : table.shape[1]] = (table @ before).to(rows.dtype)
        later, given = _plain(query, key, value, scaling, mask, *rest)
        out[:, first:], weights[:, first:] = later[:, first:], given[:, first:]
    oracle_attention[index] = weights
    if oracle_keys is not None:
        oracle_keys[index] = key[0]
    return out, None


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    mask: Tensor,
    bias: Tensor | None,
    *factors: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention, [1, H, S, D] in, under a mask [H, S, S]; what comes out, and weights."""
    group = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(group, dim=1)
    value = value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=wide).to(query.dtype)
    for each in factors:
        if each is None:
            continue
        raised = weights.double() * each
        weights = (raised / raised.sum(-1, keepdim=True)).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights[0]


def _spread(attention: Tensor, rows: Tensor) -> Tensor:
    """[H, n, n] of some rows as [H, S, S], zeros elsewhere."""
    at = torch.nonzero(rows)[:, 0]
    found = attention.new_zeros(len(attention), len(rows), len(rows))
    found[:, at[:, None], at] = attention
    return found


@contextlib.contextmanager
def _cut(layers: Sequence[torch.nn.Module], goes: Sequence[Tensor]) -> Iterator[None]:
    """Give each layer the rows [S] of `goes` alone, with the positions that they have."""
    hooks = []
    for index, layer in enumerate(layers):
        before = goes[index - 1] if index else torch.ones_like(goes[0])

        def change(
            _: torch.nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            rows: Tensor = goes[index],
            given: Tensor = before,
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            turns = tuple(table[:, rows] for table in kwargs["position_embeddings"])
            hidden = args[0] if args else kwargs["hidden_states"]
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            return (hidden[:, rows[given]],), {**rest, "position_embeddings": turns}

        if not goes[index].all():
            hooks.append(layer.register_forward_pre_hook(change, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


AttentionInterface.register("avl_test_oracle", _attention)


@contextlib.contextmanager
def _masked_attention(model: PreTrainedModel) -> Iterator[None]:
    config = decoder_of(model).config
    before = config._attn_implementation
    config._attn_implementation = "avl_test_oracle"
    try:
        yield
    finally:
        config._attn_implementation = before

"""Which rows of a prompt each method keeps: float64 and brute force, on transformers' attention.

Written from the papers and what is known of their code, with none of avl's. This file must not
import avl_runtime or avl_plugins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from oracle.hf_oracle import Oracle, PruneRule, Rules
from oracle.reading import Shown

Rows = NDArray[np.float64]


@dataclass(slots=True)
class Seen:
    """What the KV heads of a layer hold, and what the probes' rows give it.

    tokens: of each head, ascending positions; weights: [Hkv, probes, S], mean over query heads.
    probes: positions of the probes that this layer read.
    images: positions of image tokens.
    """

    tokens: list[list[int]]
    weights: Rows
    probes: list[int]
    images: set[int]

    def column(self, head: int, token: int) -> float:
        """What all probes together give a token."""
        return math.fsum(self.weights[head, :, token])


@dataclass(slots=True)
class Order:
    """Takes the best; gap is how close the closest decision was, but between equals."""

    gap: float = math.inf

    def first(self, values: Mapping[int, float], count: int) -> list[int]:
        """The `count` tokens of the highest values; of equal ones the first tokens."""
        order = sorted(values, key=lambda token: (-values[token], token))
        if 0 < count < len(order):
            last, other = values[order[count - 1]], values[order[count]]
            if last != other:
                self.gap = min(self.gap, (last - other) / max(abs(last), 1e-30))
        return order[:count]


Kept = list[list[list[int]]]  # of each layer and head
Options = Mapping[str, Any]


def asked_for(options: Options, total: int) -> int:
    return options.get("tokens") or max(1, math.floor(options.get("keep", 0.25) * total + 1e-9))


def snapkv(layers: list[Seen], total: int, options: Options, order: Order) -> Kept:
    return [_snap(seen, asked_for(options, total), options, order) for seen in layers]


def _snap(seen: Seen, budget: int, options: Options, order: Order) -> list[list[int]]:
    """A layer's rows: its probes, and what they look at, to `budget` rows in all."""
    found = []
    reach = options.get("pool", 7) // 2
    for head, tokens in enumerate(seen.tokens):
        before = [token for token in tokens if token < seen.probes[0]]
        alone = [seen.column(head, token) for token in before]
        values = {
            token: max(alone[max(0, i - reach) : i + reach + 1]) for i, token in enumerate(before)
        }
        own = [token for token in tokens if token >= seen.probes[0]]
        found.append([*order.first(values, max(0, budget - len(own))), *own])
    return found


def pyramidkv(layers: list[Seen], total: int, options: Options, order: Order) -> Kept:
    kept = []
    for number, seen in enumerate(layers):
        held, window = len(seen.tokens[0]), len(seen.probes)
        capacity = asked_for(options, total)
        mean = max(0, capacity - window)
        low = mean // options.get("beta", 20)
        high = 2 * mean - low
        if high >= held - window:
            high = held - window
            low = 2 * mean - high
        step = (high - low) // (len(layers) - 1)
        budget = window + high - number * step if held >= 2 * mean else capacity
        kept.append(_snap(seen, min(budget, held), options, order))
    return kept


def vlcache(layers: list[Seen], total: int, options: Options, order: Order) -> Kept:
    rows = [len(seen.tokens[0]) for seen in layers]
    wanted = sum(min(one, asked_for(options, total)) for one in rows)
    weights = []
    for seen, held in zip(layers, rows, strict=True):
        dense = []
        for head, tokens in enumerate(seen.tokens):
            values = [seen.column(head, token) for token in tokens]
            bar = 0.01 * max(values)
            order.gap = min(order.gap, *(abs(one - bar) / bar for one in values))
            dense.append(sum(one >= bar for one in values) / held)
        weights.append(held * sum(dense) / len(dense))
    shares = water(weights, [math.ceil(0.01 * one) for one in rows], rows, wanted)
    budgets = [math.floor(one + 1e-6) for one in shares]
    left = sorted(range(len(rows)), key=lambda n: (-round(shares[n] - budgets[n], 6), n))
    for number in left[: round(wanted - sum(budgets))]:
        budgets[number] += 1
    kept = []
    for seen, budget in zip(layers, budgets, strict=True):
        newest = max(1, math.ceil(options.get("recent", 0.1) * budget - 1e-9))
        kept.append([])
        for head, tokens in enumerate(seen.tokens):
            values = {token: seen.column(head, token) for token in tokens[:-newest]}
            kept[-1].append(order.first(values, budget - newest) + tokens[-newest:])
    return kept


def water(weights: list[float], least: list[int], most: list[int], wanted: int) -> list[float]:
    """What is in proportion to weights within bounds: every way to be at a bound is tried."""
    for at in itertools.product("lfm", repeat=len(weights)):
        fixed = [
            {"l": low, "m": high, "f": 0}[one]
            for one, low, high in zip(at, least, most, strict=True)
        ]
        free = sum(weight for one, weight in zip(at, weights, strict=True) if one == "f")
        factor = (wanted - sum(fixed)) / free if free else 0.0
        found = [
            factor * weight if one == "f" else float(own)
            for one, weight, own in zip(at, weights, fixed, strict=True)
        ]
        fits = abs(sum(found) - wanted) < 1e-6
        for one, own, weight, low, high in zip(at, found, weights, least, most, strict=True):
            fits &= low - 1e-9 <= own <= high + 1e-9
            fits &= one != "l" or not free or factor * weight <= low + 1e-9
            fits &= one != "m" or not free or factor * weight >= high - 1e-9
        if fits:
            return found
    raise AssertionError("no shares fit")


def zipvl(layers: list[Seen], total: int, options: Options, order: Order) -> Kept:
    kept = []
    for seen in layers:
        tokens, heads = seen.tokens[0], range(len(seen.tokens))
        given = {t: sum(seen.column(head, t) for head in heads) / len(heads) for t in tokens}
        whole, count, least = math.fsum(given.values()), 0, options.get("tau", 0.975)
        for count in range(1, len(tokens) + 1):
            share = math.fsum(sorted(given.values())[-count:]) / whole
            order.gap = min(order.gap, abs(share - least))
            if share >= least:
                break
        means = {t: one / sum(probe >= t for probe in seen.probes) for t, one in given.items()}
        ends = [tokens[0], tokens[-1]]
        others = {token: one for token, one in means.items() if token not in ends}
        chosen = order.first(others, max(0, count - 2)) + ends
        kept.append([chosen for _ in heads])
    return kept


def lookm(layers: list[Seen], total: int, options: Options, order: Order) -> Kept:
    kept = []
    for seen in layers:
        budget = min(len(seen.tokens[0]), asked_for(options, total))
        newest = max(1, math.ceil(options.get("recent", 0.5) * budget - 1e-9))
        kept.append([])
        for head, tokens in enumerate(seen.tokens):
            older, left = tokens[:-newest], budget - newest
            text = {t: seen.column(head, t) for t in older if t not in seen.images}
            shown = {t: seen.column(head, t) for t in older if t in seen.images}
            chosen = order.first(text, min(left, len(text)))
            chosen += order.first(shown, left - len(chosen))
            kept[-1].append(chosen + tokens[-newest:])
    return kept


def sums_of(keys: Rows, tokens: list[int], kept: list[int], options: Options, order: Order) -> Rows:
    """[S, S]: of which rows, and how many times, each row of a KV head is the sum afterwards.

    By LOOK-M's equations, one evicted row after the other.

    Args:
        keys: [S, D].
        tokens, kept: that the head held and holds.
    """
    table, joins = np.eye(len(keys)), {to: {} for to in kept}
    for token in set(tokens) - set(kept):
        like = {}
        for to in kept:
            lengths = np.linalg.norm(keys[token]) * np.linalg.norm(keys[to])
            like[to] = float(keys[token] @ keys[to] / lengths) if lengths else 0.0
        (nearest,) = order.first(like, 1)
        joins[nearest][token] = like[nearest]
    for to, rows in joins.items():
        parts = [np.eye(len(keys))[to]]
        for token, cosine in rows.items():
            one = np.eye(len(keys))[token]
            way = options.get("merge", "pivotal")
            parts.append(
                {
                    "pivotal": (one + parts[0]) / 2,
                    "averaged": one,
                    "weighted": cosine * one,
                }[way]
            )
        table[to] = np.mean(parts, 0)
    return table


METHODS: dict[str, Callable[[list[Seen], int, Options, Order], Kept]] = {
    "snapkv": snapkv,
    "pyramidkv": pyramidkv,
    "vlcache": vlcache,
    "zipvl": zipvl,
    "lookm": lookm,
}


def probes_of(name: str, image: list[bool], options: Options) -> list[int]:
    """Numbers of a prompt's rows whose attention a method is given."""
    rows = list(range(len(image)))
    if name == "zipvl":
        older, recent = rows[: -options.get("recent", 64)], rows[-options.get("recent", 64) :]
        drawn = np.random.default_rng([0, len(rows)]).permutation(len(older))
        return sorted(drawn[: options.get("drawn", 64)].tolist()) + recent
    if name == "lookm" and "window" not in options:
        return rows
    behind = max((i + 1 for i, one in enumerate(image) if one), default=0)
    most = {"snapkv": 32, "pyramidkv": 8}.get(name, len(rows))
    return rows[min(behind, len(rows) - 1) :][-options.get("window", most) :]


class Retained(Oracle):
    """A conversation each of whose prompts leaves some rows, by one of `METHODS`.

    Args:
        name, options: of the method.
    """

    def __init__(self, model: PreTrainedModel, rules: Rules, name: str, options: Options) -> None:
        super().__init__(model, rules)
        self.name, self.options, self.order = name, options, Order()
        self.attention: dict[int, Tensor] = {}

    @property
    def gap(self) -> float:
        return min(self.order.gap, self.ranking.gap)

    def turn(self, inputs: Mapping[str, Tensor] | Shown) -> Tensor:
        before = len(self.is_image)
        logits = super().turn(inputs)
        image = self.is_image[before:].tolist()
        probes = [before + row for row in probes_of(self.name, image, self.options)]
        group = self.heads // self.kv_heads
        numbers = [index for index in self.attend if self.windows[index] is None]
        layers = []
        for index in numbers:
            alive = self.layers[index].alive
            tokens = [torch.nonzero(one)[:, 0].tolist() for one in alive]
            read = [row for row in probes if row in tokens[0]]
            by_head = self.attention[index][:, read].double().unflatten(0, (-1, group)).mean(1)
            images = set(torch.nonzero(self.is_image)[:, 0].tolist())
            layers.append(Seen(tokens, by_head.numpy(), read, images))
        kept = METHODS[self.name](layers, len(self.is_image), self.options, self.order)
        for index, heads in zip(numbers, kept, strict=True):
            layer = self.layers[index]
            for alive, tokens in zip(layer.alive, heads, strict=True):
                alive[:] = False
                alive[tokens] = True
            layer.core = torch.ones_like(self.is_image)
        if self.name == "lookm" and self.options.get("merge") != "none":
            for index, seen, heads in zip(numbers, layers, kept, strict=True):
                keys = self.keys[index].double().numpy()
                each = zip(keys, seen.tokens, heads, strict=True)
                tables = [sums_of(*head, self.options, self.order) for head in each]
                table = torch.tensor(np.stack(tables))
                self.merges.setdefault(index, []).append((len(self.is_image), table))
        return logits

    def step(self, token: int) -> Tensor:
        for layer in self.layers:  # heads of a layer see different images
            layer.core = torch.ones_like(self.is_image)
        return super().step(token)

    def _accumulate(self, attention: Mapping[int, Tensor], rows: slice) -> None:
        self.attention = dict(attention)
        super()._accumulate(attention, rows)


class Staged(Oracle):
    """PyramidDrop: the share `keep` of what is left, rounded down, before each of some layers."""

    def __init__(self, model: PreTrainedModel, layers: list[int], keep: float) -> None:
        super().__init__(model, Rules(PruneRule(layers[0], keep)))
        self.stages, self.keep = layers, keep

    def _prune(self, rule: PruneRule, new: slice) -> None:
        total = int(self.is_image[new].sum())
        for number, layer in enumerate(self.stages):
            count = max(1, math.floor(self.keep ** (number + 1) * total + 1e-9))
            super()._prune(PruneRule(layer, count / max(1, total)), new)


class RatedStages(Oracle):
    """SparseVLM: a share of the tokens goes on from each of some layers, by its raters' attention.

    Raters are chosen by what the first layer reads: dot products, one by one.
    """

    def __init__(self, model: PreTrainedModel, stages: list[tuple[int, float]]) -> None:
        super().__init__(model, Rules(PruneRule(*stages[0])))
        self.stages, self.order, self.raters = stages, Order(), [0]

    @property
    def gap(self) -> float:
        return min(self.order.gap, self.ranking.gap)

    def _prune(self, rule: PruneRule, new: slice) -> None:
        image = [new.start + i for i, one in enumerate(self.is_image[new]) if one]
        if not image:
            return
        text = list(range(image[-1] + 1, len(self.is_image)))
        self.raters = self._chosen(image, text) if text else image[-1:]
        for layer, keep in self.stages:
            super()._prune(PruneRule(layer, keep), new)

    def _chosen(self, image: list[int], text: list[int]) -> list[int]:
        rows, likeness = self.embeds.double().numpy(), dict.fromkeys(text, 0.0)
        for token in image:
            products = {j: math.fsum(rows[token] * rows[j]) for j in text}
            whole = math.fsum(math.exp(one - max(products.values())) for one in products.values())
            for j, one in products.items():
                likeness[j] += math.exp(one - max(products.values())) / whole / len(image)
        mean = math.fsum(likeness.values()) / len(text)
        if len(text) > 1:
            self.order.gap = min(abs(one / mean - 1) for one in likeness.values())
        return [j for j in text if likeness[j] > mean] if len(text) > 1 else text

    def _image_scores(self, attention: Tensor, tokens: Tensor) -> Tensor:
        """[n], the mean over heads and raters, one rater after the other."""
        each = [attention[:, row].double().mean(0)[tokens] for row in self.raters]
        return torch.stack(each).mean(0)


def method_of(spec: str) -> tuple[str, Options]:
    """The method and its options that a policy's text names."""
    name, _, rest = spec.partition(":")
    pairs = [part.split("=") for part in rest.split(",") if part]
    return name, {key: _number(value) for key, value in pairs}


def _number(text: str) -> float | str:
    if text.isalpha():
        return text
    return float(text) if "." in text else int(text)


def stages_of(spec: str) -> list[tuple[int, float]]:
    """Layers and shares that a text for `sparsevlm` names."""
    layers, keep = (part.partition("=")[2].split("/") for part in spec.split(","))
    return [(int(layer), float(share)) for layer, share in zip(layers, keep, strict=True)]

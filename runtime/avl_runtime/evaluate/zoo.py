"""The zoo: every policy that drops image tokens, at the same shares of them, with controls; and
CAAC, which drops none.

A policy that is registered with an option `keep` needs no word here; one whose share is written
otherwise has a line in `WRITTEN`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from avl_plugins.errors import PolicyError
from avl_plugins.policies import Policy, Random, When, parse, registered
from avl_runtime.package.info import check_bias, check_vision
from avl_runtime.package.manifest import Manifest

SHARES = (0.5, 0.3333, 0.1111, 0.0556)  # 1/2, 1/3, 1/9 and 1/18
STAGES: Mapping[When, str] = {
    When.EMBEDDED: "before the decoder",
    When.BETWEEN: "between layers",
    When.PROMPT: "in the cache",
    When.STEP: "in steps",
}
CONTROLS = ("of=embedded", "of=fastv", "of=avl", "of=cached")  # of `random`
WHOLE = ("evs",)  # drops nothing of a picture, of videos alone
DROPLESS = ("caac",)  # asked once, as all tokens stay

# Of a package's cuts: the options that spend a share. None: it cannot be done between these.
Written = Callable[[float, Sequence[int]], str | None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy at a share.

    Attributes:
        name: the policy without what its share makes of it.
        stage: when it acts, one of `STAGES`.
        share: of image tokens, 1 where none is dropped; of all rows where it drops text too.
    """

    policy: str
    name: str
    stage: str
    share: float


@dataclass(frozen=True, slots=True)
class Zoo:
    """What a package is measured with, dense attention first, and why which policies are not."""

    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]


def zoo(manifest: Manifest) -> Zoo:
    """All policies that drop image tokens, and CAAC, as a package can serve them, by stage."""
    entries, left_out = [], []
    for name, kind in registered().items():
        if kind is Random or name in WHOLE:
            continue
        written = WRITTEN.get(name)
        if written is None and name not in DROPLESS:
            if "keep" not in {field.name for field in dataclasses.fields(kind)}:  # type: ignore[arg-type]
                continue
            written = _by_keep(kind)
        try:
            entries += _entries(name, written, manifest)
        except PolicyError as error:
            left_out.append(str(error))
    for control in CONTROLS:
        try:
            entries += _entries("random", _control(control), manifest)
        except PolicyError as error:
            left_out.append(str(error))
    order = list(STAGES.values())
    entries.sort(key=lambda entry: order.index(entry.stage))  # stable
    dense = Entry("dense", "dense", "", 1.0)
    return Zoo((dense, *entries), tuple(left_out))


def _entries(name: str, written: Written | None, manifest: Manifest) -> list[Entry]:
    """A policy at every share, or as it is where nothing is written for one.

    Raises:
        PolicyError: the package cannot serve it.
    """
    found = []
    for share in (1.0,) if written is None else SHARES:
        options = "" if written is None else written(share, manifest.splits())
        if options is None:
            raise PolicyError(
                f"{name}: expected a decoder that is cut where it drops, found one cut after "
                f"{', '.join(map(str, manifest.splits())) or 'no layer'}; export with two or three "
                "layers in --split, equally far apart"
            )
        policy = parse(f"{name}:{options}" if options else name)
        policy.check(manifest.splits(), manifest.dims.num_layers)
        check_vision(policy, manifest)
        check_bias(policy, manifest)
        told = name
        if isinstance(policy, Random) and policy.of != "fastv":
            told = f"{name}:of={policy.of}"
        found.append(Entry(str(policy), told, stage_of(policy), share))
    return found


def stage_of(policy: Policy) -> str:
    """When a policy first acts, one of `STAGES`."""
    return STAGES[min(when for action in policy.actions() for when in action.when)]


def _by_keep(kind: type[Policy]) -> Written:
    """As `keep`, and at the package's first cut unless it has the one that is usual."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]

    def written(share: float, splits: Sequence[int]) -> str:
        options = f"keep={share}"
        if "layer" in fields and splits and fields["layer"].default not in splits:
            options += f",layer={splits[0]}"
        return options

    return written


def _control(of: str) -> Written:
    keep = _by_keep(Random)
    return lambda share, splits: f"{of},{keep(share, splits)}"


def _pyramid(share: float, splits: Sequence[int]) -> str | None:
    """Stages at up to three cuts equally far apart, of which the last leaves the share."""
    ways = [
        (stages, every, layer)
        for stages, layer, every in product((2, 3), splits, range(1, max(splits, default=0) + 1))
        if all(layer + stage * every in splits for stage in range(stages))
    ]
    if not ways:
        return None
    stages, every, layer = max(ways, key=lambda way: (way[0], way[1], -way[2]))
    keep = math.ceil(share ** (1 / stages) * 1e4) / 1e4
    return f"layer={layer},every={every},stages={stages},keep={keep}"


def _rated(share: float, splits: Sequence[int]) -> str | None:
    """Stages at up to three cuts, the first ones, of which the last leaves the share."""
    layers = sorted(splits)[:3]
    keeps = [f"{share ** ((n + 1) / len(layers)):.4f}" for n in range(len(layers))]
    return f"layers={'/'.join(map(str, layers))},keep={'/'.join(keeps)}" if layers else None


def _mass(share: float, _: Sequence[int]) -> str:
    """ZipVL has no budget: the mass of attention that leaves about the share on avl-tiny."""
    return f"tau={MASSES[share]}"


MASSES = {0.5: 0.963, 0.3333: 0.911, 0.1111: 0.65, 0.0556: 0.42}
WRITTEN: Mapping[str, Written] = {"pyramiddrop": _pyramid, "sparsevlm": _rated, "zipvl": _mass}

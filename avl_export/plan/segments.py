"""Where a decoder is cut into graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from avl_export.families import Family
from avl_export.graph.trace import deepstack_layers
from avl_export.options import Options, OptionsError
from avl_plugins.graph_io import LAYER_KINDS
from avl_plugins.policies import parse
from avl_plugins.schema import COMPUTED, ROW_TYPES
from avl_runtime.package.manifest import Segment

SPLIT = 2  # layers before FastV's usual cut


def cut(options: Options, family: Family, dtype: str) -> tuple[Segment, ...]:
    """The decoder's graphs; the default policy finds the cut that it needs.

    Those for a CPU, which are the ones that compute in fp32, may keep rows in other ways as well.

    Raises:
        OptionsError: the decoder cannot be cut so, or not as the default policy needs it.
    """
    layers = family.decoder.dims.num_layers
    actions = parse(options.policy).actions()
    needed = {action.before for action in actions if action.before is not None}
    after = options.split
    if after is None:
        usual = _usual(family.decoder.kinds, family.decoder.dims.sources)
        after = tuple(sorted(usual | needed))
    for option, wrong in (
        ("--policy", sorted(n for n in needed if n >= layers)),
        ("--split", [n for n in after if not 1 <= n < layers]),
    ):
        if wrong:
            allowed = f"layers from 1 to {layers - 1} for a model of {layers} layers"
            raise OptionsError(
                f"{option}: expected {allowed if layers > 1 else 'no cut in a model of one layer'},"
                f" found {','.join(map(str, wrong))}; choose others or leave {option} out"
            )
    if missing := sorted(needed.difference(after)):
        named = f"layer{'s' * (len(missing) > 1)} {','.join(map(str, missing))}"
        raise OptionsError(
            f"--split: expected {named} among them, as --policy {options.policy} drops tokens "
            f"there, found {','.join(map(str, after))}; add what is missing or leave --split out"
        )
    bounds = (0, *after, layers)
    option = "--split" if options.split else "--policy"
    _check_shared(family.decoder.dims.sources, bounds, option)
    _check_rows(family.decoder.kinds, bounds, option)
    sizes = {family.decoder.dims.head_size(layer) for layer in range(layers)}
    fitting = [one for one in ROW_TYPES.values() if all(map(one.fits, sizes))]
    others = [one.name for one in fitting if one != COMPUTED]
    kept = others if dtype == "fp32" else []
    return tuple(
        Segment(
            f"decoder.{number}.onnx",
            first,
            last,
            deepstack_layers(family, first, last),
            family.decoder.kinds[first:last],
            tuple((name, f"decoder.{number}.{name}.onnx") for name in kept),
        )
        for number, (first, last) in enumerate(pairwise(bounds))
    )


def _usual(kinds: Sequence[str], sources: Mapping[int, int]) -> set[int]:
    """The usual cut: the first one from `SPLIT` on with layers that keep rows on both sides.

    Rows that later layers read are on the same side as these.
    """
    rows = _row_layers(kinds)
    last = min(rows[-1], *sources.values()) if sources else rows[-1]
    fits = range(max(SPLIT, rows[0] + 1), last + 1)
    if fits:
        return {fits[0]}
    return {last} if last > rows[0] else set()


def _check_rows(kinds: Sequence[str], bounds: Sequence[int], option: str) -> None:
    """Refuse graphs without a layer that keeps rows: there is nothing that they could rank by.

    Raises:
        OptionsError: there would be one.
    """
    rows = _row_layers(kinds)
    for first, last in pairwise(bounds):
        if not any(first <= layer < last for layer in rows):
            raise OptionsError(
                f"{option}: expected a layer of attention in each part of the decoder, which has "
                f"some at {', '.join(map(str, rows))}, found none in layers {first} to "
                f"{last - 1}; cut after others, or leave {option} out"
            )


def _check_shared(sources: Mapping[int, int], bounds: Sequence[int], option: str) -> None:
    """Refuse to cut between a layer and those that read its rows.

    Raises:
        OptionsError: there would be such a cut.
    """
    for layer, source in sources.items():
        found = [cut for cut in bounds if source < cut <= layer]
        if found:
            raise OptionsError(
                f"{option}: expected no cut between layer {source} and layer {layer}, which reads "
                f"its keys and values, found one after layer {found[0]}; cut after layer "
                f"{min(sources.values())} or before, or leave {option} out"
            )


def _row_layers(kinds: Sequence[str]) -> list[int]:
    return [layer for layer, kind in enumerate(kinds) if LAYER_KINDS[kind].has_rows]

"""What adapter_config.json says, and which adapters can be merged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl_export.checkpoint.json_files import read_object
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_export.checkpoint.weight_files import ADAPTER_CONFIG as CONFIG

# What changes how an adapter computes so that no merged weight stands for it, or none that this
# knows how to make.
UNSUPPORTED = {
    "alora_invocation_tokens": "works behind certain tokens only (aLoRA)",
    "arrow_config": "routes between adapters (Arrow)",
    "kasa_config": "changes the base's weights (KaSA)",
    "layer_replication": "repeats layers of the base",
    "megatron_config": "is split over devices (Megatron)",
    "monteclora_config": "samples its weights (MonteCLoRA)",
    "target_parameters": "changes parameters of experts",
    "trainable_token_indices": "trains single rows of the embedding",
    "use_bdlora": "is block-diagonal (BD-LoRA)",
    "use_qalora": "pools its inputs (QA-LoRA)",
}
# Initialisations that take a part out of the base's weights, which the adapter then holds.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """How a LoRA adapter is scaled.

    Attributes:
        rank: where `rank_pattern` has no other, by regular expressions of module names.
        alpha: where `alpha_pattern` has no other.
        root: whether the scale is alpha / sqrt(rank) (rsLoRA), not alpha / rank.
        dora: whether rows have magnitudes of their own.
        ties: whether what changes the embedding shall change a tied output matrix too.
    """

    folder: Path
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    root: bool
    dora: bool
    ties: bool

    def rank_of(self, modules: Sequence[str]) -> int:
        """The rank of a module, which `modules` are names of in this and older versions."""
        return int(_matching(self.rank_pattern, modules, self.rank))

    def scale_of(self, modules: Sequence[str]) -> float:
        """What B A is multiplied with."""
        rank = self.rank_of(modules)
        alpha = float(_matching(self.alpha_pattern, modules, self.alpha))
        return alpha / (math.sqrt(rank) if self.root else rank)


def read_config(folder: Path) -> LoraConfig:
    """The configuration of the adapter in `folder`.

    Raises:
        CheckpointError: there is none, or it is of no LoRA that can be merged.
    """
    path = folder / CONFIG
    raw = read_object(path)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{path}: expected a peft_type of LORA, found {str(kind)[:40]!r}; merge the adapter "
            "with PEFT (merge_and_unload) and export the merged model"
        )
    for name, what in UNSUPPORTED.items():
        if raw.get(name):
            raise CheckpointError(
                f"{path}: expected a LoRA that can be merged into weights, found {name}, which "
                f"{what}; export the base alone, or a model that PEFT has merged"
            )
    begun = raw.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        raise CheckpointError(
            f"{path}: expected an adapter of the base's own weights, found init_lora_weights "
            f"{begun[:40]!r}, which changes them; save it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
    if not _is_rank(rank) or not _is_number(alpha):
        raise CheckpointError(
            f"{path}: expected r to be a positive whole number and lora_alpha a number, found "
            f"{str(rank)[:40]!r} and {str(alpha)[:40]!r}; fetch the adapter again"
        )
    return LoraConfig(
        folder=folder,
        rank=rank,
        alpha=alpha,
        rank_pattern=_pattern(raw, "rank_pattern", path),
        alpha_pattern=_pattern(raw, "alpha_pattern", path),
        root=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        ties=bool(raw.get("ensure_weight_tying")),
    )


def _pattern(raw: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    """Numbers by regular expressions, as PEFT matches them with the ends of module names."""
    found = raw.get(name) or {}
    fits = _is_rank if name == "rank_pattern" else _is_number
    try:
        if not isinstance(found, dict) or not all(fits(value) for value in found.values()):
            raise ValueError(str(found))
        for pattern in found:
            re.compile(pattern)
    except (ValueError, re.error) as error:
        raise CheckpointError(
            f"{path}: expected {name} to give numbers by regular expressions, found "
            f"{str(error)[:60]}; fetch the adapter again"
        ) from None
    return found


def _matching(patterns: Mapping[str, float], modules: Sequence[str], default: float) -> float:
    for module in modules:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    return default


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

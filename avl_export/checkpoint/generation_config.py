"""A checkpoint's generation settings: what of them becomes the package's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_plugins.errors import AvlError, quoted
from avl_runtime.generate.options import Options
from avl_runtime.package.generation_defaults import NEUTRAL, GenerationDefaults

FILE = "generation_config.json"
TOP_K = 50  # what `generate` draws among unless it is told otherwise
SAMPLED = ("temperature", "top_k", "top_p", "min_p")
RULES = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "suppress_tokens",
    "begin_suppress_tokens",
)
# What changes a reply, and the values with which it does not: no package can hold it.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "diversity_penalty": (0,),
    "guidance_scale": (1,),
    "sequence_bias": (),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "token_healing": (False,),
    "max_time": (),
}
UNSUPPORTED_SAMPLED: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
}


def generation_defaults(checkpoint: Checkpoint) -> tuple[GenerationDefaults, str | None]:
    """The package's defaults, as `generate` would take them, and a line about what is left out.

    Settings for sampling count where do_sample is set. Old checkpoints have all of them in
    config.json, which `generate` reads where there is no file for them.
    """
    settings, file = checkpoint.read_json(FILE), FILE
    if not settings and not (checkpoint.folder / FILE).is_file():
        settings, file = checkpoint.config, "config.json"
    wanted = {name: settings[name] for name in RULES if settings.get(name) is not None}
    stops = settings.get("stop_strings")
    if stops is not None:
        wanted["stop"] = stops
    beyond = dict(UNSUPPORTED)
    if settings.get("do_sample") is True:
        wanted |= {"temperature": 1.0, "top_k": TOP_K}
        wanted |= {name: settings[name] for name in SAMPLED if settings.get(name) is not None}
        beyond |= UNSUPPORTED_SAMPLED
    if wanted.get("min_new_tokens") is not None:
        wanted.pop("min_length", None)  # which it overrides
    kept, refused = _kept(wanted)
    left_out = [
        f"{name} {quoted(settings[name], 40)}"
        for name, neutral in beyond.items()
        if settings.get(name) is not None and settings[name] not in neutral
    ]
    left_out += [f"{name} {quoted(wanted[name], 40)}" for name in refused]
    if not left_out:
        return kept, None
    return kept, f"{file}: not supported, and left out of the package: {', '.join(left_out)}"


def _kept(wanted: Mapping[str, Any]) -> tuple[GenerationDefaults, list[str]]:
    """Defaults of the values that make sense, and the names of the others."""
    values, refused = {}, []
    for name, value in wanted.items():
        try:
            values[name] = getattr(Options.of({name: value}).over(NEUTRAL), name)
        except AvlError:
            refused.append(name)
    return GenerationDefaults(**values), refused

"""What a package holds, from its manifest alone: nothing is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

from avl_plugins.errors import PolicyError
from avl_plugins.policies import USUAL, Policy, parse
from avl_plugins.schema import ROW_TYPES
from avl_runtime.machine.sizes import size_text
from avl_runtime.package.dims import Experts
from avl_runtime.package.generation_defaults import NEUTRAL
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import Package
from avl_runtime.package.quantization import EXPERTS, Quantization

ANSWERING = 7  # package format from which on every last graph gives logits of several rows


def describe(package: Package) -> dict[str, Any]:
    """The package as one JSON object."""
    manifest = package.manifest
    weights, shards = manifest.weights, manifest.weights.shards
    checked = manifest.checked_rows
    return {
        "package": str(package.folder),
        "model": manifest.model,
        "family": manifest.family,
        "dtype": manifest.dtype,
        "layers": manifest.dims.num_layers,
        "experts": _experts(manifest.dims.experts),
        "kv": row_types(manifest),
        "checked_rows": None if checked is None else dataclasses.asdict(checked),
        "split": list(manifest.splits()),
        "context": manifest.dims.max_positions,
        "policies": [name for name in USUAL if _takes(manifest, name)],
        "default_policy": manifest.default_policy,
        "generation": dataclasses.asdict(manifest.generation),
        "chat_template": manifest.chat_template is not None,
        "image": manifest.image.layout.kind,
        "video": None if manifest.video is None else manifest.video.layout.kind,
        "vision_attention": manifest.vision_attention,
        "restores": manifest.restores,
        "weights": "copied" if weights.folder is None else "linked",
        "weights_folder": str(package.weights_folder),
        "weights_found": all((package.weights_folder / one.path).is_file() for one in shards),
        "weight_bytes": sum(shard.size for shard in shards),
        "package_bytes": sum(file.size for file in manifest.files),
        "quantization": _quantization(manifest.quantization),
        "engines": [
            {
                "backend": one.backend,
                "version": one.version,
                "targets": list(one.targets),
                "platform": one.platform,
                "wants": one.wants(),
                "bytes": sum(file.size for file in one.files),
            }
            for one in manifest.engines
        ],
        "format_version": manifest.format_version,
        "producer": manifest.producer,
    }


def check_vision(policy: Policy, manifest: Manifest) -> None:
    """Refuse a policy that chooses by what the package's encoder does not tell.

    Raises:
        PolicyError: it does.
    """
    if policy.reads_vision and not manifest.vision_attention:
        raise PolicyError(
            f"{policy}: expected a package whose encoder tells what attention its tokens receive, "
            "found one that does not; export with --vision-attention, or use divprune"
        )


def check_bias(policy: Policy, manifest: Manifest) -> None:
    """Refuse a policy that biases attention, if the package's graphs cannot.

    Raises:
        PolicyError: it does, and they cannot.
    """
    if policy.biases and not manifest.restores:
        raise PolicyError(
            f"{policy}: expected a package whose attention can be biased, found one that cannot; "
            "export with --restore, or use another policy"
        )


def info_text(found: dict[str, Any]) -> str:
    """The same for people."""
    images = f"images ({found['image']})"
    images += "" if found["video"] is None else f" and videos ({found['video']})"
    images += ", the encoder's attention too" if found["vision_attention"] else ""
    split = ", ".join(map(str, found["split"])) or "no layer"
    weights = f"{size_text(found['weight_bytes'])}, "
    if found["weights"] == "copied":
        weights += "in the package"
    else:
        weights += f"linked to {found['weights_folder']}"
    if not found["weights_found"]:
        weights += ", which lacks some of them"
    template = "yes" if found["chat_template"] else "none, prompts are taken as they stand"
    layers = f"{found['layers']} layers{_mixed(found['experts'])}"
    biased = ", attention takes RESTORE's bias" if found["restores"] else ""
    lines = [
        ("model", f"{found['model']} ({found['family']}), takes {images}"),
        ("decoder", f"{layers}, cut after {split}, in {found['dtype']}{biased}"),
        ("cached rows", f"in {_any_of(found['kv'])} (--kv){_checked(found['checked_rows'])}"),
        ("context", f"{found['context']} tokens"),
        ("policies", f"{', '.join(found['policies'])} (default: {found['default_policy']})"),
        ("generation", _generation(found["generation"])),
        ("chat template", template),
        ("weights", weights),
        ("quantized", _quantized(found["quantization"], found["experts"])),
        ("engines", "; ".join(one["wants"] for one in found["engines"]) or "none"),
        ("made by", f"{found['producer']}, package format {found['format_version']}"),
    ]
    return "\n".join(f"{name + ':':<15}{value}" for name, value in lines)


def _checked(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"; {found['rows']} unless said, harmless in {found['questions']} questions of avl-tune"


def _any_of(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def row_types(manifest: Manifest) -> list[str]:
    """The types that cached rows may have: the one computed in, and those with graphs."""
    graphs = [[name for name, _ in segment.kept] for segment in manifest.segments]
    shared = [name for name in ROW_TYPES if graphs and all(name in one for one in graphs)]
    return [manifest.dtype, *shared]


def _takes(manifest: Manifest, policy: str) -> bool:
    """Whether a policy drops tokens only where the decoder is cut, and drafts where it may."""
    found = parse(policy)
    try:
        found.check(manifest.splits(), manifest.dims.num_layers)
        check_vision(found, manifest)
        check_bias(found, manifest)
    except PolicyError:
        return False
    return found.drafting() is None or manifest.format_version >= ANSWERING


def _quantization(found: Quantization | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "method": found.method,
        "bits": found.bits,
        "block_size": found.block_size,
        "parts": list(found.parts),
    }


def _generation(values: dict[str, Any]) -> str:
    """Greedy or not, and whatever else is set."""
    neutral = dataclasses.asdict(NEUTRAL)
    told = [
        f"{name} {_short(value)}"
        for name, value in values.items()
        if value != neutral[name] and name != "temperature"
    ]
    way = f"drawn at temperature {values['temperature']:g}" if values["temperature"] else "greedy"
    return ", ".join([way, *told])


def _short(value: object) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 4:
        return f"{len(value)} of them"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _experts(found: Experts | None) -> dict[str, int] | None:
    if found is None:
        return None
    return {"layers": len(found.layers), "count": found.count, "chosen": found.chosen}


def _mixed(experts: dict[str, int] | None) -> str:
    if experts is None:
        return ""
    return (
        f", in {experts['layers']} of which a token goes through {experts['chosen']} of "
        f"{experts['count']} experts"
    )


def _quantized(found: dict[str, Any] | None, experts: dict[str, int] | None) -> str:
    if found is None:
        return "no"
    whole = experts is None or EXPERTS in found["parts"]
    block, but = found["block_size"], "" if whole else ", but no experts"
    scales = f"blocks of {block}" if block else "one scale an output"
    return f"int{found['bits']} ({found['method']}, {scales}): {', '.join(found['parts'])}{but}"

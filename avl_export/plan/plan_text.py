"""An export's plan and its outcome, for people."""

from __future__ import annotations

from typing import Any

from avl_export.quantize.report import kept_lines
from avl_runtime.machine.sizes import size_text


def plan_text(report: dict[str, Any]) -> str:
    """What an export would do; `report` is `Plan.report()` and what the package replaces."""
    lines = [
        f"{report['model']} ({report['family']}, {report['layers']} layers, "
        f"images {report['image']}, videos {report['video'] or 'none'}) -> {report['out']}",
        f"computes in {report['dtype']} ({report['why_dtype']}), default policy "
        f"{report['default_policy']}, split after {report['split']}"
        f"{', the encoder tells attention' if report['vision_attention'] else ''}"
        f"{', attention takes a bias' if report['restore'] else ''}",
        "",
        f"{'component':<12} {'file':<34} {'tensors':>7} {'weights':>10}",
    ]
    lines += [
        f"{c['name']:<12} {c['file']:<34} {c['tensors']:>7} {size_text(c['bytes']):>10}"
        for c in report["components"]
    ]
    lines += [
        "",
        f"weights: {size_text(report['weight_bytes'])} read from {report['weights']}"
        if not report["copied_bytes"]
        else f"weights: {size_text(report['copied_bytes'])} copied into the package",
        *quantization_text(report["quantization"]),
        f"would write: {', '.join(report['files'])}",
        *_place_text(report["replaces"]),
        *_triton_text(report.get("triton")),
        f"check against transformers: {'yes' if report['check'] else 'no'}",
    ]
    return "\n".join([*lines, *_missing_text(report)])


def _place_text(found: dict[str, Any]) -> list[str]:
    """Lines about what lies where the package would go."""
    lines = ["would replace the package there"] if found["package"] else []
    if found["others"]:
        lines.append(f"needs --force, which would also remove {', '.join(found['others'])}")
    return lines


def _triton_text(model: str | None) -> list[str]:
    return [] if model is None else [f"would add: {model}, a model for Triton Inference Server"]


def quantization_text(found: dict[str, Any] | None) -> list[str]:
    """Lines about quantized weights, none without any."""
    if found is None:
        return []
    block, parts = found["block_size"], ", ".join(found["parts"])
    lines = [
        f"quantized: {found['tensors']} weights of {parts} to int{found['bits']} "
        f"({found['method']}, {f'blocks of {block}' if block else 'one scale an output'}), "
        f"{size_text(found['bytes_before'])} -> {size_text(found['bytes_after'])}"
    ]
    if found["zero_points"]:
        lines.append("zero points: kept from the checkpoint; TensorRT does not take them")
    lines += kept_lines(found["kept"], found["kept_in"])
    if found["fitting_block_size"] is not None:
        lines.append(f"--block-size {found['fitting_block_size']} would quantize these too")
    return lines


def _missing_text(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["config"] == "built-in":
        lines.append(
            f"config: the one avl knows of {report['checkpoint']}, which is not on this machine"
        )
    if report["missing"]:
        lines.append(f"missing: {', '.join(report['missing'])}")
    if report["download_bytes"]:
        size = size_text(report["download_bytes"])
        lines.append(f"an export would first fetch {size} of weights (by the config) from the hub")
    elif report["missing"]:
        lines.append("an export needs the missing files in the checkpoint's folder")
    return lines

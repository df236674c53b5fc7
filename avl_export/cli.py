"""avl-export: turn a checkpoint into an avl package."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from avl_export import aliases
from avl_export.checkpoint import model_name
from avl_export.layer_table import HEADER, Row
from avl_export.options import ALSO, BLOCK_SIZES, METHODS, Options, OptionsError
from avl_plugins.errors import AvlError

NEEDED = ("torch", "transformers", "onnx", "onnxscript", "safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    _check_usage(parser, parsed)
    if threading.current_thread() is threading.main_thread():
        # A polite kill shall clean up as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(parsed)
    except AvlError as error:
        print(f"avl-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("avl-export: stopped, no package was left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our results has gone, as in `avl-export ... | head`
        sys.stdout = None
        return 1


def _run(parsed: argparse.Namespace) -> int:
    if parsed.package is not None:
        return _recheck(parsed)
    model = parsed.model or "avl-tiny"
    options = Options(
        model=model,
        out=parsed.out or default_out(model),
        policy=parsed.policy,
        split=parsed.split,
        dtype=parsed.dtype,
        copy=parsed.copy,
        check=parsed.check,
        layers=parsed.layers,
        revision=parsed.revision,
        dry_run=parsed.dry_run,
        hash_weights=parsed.hash_weights,
        quantize=parsed.quantize,
        quantize_also=parsed.quantize_also,
        quantize_method=parsed.quantize_method,
        block_size=parsed.block_size,
    )
    _check_extra()
    from avl_export.plan import make_plan

    plan = make_plan(options)
    report: dict[str, Any] = plan.report()
    if parsed.dry_run:
        print(json.dumps(report) if parsed.json else _plan_text(report))
        return 0
    from avl_export.export import export

    result = export(plan, _teller(parsed.json))
    if parsed.json:
        report["package_bytes"] = result.nbytes
        report["largest_logit_difference"] = result.report.logits if result.report else None
        report["layer_check"] = [asdict(row) for row in result.layers]
        print(json.dumps(report))
        return 0
    print(f"{result.folder}: {_size(result.nbytes)}, {report['dtype']} ({report['why_dtype']})")
    for line in _quantization_text(report["quantization"]):
        print(line)
    if result.report:
        print(result.report.line())
    return 0


def _recheck(parsed: argparse.Namespace) -> int:
    _check_extra()
    from avl_export.recheck import recheck

    rows = recheck(parsed.package, parsed.model, _teller(parsed.json))
    if parsed.json:
        print(json.dumps({"package": str(parsed.package), "layer_check": list(map(asdict, rows))}))
    return 0


def _teller(quiet: bool) -> Callable[[Row], None]:
    """Prints the rows of a check by layers as they come, below their header."""
    begun = False

    def tell(row: Row) -> None:
        nonlocal begun
        if quiet:
            return
        if not begun:
            print(HEADER)
        begun = True
        print(row.line(), flush=True)

    return tell


def _check_extra() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise OptionsError(
            f"expected the packages of the export extra, found no {', '.join(missing)}; "
            "run: pip install 'avl[export]'"
        )


def _check_usage(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuse options that a check of a package would not look at."""
    if parsed.package is None:
        return
    read = {"package", "layers", "check", "model", "json"}
    for name, value in vars(parsed).items():
        if name not in read and value != parser.get_default(name):
            parser.error(
                f"--package checks what is there, --{name.replace('_', '-')} is for exports"
            )
    if not parsed.layers or parsed.check is False:
        parser.error("--package needs --layers: a package is checked layer by layer")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avl-export", description="Turn a vision-language checkpoint into an avl package."
    )
    add = parser.add_argument
    add("--model", help=f"folder, hub id, or {aliases.names()} (default: avl-tiny)")
    add("--revision", help="branch, tag or commit of a hub id (default: main)")
    add("--out", type=Path, help="package folder (default: ./<name>.avl)")
    add("--policy", default="dense", help="default policy of the package (default: dense)")
    add("--split", type=_layers, default=(2,), help="layers to cut after (default: 2)")
    add("--dtype", choices=("auto", "fp32", "fp16", "bf16"), default="auto")
    add(
        "--quantize",
        choices=("none", "int8", "int4"),
        default="none",
        help="store the linears of the decoder's layers as codes of 8 or 4 bits",
    )
    add(
        "--quantize-also",
        type=_names,
        default=(),
        metavar="PARTS",
        help=f"other parts to quantize: {','.join(ALSO)}",
    )
    add(
        "--block-size",
        type=int,
        choices=BLOCK_SIZES,
        help="inputs that share a scale (default: 64 for int4, all of an output's for int8)",
    )
    add(
        "--quantize-method",
        choices=METHODS,
        help="how scales are chosen (default: clip for int4, rtn for int8)",
    )
    add("--copy", action="store_true", help="copy the weights: a package that can be moved")
    add("--hash-weights", action="store_true", help="record SHA-256 of all linked weights")
    add("--dry-run", action="store_true", help="print the plan, fetch no weights, write nothing")
    add(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compare with transformers (default: up to 1 GiB of weights)",
    )
    add("--layers", action="store_true", help="check layer by layer, in little memory")
    add("--package", type=Path, metavar="DIR", help="check this package, with --layers")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected layer numbers as 2 or 2,8,16, found {text!r}"
        ) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def default_out(model: str) -> Path:
    """A place in the working directory, or beside the checkpoint for one who works in it."""
    out = Path(f"{model_name(model)}.avl")
    folder = Path(model).expanduser().resolve()
    inside = folder.is_dir() and Path.cwd().is_relative_to(folder)
    return folder.parent / out if inside else out


def _plan_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['model']} ({report['family']}, {report['layers']} layers, "
        f"images {report['image']}, videos {report['video'] or 'none'}) -> {report['out']}",
        f"computes in {report['dtype']} ({report['why_dtype']}), default policy "
        f"{report['default_policy']}, split after {report['split']}",
        "",
        f"{'component':<12} {'file':<34} {'tensors':>7} {'weights':>10}",
    ]
    lines += [
        f"{c['name']:<12} {c['file']:<34} {c['tensors']:>7} {_size(c['bytes']):>10}"
        for c in report["components"]
    ]
    lines += [
        "",
        f"weights: {_size(report['weight_bytes'])} read from {report['weights']}"
        if not report["copied_bytes"]
        else f"weights: {_size(report['copied_bytes'])} copied into the package",
        *_quantization_text(report["quantization"]),
        f"would write: {', '.join(report['files'])}",
        f"check against transformers: {'yes' if report['check'] else 'no'}",
    ]
    return "\n".join([*lines, *_missing_text(report)])


def _quantization_text(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    block, parts = found["block_size"], ", ".join(found["parts"])
    lines = [
        f"quantized: {found['tensors']} weights of {parts} to int{found['bits']} "
        f"({found['method']}, {f'blocks of {block}' if block else 'one scale an output'}), "
        f"{_size(found['bytes_before'])} -> {_size(found['bytes_after'])}"
    ]
    if found["zero_points"]:
        lines.append("zero points: kept from the checkpoint; TensorRT does not take them")
    reasons: dict[str, int] = {}
    for why in found["kept"].values():
        reasons[why] = reasons.get(why, 0) + 1
    lines += [f"not quantized: {count} weights whose {why}" for why, count in reasons.items()]
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
        size = _size(report["download_bytes"])
        lines.append(f"an export would first fetch {size} of weights (by the config) from the hub")
    elif report["missing"]:
        lines.append("an export needs the missing files in the checkpoint's folder")
    return lines


def _size(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())

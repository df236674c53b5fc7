"""avl-export: turn a checkpoint into an avl package."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avl_export.check.cli import teller
from avl_export.checkpoint import aliases
from avl_export.checkpoint.adapters.choice import adapted_name
from avl_export.checkpoint.checkpoint import folder_of, model_name
from avl_export.options import ALSO, BLOCK_SIZES, METHODS, Options, OptionsError
from avl_export.plan.place import examine
from avl_export.plan.plan_text import plan_text, quantization_text
from avl_export.plan.survey import survey
from avl_export.progress import COMMAND
from avl_plugins.errors import AvlError, quoted
from avl_runtime.cli.lists import path_name, policy, some_name
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.status import exit_status
from avl_runtime.machine.installation import shortage
from avl_runtime.machine.sizes import size_text
from avl_runtime.serve.inference_server.repository import check_repository, write_repository

SUFFIX = ".avl"  # of packages' names, which models are called without


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    _check_usage(parser, parsed)
    COMMAND.set("avl-export")
    try:
        options = _options(parsed)
    except AvlError as error:
        parser.error(str(error))
    return exit_status("avl-export", lambda: _run(parsed, options), "no package was left behind")


def _options(parsed: argparse.Namespace) -> Options:
    model = "avl-tiny" if parsed.model is None else parsed.model
    if parsed.model is None and parsed.lora is not None:
        model = str(parsed.lora)  # an adapter's folder names its base where nobody else does
    return Options(
        model=model,
        out=parsed.out or default_out(model, parsed.lora),
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
        force=parsed.force,
        lora=parsed.lora,
        mmproj=parsed.mmproj,
        config=parsed.config,
        vision_attention=parsed.vision_attention,
        restore=parsed.restore,
    )


def _run(parsed: argparse.Namespace, options: Options) -> int:
    lacking = shortage("export")
    if lacking is not None:
        raise OptionsError(lacking)
    served = _served(options)
    model = parsed.triton and check_repository(parsed.triton, served, options.out)
    checkpoint = survey(options)
    from avl_export.plan.plan import make_plan

    plan = make_plan(options, checkpoint)
    report: dict[str, Any] = plan.report()
    if model is not None:
        report["triton"] = str(model)
    if parsed.dry_run:
        for note in plan.notes:
            _say(note)
        report["replaces"] = asdict(examine(options.out))
        print(json.dumps(report) if parsed.json else plan_text(report))
        return 0
    from avl_export.export import export

    result = export(plan, teller(parsed.json), _say)
    if result.removed:
        names = ", ".join(result.removed)
        _say(f"removed from {result.folder}: {names}")
    if parsed.triton is not None:
        write_repository(parsed.triton, served, result.folder)
    if parsed.json:
        report["removed"] = list(result.removed)
        report["package_bytes"] = result.nbytes
        report["largest_logit_difference"] = result.report.logits if result.report else None
        report["layer_check"] = [asdict(row) for row in result.layers]
        print(json.dumps(report))
        return 0
    print(f"{result.folder}: {size_text(result.nbytes)}, {report['dtype']} ({report['why_dtype']})")
    for line in quantization_text(report["quantization"]):
        print(line)
    if result.report:
        print(result.report.line())
    if parsed.triton is not None:
        print(f"{report['triton']}: a model for Triton Inference Server, with the package's path")
    return 0


def _served(options: Options) -> str:
    """What a server calls the package."""
    try:
        return options.out.resolve().name.removesuffix(SUFFIX)
    except (OSError, RuntimeError):  # links in a circle, of which `survey` tells
        return options.out.name.removesuffix(SUFFIX)


def _say(line: str) -> None:
    print(f"avl-export: {line}", file=sys.stderr)


def _check_usage(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuse options that nothing would look at."""
    for option in ("check", "layers"):
        if parsed.dry_run and getattr(parsed, option):
            parser.error(f"--dry-run makes nothing that --{option} could look at")
    for option in ("package", "backend"):
        if getattr(parsed, option) is not None:
            parser.error(
                f"--{option}: expected an option of avl-export, found one of avl-check, which "
                "compares packages that are there; use avl-check PACKAGE --layers, or --backend B"
            )


def make_parser() -> CommandParser:
    """The parser of avl-export."""
    parser = CommandParser(
        "avl-export",
        "Turn a vision-language checkpoint into an avl package.",
        "avl-export --model avl-tiny --out avl-tiny.avl",
    )
    add = parser.add_argument
    add(
        "--model",
        metavar="MODEL",
        help="folder, an adapter's folder, GGUF file, hub id, or "
        f"{aliases.names()} (default: avl-tiny)",
    )
    add(
        "--mmproj",
        metavar="FILE",
        type=path_name,
        help="GGUF file of the encoder and projector, where MODEL is one too",
    )
    add(
        "--config",
        metavar="MODEL",
        type=some_name,
        help="folder or hub id of the model that a GGUF file was made from: its configuration, "
        "tokenizer and processor count (default: what the files tell)",
    )
    add(
        "--revision",
        metavar="NAME",
        type=some_name,
        help="branch, tag or commit of a hub id (default: main)",
    )
    add("--out", metavar="DIR", type=_place, help="package folder (default: ./<name>.avl)")
    add(
        "--force",
        action="store_true",
        help="replace a package together with engines and other files in its folder",
    )
    add(
        "--policy",
        type=policy,
        default="dense",
        help="what the package uses where nobody says another (default: dense)",
    )
    add(
        "--split",
        metavar="LAYERS",
        type=_layers,
        help="layers to cut after, as 2 or 2,8 (default: 2, or 1 in a decoder of two layers)",
    )
    add(
        "--dtype",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="what the graphs compute in (default: auto, what fits the weights and the machine)",
    )
    add(
        "--quantize",
        choices=("none", "int8", "int4"),
        default="none",
        help="store the linears of the decoder's layers as codes of 8 or 4 bits (default: none)",
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
    add(
        "--vision-attention",
        action="store_true",
        help="have the encoder tell the attention that its tokens receive, for policies such as "
        "visionzip",
    )
    add(
        "--restore",
        action="store_true",
        help="have attention take a bias, for policies with positions=restore and for caac",
    )
    add("--lora", type=path_name, metavar="DIR", help="merge the LoRA adapter in this folder")
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
    for option in ("--package", "--backend"):  # once spelt so, see _check_usage
        add(option, help=argparse.SUPPRESS)
    add(
        "--triton",
        type=path_name,
        metavar="DIR",
        help="add a model with the package to a repository of Triton Inference Server",
    )
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected layer numbers as 2 or 2,8,16, found {quoted(text)}"
        ) from None


def _place(text: str) -> Path:
    """A path as shells leave it: `--out=~/model.avl` comes with its tilde."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder, found an empty name")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home of nobody
        return Path(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def default_out(model: str, lora: Path | None = None) -> Path:
    """A place in the working directory, or beside the checkpoint for one who works in it."""
    name = model_name(model)
    out = Path(f"{name if lora is None else adapted_name(name, lora)}.avl")
    folder = folder_of(model)
    if folder is None or not Path.cwd().is_relative_to(folder.resolve()):
        return out
    return folder.resolve().parent / out


if __name__ == "__main__":
    sys.exit(main())

"""avl-build: engines of a package for TensorRT or TensorRT-RTX."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from avl_runtime.cli.lists import count, path_name
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.status import exit_status
from avl_runtime.engines.estimate import cache_bytes
from avl_runtime.engines.options import CACHE_ROWS, PROMPT_ROWS, BuildError, Options
from avl_runtime.engines.plan import Plan, make_plan
from avl_runtime.engines.run import Built, build, examine
from avl_runtime.machine.installation import install_extra
from avl_runtime.machine.probe import probe
from avl_runtime.machine.sizes import size_text
from avl_runtime.package.engine_sets import gpu_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    try:
        options = Options(
            package=parsed.package,
            backend=parsed.backend,
            targets=parsed.compute_capability,
            max_prompt=parsed.max_prompt,
            max_context=parsed.max_context,
            max_batch=parsed.max_batch,
            plugins=parsed.plugins,
            dry_run=parsed.dry_run,
        )
    except BuildError as error:
        parser.error(str(error))
    return exit_status("avl-build", lambda: _run(parsed, options), "no engine was left behind")


def _run(parsed: argparse.Namespace, options: Options) -> int:
    plan = make_plan(options, probe())
    if plan.package.manifest.dtype == "fp32":
        print(
            "avl-build: this package computes in fp32; engines of one exported with --dtype fp16 "
            "take half the memory",
            file=sys.stderr,
        )
    if options.dry_run:
        built = examine(plan)
        report = _report(plan, built)
        print(json.dumps(report) if parsed.json else _plan_text(plan, built))
        return 1 if any(one.outcome.unsupported for one in built) else 0
    made, built = build(plan)
    if parsed.json:
        print(json.dumps({**_report(plan, built), "engine_set": dataclasses.asdict(made)}))
        return 0
    print(f"{plan.package.folder / made.folder}: needs {made.wants()}; {plan.why}")
    for one in built:
        outcome = one.outcome
        print(
            f"{one.graph:<18} {size_text(outcome.size):>10},"
            f" weights {size_text(outcome.weight_bytes):>10}, {outcome.seconds:6.1f} s,"
            f" peak {size_text(outcome.peak_rss_bytes)}"
        )
    return 0


def make_parser() -> CommandParser:
    """The parser of avl-build."""
    parser = CommandParser(
        "avl-build",
        "Build engines of a package made by avl-export and add them to it.",
        "avl-build llava.avl --backend tensorrt-rtx --dry-run",
        "TensorRT-RTX builds on any machine, also without a GPU; TensorRT builds for the GPU that "
        "it runs on.",
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", type=path_name, help="folder with avl.json")
    add("--backend", choices=("tensorrt", "tensorrt-rtx"), required=True, help="what to build for")
    add(
        "--compute-capability",
        metavar="89,120",
        type=_targets,
        default=(),
        help="GPUs to build for (default: TensorRT-RTX 8.0 and newer, TensorRT this machine's)",
    )
    add(
        "--max-prompt",
        metavar="N",
        type=count,
        help=f"tokens of a prompt read in one pass (default: {PROMPT_ROWS}); longer ones take more",
    )
    add(
        "--max-context",
        metavar="N",
        type=count,
        help=f"tokens that a conversation may have (default: the model's, up to {CACHE_ROWS})",
    )
    add(
        "--max-batch",
        metavar="N",
        type=count,
        default=1,
        help="sequences decoded together (default: 1)",
    )
    add(
        "--no-plugins",
        dest="plugins",
        action="store_false",
        help="build attention from standard operators where there is a plugin",
    )
    add("--dry-run", action="store_true", help="parse and check, print what would be built")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _targets(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part.replace(".", "")) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected compute capabilities as 89 or 89,120, found {text!r}"
        ) from None


def _report(plan: Plan, built: Sequence[Built]) -> dict[str, Any]:
    limits, dims = plan.limits, plan.package.manifest.dims
    return {
        "package": str(plan.package.folder),
        "backend": plan.options.backend,
        "version": plan.library.version if plan.library is not None else None,
        "targets": list(plan.targets),
        "plugins": plan.plugins,
        "why": plan.why,
        "row_block": plan.row_block,
        "limits": dataclasses.asdict(limits),
        "cache_bytes": cache_bytes(dims, limits, _item(plan)),
        "graphs": [
            {
                "graph": one.graph,
                **dataclasses.asdict(one.outcome),
                "operators": dict(one.outcome.operators),
                "layers": dict(one.outcome.layers),
                "estimate": dataclasses.asdict(one.estimate),
            }
            for one in built
        ],
    }


def _plan_text(plan: Plan, built: Sequence[Built]) -> str:
    limits, dims = plan.limits, plan.package.manifest.dims
    library = plan.library
    lines = [
        f"{plan.package.folder} for {plan.options.backend} "
        f"{library.version if library is not None else '(not installed)'}, "
        f"{gpu_words(plan.targets)}; {plan.why}",
        f"profiles: up to {limits.decode_rows} rows a decode step in batches of up to "
        f"{limits.batch}, prompts in passes of up to {limits.prompt_rows}, caches of up to "
        f"{limits.cache_rows} rows",
        "",
        f"{'graph':<18} {'weights':>10} {'engine':>10} {'scratch':>10} {'to build':>10}",
    ]
    for one in built:
        guess = one.estimate
        sizes = (one.outcome.weight_bytes, guess.engine, guess.scratch, guess.build)
        lines.append(f"{one.graph:<18} " + " ".join(f"{'~' + size_text(n):>10}" for n in sizes))
    engines = sum(one.estimate.engine for one in built)
    scratch = max((one.estimate.scratch for one in built), default=0)
    full = cache_bytes(dims, limits, _item(plan))
    lines += [
        "",
        f"on the GPU: engines ~{size_text(engines)}, scratch up to ~{size_text(scratch)}"
        f" at the largest shapes, a full dense cache {size_text(full)}",
        "",
    ]
    for one in built:
        operators = ", ".join(f"{count} {name}" for name, count in one.outcome.operators)
        lines.append(f"{one.graph}: {operators}")
        lines += [f"  not supported: {text}" for text in one.outcome.unsupported]
        if not one.outcome.checked:
            lines.append(f"  not checked: run {install_extra(plan.options.backend)}")
        elif not one.outcome.unsupported:
            lines.append("  all supported, every input is read, lengths and masks are in place")
    return "\n".join(lines)


def _item(plan: Plan) -> int:
    return 4 if plan.package.manifest.dtype == "fp32" else 2


if __name__ == "__main__":
    sys.exit(main())

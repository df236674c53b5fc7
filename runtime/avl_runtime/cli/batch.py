"""avl-batch: a file of requests, answered as avl-serve would, into a file of answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from avl_plugins.errors import shown
from avl_runtime.cli.lists import count, path_name, some_name
from avl_runtime.cli.output import STDOUT, OutputError, check_apart, check_file
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.serving import (
    add_answering,
    add_package,
    check_choices,
    limits_of,
    loading_of,
)
from avl_runtime.cli.status import exit_status
from avl_runtime.machine.installation import need


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    check_choices(parser, parsed)
    if parsed.workers is not None and parsed.ray is None:
        parser.error("--workers is for a cluster, name one with --ray")
    if parsed.copy_to is not None:
        if parsed.ray is None:
            parser.error("--copy-to is for a cluster, name one with --ray")
        if not parsed.copy_to.is_absolute():
            parser.error(
                f"--copy-to {shown(parsed.copy_to)}: expected a path from / on, as each machine "
                "has a working directory of its own"
            )
    _check_images(parser, parsed.images)
    return exit_status("avl-batch", lambda: _run(parsed), "--resume goes on")


def _check_images(parser: CommandParser, folder: Path | None) -> None:
    """Refuse a folder of pictures that is none; end with exit status 2."""
    try:
        found = "none" if folder is None or not folder.exists() else "a file"
        fits = folder is None or folder.is_dir()
    except OSError as error:
        found, fits = str(error.strerror), False
    if not fits:
        parser.error(
            f"--images {shown(folder)}: expected a folder, found {found}; name that which paths of "
            "pictures lead into"
        )


def _run(parsed: argparse.Namespace) -> int:
    need("serve", what_for="avl-batch")
    from avl_runtime.serve.batch.job import Job, together
    from avl_runtime.serve.batch.whole import answer_file
    from avl_runtime.serve.batch.workers import Cluster
    from avl_runtime.serve.http.fetch import checked_hosts
    from avl_runtime.serve.shelf import names

    if parsed.out == STDOUT:
        raise OutputError("--out: expected a file, which --resume can go on with, found stdout")
    check_file(parsed.out)
    check_apart([parsed.out], [None if parsed.questions == STDOUT else parsed.questions])
    ((name, package),) = names([parsed.package]).items()
    bodies = together(parsed.running) * parsed.max_body
    job = Job(
        name,
        package,
        loading_of(parsed),
        limits_of(parsed, bodies=bodies, queue=together(parsed.running)),
        checked_hosts(parsed.allow_url_host),
        parsed.images,
        parsed.quiet,
    )
    cluster = None if parsed.ray is None else Cluster(parsed.ray, parsed.workers, parsed.copy_to)
    done = answer_file(job, parsed.questions, parsed.out, parsed.resume, parsed.quiet, cluster)
    if done.failed or not parsed.quiet:
        print(f"avl-batch: {done.summary}", file=sys.stderr)
    return 1 if done.failed else 0


def make_parser() -> CommandParser:
    """The parser of avl-batch."""
    parser = CommandParser(
        "avl-batch",
        "Answer a file of requests as avl-serve would, requests about the same picture one after "
        "another.",
        "avl-batch avl-tiny.avl questions.jsonl --out answers.jsonl",
        "The exit status is 1 if answers are errors, too.",
    )
    add = parser.add_argument
    add_package(add, "package")
    add(
        "questions",
        metavar="QUESTIONS",
        type=path_name,
        help="JSONL, each line a request in OpenAI's batch form or an object with prompt and "
        "images; - is stdin",
    )
    add("--out", metavar="FILE", type=path_name, required=True, help="JSONL of answers, no default")
    add(
        "--resume",
        action="store_true",
        help="go on with the answers in --out, of the same questions, package and options",
    )
    add(
        "--images",
        metavar="DIR",
        type=path_name,
        help="the folder that paths of pictures lead into, and never out of (default: that of "
        "QUESTIONS; for stdin the working directory)",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        type=some_name,
        help="have workers of this Ray cluster answer, auto for the one that this machine is part "
        "of; without an address one is begun here (default: this process answers)",
    )
    add(
        "--workers",
        metavar="N",
        type=count,
        help="of the cluster (default: as many as there are processors for, by --threads each)",
    )
    add(
        "--copy-to",
        metavar="DIR",
        type=path_name,
        help="have workers put a copy of the package into this folder of their machines, once "
        "each (default: the package lies under its path on all of them)",
    )
    add_answering(add, None)
    add("--quiet", action="store_true", help="nothing on stderr but failures")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""avl-serve: packages behind OpenAI's protocol."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from avl_runtime.cli.lists import count, none_or_more, path_name, seconds, some_name
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.serving import (
    USUAL,
    add_answering,
    add_package,
    check_choices,
    limits_of,
    loading_of,
)
from avl_runtime.cli.status import exit_status
from avl_runtime.machine.installation import need
from avl_runtime.machine.memory import keep_freed

LARGEST_PORT = 65535


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    check_choices(parser, parsed)
    return exit_status("avl-serve", lambda: _run(parser, parsed))


def _run(parser: CommandParser, parsed: argparse.Namespace) -> int:
    need("serve", what_for="avl-serve")
    keep_freed()  # before there are threads, each with a heap
    from avl_runtime.serve.app import App
    from avl_runtime.serve.http.fetch import checked_hosts
    from avl_runtime.serve.http.guard import VARIABLE, Guard, is_loopback, keys, local_names
    from avl_runtime.serve.run import listening, serve
    from avl_runtime.serve.shelf import Shelf, names
    from avl_runtime.serve.telemetry import Spans, wanted

    hosts = checked_hosts(parsed.allow_url_host)
    known = keys(parsed.api_key)
    local = is_loopback(parsed.host)
    if not (known or local or parsed.open):
        parser.error(
            f"--host {parsed.host}: expected an API key for an address that others reach, found "
            "none; add --api-key FILE, or --open to answer everybody"
        )
    if known and parsed.open:
        parser.error(
            "--open: expected no API key beside it, found "
            f"{VARIABLE if parsed.api_key is None else '--api-key'}; leave one of them out"
        )
    spans = Spans() if parsed.telemetry or wanted() else None
    limits = limits_of(parsed, queue=parsed.queue, rest=parsed.rest)
    packages = names(parsed.packages)
    listener = listening(parsed.host, parsed.port)
    with listener:
        shelf = Shelf(packages, limits, parsed.memory, **loading_of(parsed))
        if limits.kv_bytes is not None:
            shelf.keep_rows(limits.kv_bytes)
        guard = Guard(known, local_names(parsed.host) if local and not parsed.open else None)
        app = App(shelf, limits, guard, None if parsed.quiet else sys.stderr, hosts, spans)
        serve(app, shelf.names, listener, limits, parsed.grace)
    return 0


def make_parser() -> CommandParser:
    """The parser of avl-serve."""
    parser = CommandParser(
        "avl-serve",
        "Answer programs that speak OpenAI's protocol, with pictures, under a policy for each "
        "request.",
        "avl-serve avl-tiny.avl --port 8000",
        "Only this machine reaches it unless --host says otherwise. AVL_API_KEY holds a key too.",
    )
    add = parser.add_argument
    add_package(add, "packages", nargs="+")
    add("--host", metavar="ADDRESS", default="127.0.0.1", type=some_name, help="where to listen")
    add("--port", metavar="N", default=8000, type=_port, help="where to listen; 0 takes a free one")
    add(
        "--api-key",
        metavar="FILE",
        type=path_name,
        help="keys of 16 characters or more, one a line, any of which a client has to send",
    )
    add("--open", action="store_true", help="answer everybody who reaches the address, without key")
    add(
        "--memory",
        metavar="BYTES",
        type=count,
        help="of weights that are loaded at one time; packages beyond it are loaded when they are "
        "asked for, in place of those that were not for the longest (default: all are loaded)",
    )
    add_answering(add, USUAL.seconds)
    add(
        "--queue",
        metavar="N",
        default=USUAL.queue,
        type=none_or_more,
        help="requests that wait for a place",
    )
    add(
        "--rest",
        metavar="S",
        default=USUAL.rest,
        type=seconds,
        help="without a request, after which freed memory goes back to the system",
    )
    add("--grace", metavar="S", default=30.0, type=seconds, help="for answers when it is stopped")
    add(
        "--telemetry",
        action="store_true",
        help="send a trace of each request by OTLP over HTTP, to where OTEL_EXPORTER_OTLP_ENDPOINT "
        "says (default: only if that is set)",
    )
    add("--quiet", action="store_true", help="no line on stderr for each request")
    return parser


def _port(text: str) -> int:
    found = none_or_more(text)
    if found > LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port up to {LARGEST_PORT}, found {text!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())

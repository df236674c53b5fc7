"""The server as a deployment of Ray Serve, as many replicas of it as there are requests for.

    serve run avl_runtime.serve.ray:application package=/packages/llava.avl keys=/run/keys

Each replica is a whole avl-serve with its own model, behind Ray's proxy.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from avl_plugins.errors import AvlError, quoted
from avl_runtime.execute.protocol import BACKENDS, GPUS, KV
from avl_runtime.machine.installation import need
from avl_runtime.requests.loaded import as_policy
from avl_runtime.serve.app import App
from avl_runtime.serve.http.bodies import Message, Receive
from avl_runtime.serve.http.exchange import Send
from avl_runtime.serve.http.guard import VARIABLE, Guard, keys
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.shelf import Shelf, names
from avl_runtime.serve.telemetry import Spans, wanted

Application = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]
USUAL: Final = Limits()
NUMBERS: Final = {  # what each is, and is at least, where nothing is said
    "threads": (1, 1),
    "running": (USUAL.running, 1),
    "queue": (USUAL.queue, 0),
    "max_new_tokens": (USUAL.new_tokens, 1),
    "min_replicas": (1, 1),
    "max_replicas": (1, 1),
}
BYTES: Final = ("kv_bytes", "cache_limit")
TEXTS: Final = ("keys", "policy", "backend", "kv", "cache_dir")
CHOICES: Final[Mapping[str, Collection[str]]] = {"backend": BACKENDS, "kv": KV}
FLAGS: Final = {"true": True, "false": False}  # as a command line has them
GRACE: Final = 30.0  # seconds for answers that run when a replica is stopped


class ArgumentError(AvlError):
    """An argument of the application cannot be used."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a replica serves.

    Attributes:
        packages: folders by the names of models.
        loading: arguments of `LVLM.load`; `threads` is also how many processors a replica takes.
        keys: file of API keys.
        open: answer everybody, without a key.
        replicas: the fewest and the most.
    """

    packages: Mapping[str, Path]
    loading: Mapping[str, Any]
    limits: Limits
    keys: Path | None
    open: bool
    replicas: tuple[int, int]


def application(args: dict[str, Any]) -> Any:
    """A deployment, bound, as `serve run` and a Serve config's `import_path` take it.

    Args:
        args: `package`, a folder, NAME=FOLDER, or a list of them; `keys`, a file, or `open`, true;
            and, each with a default, `policy`, `backend`, `kv`, `threads`, `running`, `queue`,
            `max_new_tokens`, `kv_bytes`, `cache_dir`, `cache_limit`, `min_replicas` and
            `max_replicas`. Texts stand for numbers, too.

    Raises:
        ArgumentError: one is missing, unknown, or cannot be used.
    """
    need("ray", what_for="avl_runtime.serve.ray")
    from ray import serve

    settings = settings_of(args)

    def build() -> Application:  # in the replica
        return Replica(settings)

    fewest, most = settings.replicas
    running = settings.limits.running
    gpus = {"num_gpus": 1} if settings.loading["backend"] in GPUS else {}
    deployment = serve.deployment(serve.ingress(build)()).options(
        name="avl-serve",
        max_ongoing_requests=running + settings.limits.queue,
        autoscaling_config={
            "min_replicas": fewest,
            "max_replicas": most,
            "target_ongoing_requests": running,
        },
        graceful_shutdown_timeout_s=GRACE + 10,
        graceful_shutdown_wait_loop_s=1,
        ray_actor_options={"num_cpus": settings.loading["threads"], **gpus},
    )
    return deployment.bind()


def settings_of(args: Mapping[str, Any]) -> Settings:
    """Read arguments.

    Raises:
        ArgumentError: one cannot be used.
        AvlError: the policy cannot be read.
    """
    known = ("package", "open", *NUMBERS, *BYTES, *TEXTS)
    for name in args:
        if name not in known:
            raise ArgumentError(f"expected {', '.join(known)}, found {quoted(name)}; leave it out")
    given = args.get("package")
    packages = [given] if isinstance(given, str) else given
    texts = isinstance(packages, list) and all(isinstance(one, str) for one in packages)
    if not isinstance(packages, list) or not packages or not texts:
        raise ArgumentError(f"package: expected a folder, or some, found {quoted(given)}; name it")
    numbers = {
        name: _number(name, args.get(name, usual), least)
        for name, (usual, least) in NUMBERS.items()
    }
    sizes = {name: _number(name, args[name], 1) for name in BYTES if name in args}
    if numbers["min_replicas"] > numbers["max_replicas"]:
        raise ArgumentError(
            f"max_replicas: expected at least min_replicas, found {numbers['max_replicas']}"
        )
    given = args.get("open", False)
    everybody = FLAGS.get(given) if isinstance(given, str) else given
    if not isinstance(everybody, bool):
        raise ArgumentError(f"open: expected true or false, found {quoted(given)}; choose one")
    for name in TEXTS:
        if name in args:
            _check_text(name, args[name])
    if "policy" in args:
        as_policy(args["policy"])
    if everybody and "keys" in args:
        raise ArgumentError("open: expected no keys beside it, found some; leave one of them out")
    return Settings(
        names(packages),
        {
            "policy": args.get("policy"),
            "backend": args.get("backend", "auto"),
            "kv": args.get("kv", "auto"),
            "threads": numbers["threads"],
            "prefix_cache": "auto",
            "cache_dir": args.get("cache_dir"),
            "cache_limit": sizes.get("cache_limit"),
        },
        Limits(
            running=numbers["running"],
            queue=numbers["queue"],
            new_tokens=numbers["max_new_tokens"],
            choices=min(numbers["running"], USUAL.choices),
            kv_bytes=sizes.get("kv_bytes"),
        ),
        Path(args["keys"]) if "keys" in args else None,
        everybody,
        (numbers["min_replicas"], numbers["max_replicas"]),
    )


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ArgumentError(f"{name}: expected a text, found {quoted(value)}; leave it out")
    allowed = CHOICES.get(name)
    if allowed is not None and value not in allowed:
        raise ArgumentError(
            f"{name}: expected one of {', '.join(allowed)}, found {quoted(value)}; choose one"
        )


def _number(name: str, value: object, least: int) -> int:
    fits = isinstance(value, (int, str)) and not isinstance(value, bool)
    text = str(value) if fits else ""
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) >= least):
        raise ArgumentError(
            f"{name}: expected a whole number of at least {least}, found {quoted(value)}; choose "
            "another"
        )
    return int(text)


class Replica:
    """An ASGI application that loads its packages, and lets go of them when it is told to end."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            AvlError: a package cannot be loaded, or nobody may ask.
        """
        known = keys(settings.keys)
        if not known and not settings.open:
            raise ArgumentError(
                "keys: expected API keys for an address that others reach, found none; name a "
                "file, set AVL_API_KEY where replicas run, or say open=true to answer everybody"
            )
        if known and settings.open:
            raise ArgumentError(
                f"open: expected no API key beside it, found {VARIABLE}; leave one of them out"
            )
        shelf = Shelf(settings.packages, settings.limits, **settings.loading)
        spans = Spans() if wanted() else None
        self._app = App(shelf, settings.limits, Guard(known, None), sys.stderr, spans=spans)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or begin and end with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message: Message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                self._app.stopping = True
                self._app.answering.cut()
                await self._app.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

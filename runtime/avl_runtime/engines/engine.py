"""Builds one engine, straight into a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from avl_runtime.engines.network import Parsed, Toolkit
from avl_runtime.engines.options import BuildError
from avl_runtime.engines.profiles import Profile

DEAD_INPUT = "is unused"  # what the optimiser says of an input that nothing reads any more


@dataclass(frozen=True, slots=True)
class Written:
    """An engine on disk."""

    size: int
    sha256: str


def write_engine(
    toolkit: Toolkit,
    parsed: Parsed,
    profiles: Sequence[Profile],
    targets: Sequence[int],
    monitor: Any,
    timing_cache: Path | None,
    out: Path,
) -> Written:
    """Build `parsed` and write the engine to `out`.

    Args:
        targets: compute capabilities, for TensorRT-RTX; none for its default.
        timing_cache: where kernels' timings are kept from build to build; None: nothing is timed.

    Raises:
        BuildError: the builder fails, or finds an input without effect.
    """
    config = toolkit.loaders.create_config(
        parsed.builder,
        parsed.network,
        profiles=[_profile(toolkit, profile) for profile in profiles],
        progress_monitor=monitor,
        load_timing_cache=str(timing_cache) if timing_cache and timing_cache.is_file() else None,
    )
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            name = getattr(toolkit.trt.ComputeCapability, f"SM{target}")
            if not config.set_compute_capability(name, index):
                raise BuildError(f"--compute-capability: expected a target, found {target}")
    with out.open("xb") as file:
        writer = _Writer(file)
        if timing_cache is not None:
            _build_timed(toolkit, parsed, config, timing_cache, writer)
        else:
            _build_streamed(toolkit, parsed, config, writer)
    dead = [text for _, text in toolkit.log if DEAD_INPUT in text]
    if dead:
        raise BuildError(f"expected every input to have an effect, found: {dead[0]}; report this")
    return Written(writer.size, writer.digest.hexdigest())


class _Writer:
    """Writes pieces and hashes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, piece: Any) -> int:
        """Returns how much was written, as TensorRT asks: 0 after a failure."""
        data = memoryview(piece)
        try:
            self.file.write(data)
        except OSError as error:  # must not pass through the builder
            self.failure = error
            return 0
        self.digest.update(data)
        self.size += data.nbytes
        return data.nbytes


def _build_streamed(toolkit: Toolkit, parsed: Parsed, config: Any, writer: _Writer) -> None:
    """Without a second copy of the engine in memory; Polygraphy has no loader for this."""
    base: Any = toolkit.trt.IStreamWriter

    class Stream(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def write(self, data: Any) -> int:
            return writer.write(data)

    stream = Stream()
    built = parsed.builder.build_serialized_network_to_stream(parsed.network, config, stream)
    if writer.failure is not None:
        raise writer.failure
    if not built:
        raise BuildError(f"expected an engine, found: {toolkit.errors}")


def _build_timed(
    toolkit: Toolkit, parsed: Parsed, config: Any, timing_cache: Path, writer: _Writer
) -> None:
    from polygraphy.exception import PolygraphyException

    timing_cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = toolkit.loaders.engine_bytes_from_network(
            (parsed.builder, parsed.network),
            config=lambda _builder, _network: config,
            save_timing_cache=str(timing_cache),
        )
    except PolygraphyException:
        raise BuildError(f"expected an engine, found: {toolkit.errors}") from None
    writer.write(engine)
    if writer.failure is not None:
        raise writer.failure


def _profile(toolkit: Toolkit, profile: Profile) -> Any:
    made = toolkit.loaders.Profile()
    for name, shapes in profile.shapes.items():
        made.add(name, *shapes)
    return made

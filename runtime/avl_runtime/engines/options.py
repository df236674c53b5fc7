"""What avl-build is asked for, checked as far as it can be without opening anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avl_plugins.errors import AvlError
from avl_runtime.package.dims import Dims
from avl_runtime.package.engine_sets import EngineBackend, Limits

RTX_TARGETS = (75, 80, 86, 89, 120, 121)
DECODE_ROWS = 8  # of profile 0; a profile of exactly one row would hold a second copy of weights
PROMPT_ROWS = 1024  # default: scores take some 12 bytes a head, row and key
CACHE_ROWS = 8192  # default, where a model has more positions


class BuildError(AvlError):
    """Engines cannot be built."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a build; None and () are the defaults.

    Attributes:
        targets: compute capabilities, such as 89.
        plugins: take the attention plugin where the backend has one.
    """

    package: Path
    backend: EngineBackend
    targets: tuple[int, ...] = ()
    max_prompt: int | None = None
    max_context: int | None = None
    max_batch: int = 1
    plugins: bool = True
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("max_prompt", "max_context", "max_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = f"--{name.replace('_', '-')}"
                raise BuildError(f"{option}: expected at least 1, found {value}")
        unknown = [one for one in self.targets if one not in RTX_TARGETS]
        if self.backend == "tensorrt-rtx" and unknown:
            raise BuildError(
                f"--compute-capability: expected {', '.join(map(str, RTX_TARGETS))} for "
                f"tensorrt-rtx, found {', '.join(map(str, unknown))}; leave it out for an engine "
                "for 8.0 and newer, or build with --backend tensorrt on that GPU"
            )
        if len(set(self.targets)) != len(self.targets):
            raise BuildError("--compute-capability: expected each target once; remove repetitions")

    def limits(self, dims: Dims, row_block: int) -> Limits:
        """The shapes that engines of a decoder shall take.

        Raises:
            BuildError: more is asked for than the model has positions.
        """
        most = dims.max_positions
        for name in ("max_prompt", "max_context"):
            value = getattr(self, name)
            if value is not None and value > most:
                raise BuildError(
                    f"--{name.replace('_', '-')}: expected at most {most}, the positions that "
                    f"this model has, found {value}"
                )
        rows = self.max_context or min(most, CACHE_ROWS)
        prompt = self.max_prompt or min(rows, PROMPT_ROWS)
        if prompt > rows:
            raise BuildError(
                f"--max-prompt: expected at most the {rows} rows that a cache may hold, found "
                f"{prompt}; raise --max-context too"
            )
        return Limits(
            decode_rows=min(DECODE_ROWS, prompt),
            prompt_rows=prompt,
            cache_rows=-(-rows // row_block) * row_block,
            batch=self.max_batch,
        )

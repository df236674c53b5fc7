"""The options of one export, validated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avl_plugins.errors import AvlError
from avl_plugins.policies import parse

DtypeOption = Literal["auto", "fp32", "fp16", "bf16"]


class OptionsError(AvlError):
    """An option is invalid, or impossible for this checkpoint."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to export and how.

    `split` holds the layers after which the decoder is cut, ascending; `check` is None to check
    small models only. `revision` is the hub's branch, tag or commit. A `dry_run` is planned and
    not exported.
    """

    model: str
    out: Path
    policy: str = "dense"
    split: tuple[int, ...] = (2,)
    dtype: DtypeOption = "auto"
    copy: bool = False
    check: bool | None = None
    revision: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", str(parse(self.policy)))
        if list(self.split) != sorted(set(self.split)):
            raise OptionsError(
                f"--split: expected layers in ascending order, each once, "
                f"found {','.join(map(str, self.split))}; sort them"
            )

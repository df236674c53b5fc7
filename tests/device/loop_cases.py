"""The whole loop on the stand-in, beside ort-cpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from avl_plugins.policies import Policy
from avl_runtime import LVLM
from avl_runtime.generate.results import Result
from avl_runtime.package.engine_sets import Limits
from avl_runtime.package.package import load_package
from avl_runtime.tasks import sample
from device.standin import HostDevice
from device.standin_engines import LIMITS, open_on, write_engines


def on_stand_in(
    package: Path,
    folder: Path,
    limits: Limits = LIMITS,
    row_block: int = 8,
    total: int = 1 << 30,
    *,
    interpreted: bool = False,
    park_on_host: bool = False,
) -> tuple[LVLM, HostDevice]:
    """A package on engines of the stand-in's."""
    device = HostDevice(total, interpreted=interpreted)
    loaded = load_package(package)
    engines = write_engines(loaded, folder, limits, row_block)
    backend = open_on(device, loaded, engines, park_on_host=park_on_host)
    with mock.patch("avl_runtime.requests.loaded.load_backend", lambda *_, **__: backend):
        return LVLM.load(package, backend="tensorrt-rtx"), device


def ask(model: LVLM, policy: str | Policy, steps: int, index: int = 3, **options: Any) -> Result:
    one = sample("caption", "held-out", index)
    return model.generate(
        one.prompt,
        [one.image],
        policy=policy,
        max_new_tokens=steps,
        return_logits=True,
        **options,
    )


def same(result: Result, expected: Result) -> None:
    """The same tokens and placements, and logits as near as sums in another order are."""
    assert result.token_ids == expected.token_ids
    if result.logits is not None and expected.logits is not None:
        assert np.allclose(result.logits, expected.logits, atol=2e-3)
    assert len(result.placements) == len(expected.placements)
    for ours, theirs in zip(result.placements, expected.placements, strict=True):
        assert ours.step == theirs.step
        assert np.array_equal(ours.core, theirs.core)
        assert np.array_equal(ours.parked, theirs.parked)


def interpreted_reply(
    package: Path, folder: Path, policy: str | Policy, steps: int
) -> dict[str, int]:
    """A reply with interpreted kernels, equal to ort-cpu; how often each kind of work was done."""
    on_device, device = on_stand_in(package, folder, interpreted=True)
    host = LVLM.load(package, backend="ort-cpu", threads=1)
    same(ask(on_device, policy, steps), ask(host, policy, steps))
    return dict(device.done)

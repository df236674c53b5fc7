"""Which logits requests ask for, and that their tokens do not depend on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from avl_plugins.cpu.host import Host
from avl_plugins.cpu.logits import Wanted
from avl_plugins.logits import Logits
from avl_runtime import LVLM
from avl_runtime.execute.host import ort_bound
from avl_runtime.tasks import TASKS, samples


@pytest.mark.parametrize("policy", ["dense", "avl", "avl+fastv", "avl:text=0.5,text_min=4"])
def test_tokens_do_not_depend_on_what_is_read(tiny: LVLM, linear_kernel: Path, policy: str) -> None:
    for task in TASKS:
        some = list(samples(task, "held-out", 3))
        asked = [one.prompt for one in some], [[one.image] for one in some]
        alone, read = (
            tiny.generate_batch(*asked, policy=policy, max_new_tokens=32, return_logits=logits)
            for logits in (False, True)
        )
        assert [one.token_ids for one in alone] == [one.token_ids for one in read]
        for one in read:
            assert one.logits.argmax(1).tolist() == list(one.token_ids)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, Logits.LARGEST),
        ({"return_logits": True}, Logits.ALL),
        ({"temperature": 0.5}, Logits.ALL),
        ({"repetition_penalty": 1.2}, Logits.ALL),
    ],
)
def test_a_request_asks_for_what_it_reads(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], least: Logits
) -> None:
    found: list[Logits] = []

    def noted(host: Host | None, logits: Logits) -> Wanted:
        found.append(logits)
        return Wanted(host, logits)

    monkeypatch.setattr(ort_bound, "Wanted", noted)
    (one,) = samples("vqa", "held-out", 1)
    # More rows than a chunk of a prompt has.
    tiny.generate(one.prompt, [one.image] * 2, max_new_tokens=4, **options)
    assert set(found) == {least, Logits.NONE}
    last = max(index for index, logits in enumerate(found) if logits is Logits.NONE)
    segments = len(tiny.loaded.package.manifest.segments)
    assert found[last + 1 :] == [least] * (len(found) - last - 1)
    assert len(found) - last - 1 > segments  # a step at least

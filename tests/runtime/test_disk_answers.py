"""A model whose prompts' rows are on disk: what it takes from there changes no answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_runtime import LVLM
from avl_runtime.execute.host.executor import HostExecutor
from avl_runtime.execute.protocol import BackendError
from avl_runtime.package.package import Package, load_package
from avl_runtime.prompts.option_values import OptionError
from avl_runtime.requests import Scheduler, on_disk
from avl_runtime.tasks import sample

PICTURES = [sample("caption", "held-out", 90 + number).image for number in range(2)]
POLICIES = ("dense", "fastv", "avl:text=0.5,text_min=4", "avl")
READ = {"max_new_tokens": 4, "min_new_tokens": 4, "return_logits": True}


@pytest.mark.parametrize("kv", ["fp32", "int8-int2"])
def test_answers_are_the_same_after_a_restart(tiny_package: Path, tmp_path: Path, kv: str) -> None:
    """Bit for bit, of each policy; policies that share rows share files."""
    options: dict[str, Any] = {"kv": kv, "prefix_cache": 1 << 30, "cache_dir": tmp_path}
    first: list[Any] = []
    for again in (False, True):
        with LVLM.load(tiny_package, "ort-cpu", **options) as model:
            model.loaded.executor.chunk = 100
            for number, policy in enumerate(POLICIES):
                found = model.generate("Read the text.", PICTURES, policy=policy, **READ)
                tokens = found.stats.prompt_tokens
                known = again or policy == "avl"  # which takes what dense has left
                assert found.stats.prefix_tokens == ((tokens - 1) // 100 * 100 if known else 0)
                if again:
                    np.testing.assert_array_equal(found.logits, first[number].logits)
                else:
                    first.append(found)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3 * 3


def test_others_go_on_while_rows_are_read(tiny_package: Path, tmp_path: Path) -> None:
    """A step of theirs between two files."""
    options: dict[str, Any] = {"prefix_cache": 1 << 30, "cache_dir": str(tmp_path)}
    with LVLM.load(tiny_package, "ort-cpu", **options) as model:
        model.loaded.executor.chunk = 64
        model.generate("Read the text.", PICTURES, max_new_tokens=1)
        assert model.loaded.prefixes is not None and model.loaded.prefixes.disk is not None
        model.loaded.prefixes.disk.flush()
        model.loaded.prefixes.clear()
        scheduler = Scheduler(model)
        other = scheduler.add("Go on.", max_new_tokens=50, min_new_tokens=50)
        while not other.reply.token_ids:
            scheduler.step()
        asked = scheduler.add("Read the text.", PICTURES, max_new_tokens=1)
        begun = len(other.reply.token_ids)
        while not asked.done:
            scheduler.step()
        assert asked.prefix_tokens == (len(asked.prompt.input_ids) - 1) // 64 * 64
        assert len(other.reply.token_ids) - begun >= asked.prefix_tokens // 64
        scheduler.cancel(other)


def test_rows_are_of_one_package_and_one_way_to_compute(
    tiny_package: Path, tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = load_package(tiny_package)
    known = on_disk._whose(package, tiny.loaded.executor, 2, "auto")
    manifest = package.manifest
    (shard, *more) = manifest.weights.shards

    def of(**fields: Any) -> str:
        changed = Package(package.folder, dataclasses.replace(manifest, **fields))
        return on_disk._whose(changed, tiny.loaded.executor, 2, "auto")

    def with_shard(**fields: Any) -> Any:
        shards = (dataclasses.replace(shard, **fields), *more)
        return dataclasses.replace(manifest.weights, shards=shards)

    assert known == of() == of(weights=with_shard(modified_ns=7))
    moved = dataclasses.replace(manifest.weights, folder="/elsewhere")
    assert known == of(weights=moved) == of(engines=())
    others = [
        of(weights=with_shard(sample_sha256="0" * 64)),
        of(files=manifest.files[1:]),
        on_disk._whose(package, tiny.loaded.executor, 3, "auto"),
        on_disk._whose(package, tiny.loaded.executor, 2, "fp32"),
    ]
    monkeypatch.setattr(HostExecutor, "kv", "int8")
    others.append(on_disk._whose(package, tiny.loaded.executor, 2, "auto"))
    monkeypatch.setattr(on_disk, "processor", lambda: "another")
    others.append(on_disk._whose(package, tiny.loaded.executor, 2, "auto"))
    assert len({known, *others}) == 7
    old = Package(
        package.folder,
        dataclasses.replace(manifest, weights=with_shard(sha256=None, sample_sha256=None)),
    )
    with pytest.raises(OptionError, match="records hashes of its weights"):
        on_disk.OnDisk(Path("x"), 1).opened(old, tiny.loaded.executor, 2, "auto")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cache_dir": "x"}, "expected prefix_cache beside it"),
        ({"cache_dir": "", "prefix_cache": "auto"}, "expected a folder, found ''"),
        ({"cache_dir": 3, "prefix_cache": "auto"}, "expected a folder, found 3"),
        ({"cache_limit": 3}, "expected cache_dir beside it"),
        ({"cache_dir": "x", "prefix_cache": 1, "cache_limit": 0}, "cache_limit: expected a whole"),
    ],
)
def test_options_that_miss_another(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=told):
        LVLM.load(tiny_package, "ort-cpu", **options)
    assert list(tmp_path.iterdir()) == []


def test_rows_elsewhere_are_not_written(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostExecutor, "shares", False)
    with pytest.raises(BackendError, match="cache_dir: expected the backend ort-cpu"):
        LVLM.load(tiny_package, "ort-cpu", prefix_cache="auto", cache_dir=tmp_path)

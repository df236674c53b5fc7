"""What is decided, and refused, before anything is built."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avl_plugins.errors import AvlError
from avl_runtime.engines import plan as planning
from avl_runtime.engines.estimate import cache_bytes, estimate
from avl_runtime.engines.options import CACHE_ROWS, BuildError, Options
from avl_runtime.engines.plan import Plan, make_plan
from avl_runtime.engines.profiles import Range, encoder_profile, segment_profiles
from avl_runtime.machine.installation import install_extra
from avl_runtime.machine.libraries import Library
from avl_runtime.machine.probe import Gpu, Machine
from avl_runtime.package.engine_sets import ROW_BLOCK, Limits
from avl_runtime.package.package import load_package

ADA = Machine("linux-x86_64", (Gpu("RTX 4090", 89, 24 << 30),), "580.65", (13, 0), None)
BARE = Machine("linux-x86_64", (), None, None, "no NVIDIA driver")
RTX = Library("1.7.1.116", 13)
TRT = Library("11.4.0.106", 13)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which version of the backend is installed."""

    def use(found: Library | None, *missing: str) -> None:
        tools = dict.fromkeys(("onnx", "polygraphy"), Library("1.0", None))
        known = {**tools, "tensorrt": found, "tensorrt-rtx": found, **dict.fromkeys(missing)}
        monkeypatch.setattr(planning, "installed", known.__getitem__)

    use(RTX)
    return use


def plan_of(
    folder: Path, backend: Any = "tensorrt-rtx", machine: Machine = BARE, **more: Any
) -> Plan:
    return make_plan(Options(folder, backend, **more), machine)


def refusal(
    folder: Path, backend: Any = "tensorrt-rtx", machine: Machine = BARE, **more: Any
) -> str:
    with pytest.raises(AvlError) as error:
        plan_of(folder, backend, machine, **more)
    return str(error.value)


def change(folder: Path, **fields: Any) -> None:
    """Rewrite fields of the manifest; dotted ones with _ for the dot as dims_head_dim."""
    path = folder / "avl.json"
    manifest = json.loads(path.read_text())
    for name, value in fields.items():
        if name.startswith("dims_"):
            manifest["dims"][name.removeprefix("dims_")] = value
        else:
            manifest[name] = value
    path.write_text(json.dumps(manifest))


def test_defaults(fp16: Path, library: Any) -> None:
    made = plan_of(fp16)
    assert made.limits == Limits(8, 1024, 2048, 1)  # avl-tiny has 2048 positions
    assert (made.targets, made.plugins, made.row_block) == ((), False, ROW_BLOCK)
    assert made.timing_cache is None
    assert made.engine_set(()).folder == "engines/tensorrt-rtx-1.7.1.116-sm80+"
    assert made.engine_set(()).cuda == 13


@pytest.mark.parametrize(
    ("positions", "options", "wanted"),
    [
        (131072, {}, Limits(8, 1024, CACHE_ROWS, 1)),
        (131072, {"max_context": 20001, "max_prompt": 9000}, Limits(8, 9000, 20008, 1)),
        (2048, {"max_prompt": 5, "max_batch": 4}, Limits(5, 5, 2048, 4)),
        (2048, {"max_context": 100}, Limits(8, 100, 104, 1)),
    ],
)
def test_limits(
    fp16: Path, library: Any, positions: int, options: dict[str, int], wanted: Limits
) -> None:
    change(fp16, dims_max_positions=positions)
    assert plan_of(fp16, **options).limits == wanted


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"max_prompt": 0}, "--max-prompt: expected at least 1"),
        ({"max_batch": -1}, "--max-batch: expected at least 1"),
        ({"max_prompt": 4096}, "--max-prompt: expected at most 2048"),
        ({"max_context": 4096}, "--max-context: expected at most 2048"),
        ({"max_prompt": 200, "max_context": 100}, "raise --max-context too"),
        ({"targets": (90,)}, "75, 80, 86, 89, 120, 121 for tensorrt-rtx, found 90"),
        ({"targets": (89, 89)}, "each target once"),
    ],
)
def test_refused_options(fp16: Path, library: Any, options: dict[str, Any], part: str) -> None:
    assert part in refusal(fp16, **options)


def test_turing_takes_fp16_only(fp16: Path, library: Any) -> None:
    assert plan_of(fp16, targets=(75,)).targets == (75,)
    change(fp16, dtype="bf16")
    assert "expected an fp16 package for compute capability 7.5" in refusal(fp16, targets=(75, 89))


def test_codes_with_zero_points_are_refused(fp16: Path, library: Any) -> None:
    quantization = {
        "method": "gptq",
        "bits": 4,
        "block_size": 128,
        "parts": ["decoder"],
        "zero_points": True,
        "embedding": None,
    }
    change(fp16, quantization=quantization)
    assert "expected weights without zero points" in refusal(fp16)


def test_a_missing_library(fp16: Path, library: Any) -> None:
    library(None)
    assert f"found no tensorrt-rtx; run: {install_extra('tensorrt-rtx')}" in refusal(fp16)
    assert plan_of(fp16, dry_run=True).library is None
    library(None, "polygraphy")
    assert "found no polygraphy, tensorrt-rtx" in refusal(fp16)
    library(RTX, "onnx")
    assert "found no onnx" in refusal(fp16, dry_run=True)


def test_tensorrt_builds_for_its_own_gpu(fp16: Path, library: Any) -> None:
    library(TRT)
    assert plan_of(fp16, "tensorrt", ADA).targets == (89,)
    assert plan_of(fp16, "tensorrt", ADA, targets=(89,)).targets == (89,)
    assert "expected 89, the GPU of this machine" in refusal(fp16, "tensorrt", ADA, targets=(120,))
    assert "no NVIDIA driver" in refusal(fp16, "tensorrt")
    assert "--backend tensorrt-rtx, which builds anywhere" in refusal(fp16, "tensorrt")
    assert plan_of(fp16, "tensorrt", dry_run=True).targets == ()


@pytest.mark.parametrize(
    ("version", "changes", "options", "plugins", "part"),
    [
        ("11.4.0", {"dims_head_dim": 128}, {}, True, "attention is the plugin"),
        ("10.9.0.34", {"dims_head_dim": 64}, {}, True, "attention is the plugin"),
        ("10.8.0", {"dims_head_dim": 128}, {}, False, "10.8.0 has no ahead-of-time plugins, 10.9"),
        ("10.3.0", {"dims_head_dim": 128}, {}, False, "10.3.0 has no ahead-of-time plugins"),
        ("11.4.0", {"dims_head_dim": 128}, {"plugins": False}, False, "as asked"),
        ("11.4.0", {"dims_head_dim": 128, "dtype": "fp32"}, {}, False, "this package is fp32"),
        ("11.4.0", {}, {}, False, "these are of 32"),
        ("11.4.0", {"dims_head_dim": 128, "restores": True}, {}, True, "attention is the plugin"),
    ],
)
def test_when_plugins_are_taken(
    fp16: Path,
    library: Any,
    version: str,
    changes: dict[str, Any],
    options: dict[str, Any],
    plugins: bool,
    part: str,
) -> None:
    change(fp16, **changes)
    library(Library(version, 12))
    made = plan_of(fp16, "tensorrt", ADA, **options)
    assert made.plugins == plugins
    assert part in made.why
    assert made.row_block == (1 if plugins else ROW_BLOCK)
    assert made.timing_cache is not None
    assert version in made.timing_cache.name


def test_a_changed_checkpoint_is_refused(fp16: Path, library: Any) -> None:
    weights = load_package(fp16).manifest.weights
    shard = {**json.loads((fp16 / "avl.json").read_text())["weights"]["shards"][0], "size": 7}
    change(fp16, weights={"folder": weights.folder, "shards": [shard]})
    assert "the checkpoint has changed" in refusal(fp16)


def test_segment_profiles() -> None:
    inputs = {
        "hidden": ("batch", "seq", 64),
        "position_ids": (3, "batch", "seq"),
        "k_active.0": ("batch", 2, "active_blocks", 8, 32),
        "v_parked.0": ("batch", 2, "parked_blocks", 8, 32),
        "active_len.0": ("batch",),
        "deepstack.0": ("batch", "seq", 64),
        "active_standing.0": ("batch", "unlike", "active_blocks", 8, 4),
    }
    decode, prompt = segment_profiles(inputs, Limits(8, 1024, 4096, 4), 8, 2)
    assert (decode.name, prompt.name) == ("decode", "prompt")
    assert decode.shapes["hidden"] == ((1, 1, 64), (1, 1, 64), (4, 8, 64))
    assert decode.shapes["position_ids"] == ((3, 1, 1), (3, 1, 1), (3, 4, 8))
    assert decode.shapes["k_active.0"] == ((1, 2, 1, 8, 32), (1, 2, 128, 8, 32), (4, 2, 512, 8, 32))
    assert decode.shapes["active_len.0"] == ((1,), (1,), (4,))
    stands = ((1, 1, 1, 8, 4), (1, 1, 128, 8, 4), (4, 2, 512, 8, 4))  # KV heads alike, or not
    assert decode.shapes["active_standing.0"] == stands
    assert prompt.shapes["deepstack.0"] == ((1, 1, 64), (1, 512, 64), (1, 1024, 64))
    assert prompt.shapes["v_parked.0"] == ((1, 2, 1, 8, 32), (1, 2, 1, 8, 32), (1, 2, 512, 8, 32))
    whole = {"k_active.0": ("batch", 2, "active", 32)}
    decode, _ = segment_profiles(whole, Limits(8, 1024, 4096, 1), 1, 2)
    assert decode.shapes["k_active.0"] == ((1, 2, 1, 32), (1, 2, 1024, 32), (1, 2, 4096, 32))


def test_encoder_profile() -> None:
    ranges = {"pixel_values": {0: Range(1, 5, 5)}}
    made = encoder_profile({"pixel_values": ("tiles", 3, 8, 8)}, ranges, "vision.onnx")
    assert made.shapes == {"pixel_values": ((1, 3, 8, 8), (5, 3, 8, 8), (5, 3, 8, 8))}
    with pytest.raises(BuildError, match="expected tokens"):
        encoder_profile({"tokens": ("n", 3)}, ranges, "vision.onnx")


def test_a_plan_reads_the_manifest_that_engines_are_in(fp16: Path, library: Any) -> None:
    """Engines of earlier builds do not hinder a new one."""
    made = plan_of(fp16).engine_set(())
    manifest = replace(load_package(fp16).manifest, engines=(made,))
    (fp16 / "avl.json").write_text(manifest.to_json())
    assert plan_of(fp16).package.manifest.engines == (made,)


def test_estimates(fp16: Path) -> None:
    manifest = load_package(fp16).manifest
    graph, limits = manifest.segments[1].file, Limits(8, 128, 2048, 1)
    small = estimate(manifest, graph, 1 << 20, 0, limits)
    assert small.engine > 1 << 20
    wider = estimate(manifest, graph, 1 << 20, 0, replace(limits, prompt_rows=256))
    assert 1.9 < wider.scratch / small.scratch < 2.1
    batched = estimate(manifest, graph, 1 << 20, 0, replace(limits, batch=64))
    assert batched.scratch > 3 * small.scratch  # 64 sequences decode 8 rows each
    heavier = estimate(manifest, graph, 1 << 30, 0, limits)
    assert heavier.engine - small.engine == (1 << 30) - (1 << 20)
    assert estimate(manifest, graph, 1 << 30, 1 << 30, limits).build > heavier.build
    assert estimate(manifest, "vision.onnx", 1 << 20, 0, limits).scratch == 0
    # 6 layers, 3 KV heads of 32, keys and values.
    assert cache_bytes(manifest.dims, replace(limits, batch=2), 2) == 2 * 2048 * 6 * 2 * 3 * 32 * 2

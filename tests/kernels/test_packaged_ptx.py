"""The packaged PTX: whole, gated, served to every architecture, and what the sources compile to."""

from __future__ import annotations

import ast
import gzip
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import build_ptx
import kernel_sweep
import kernel_table
from avl_plugins.cuda import packaged
from avl_plugins.errors import AvlError
from avl_plugins.kernels import aot
from avl_plugins.kernels.catalog import CAPABILITIES, DTYPES, GRIDS, VARIANTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "plugins/avl_plugins/ptx"
EVERY = [(name, target) for name in VARIANTS for target in VARIANTS[name].targets]


def artifact(name: str, capability: int) -> tuple[packaged.PackagedKernel, aot.Artifact]:
    found = packaged.kernel(name, capability)
    made = aot.Artifact(
        found.ptx(), found.entry, found.target, found.arguments, found.threads, found.shared
    )
    return found, made


@pytest.mark.parametrize(("name", "target"), EVERY)
def test_a_file_is_what_its_variant_says(name: str, target: int) -> None:
    variant = VARIANTS[name]
    found, made = artifact(name, target)
    aot.check(variant, made, found.target, aot.Assembled(registers=0, spilled=0))
    entry = packaged.index()["kernels"][name]
    assert entry["constants"] == dict(variant.constants)
    assert tuple(entry["grid"]) == GRIDS[variant.kernel]
    assert entry["threads"] == 32 * variant.warps
    assert re.search(rf"\.entry {found.entry}\(", made.ptx)
    assert f".target {found.target}\n" in made.ptx
    assert ".version 8.0\n" in made.ptx
    assert ".loc" not in made.ptx
    assert f".reqntid {found.threads}\n" in made.ptx
    assert str(Path.home()) not in made.ptx
    names = parameter_names(variant.module, variant.kernel)
    expected = [one.removesuffix("_ptr") for one in names if one not in variant.constants]
    assert [argument for argument, _ in found.arguments] == expected


def parameter_names(module: str, function: str) -> list[str]:
    """Parameters of a kernel in its source, read without Triton's help."""
    source = (ROOT / "plugins" / Path(*module.split("."))).with_suffix(".py").read_text()
    (node,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    return [one.arg for one in node.args.args]


def test_every_architecture_is_served_once() -> None:
    for name, entry in packaged.index()["kernels"].items():
        served = [c for file in entry["files"] for c in file["capabilities"]]
        assert sorted(served) == list(CAPABILITIES), name
        assert entry["files"][0]["target"] == "sm_80"


def test_the_index_lists_the_folder() -> None:
    listed = [
        file["file"] for entry in packaged.index()["kernels"].values() for file in entry["files"]
    ]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.gz"))
    assert set(packaged.index()["kernels"]) == set(VARIANTS)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2 << 20


# Of `restored`, of which there is a file for each of `fused` but those for sm_90a, a few: every
# seventh, as forms come three by three and architectures eight by eight.
ASSEMBLED = [
    (place, *one)
    for place, one in enumerate(EVERY)
    if not one[0].startswith("restored") or place % 7 == 0
]


@pytest.mark.parametrize(("place", "name", "target"), ASSEMBLED)
def test_every_file_assembles_as_the_table_says(
    place: int, name: str, target: int, table: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """For two architectures each, all in turn: the table has every one, of this very file."""
    found, made = artifact(name, target)
    row = table[name, found.target]
    architectures = [
        build_ptx.architecture(capability, found.target) for capability in found.capabilities
    ]
    assert list(row["registers"]) == list(row["spilled_bytes"]) == architectures
    count = len(architectures)
    for i in {place % count, (place + count // 2) % count}:
        assembled = aot.assemble(made.ptx, architectures[i])
        aot.check(VARIANTS[name], made, architectures[i], assembled)
        assert assembled.registers == row["registers"][architectures[i]]
        assert assembled.registers <= (VARIANTS[name].registers or 255)


def test_every_file_is_of_the_sources_as_they_are() -> None:
    """Whatever is changed in a kernel: run scripts/build_ptx.py."""
    for name, entry in packaged.index()["kernels"].items():
        assert entry["source_sha256"] == build_ptx.source_digest(VARIANTS[name]), name


def test_the_digest_of_a_source_follows_code_and_choices_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER.parent / "kernels", tmp_path / "kernels")
    monkeypatch.setattr(build_ptx, "FOLDER", tmp_path / "ptx")
    variant = VARIANTS["fused_decode-fp16-d64"]
    before = build_ptx.source_digest(variant)
    for module, old, new, same in (
        ("fused", "    S = used[2]\n", "    # a comment\n    S = used[2]\n", True),
        ("select", "tl.arange(0, NP)", "tl.arange(1, NP)", True),
        ("fused", "tl.exp2(m - m_new)", "tl.exp2(m)", False),
        ("tiles", "m_new = tl.maximum", "m_new = tl.minimum", False),
    ):
        path = tmp_path / "kernels" / f"{module}.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        assert (build_ptx.source_digest(variant) == before) is same
        path.write_text(text)
    assert build_ptx.source_digest(replace(variant, stages=4)) != before


def test_hopper_gets_its_own_matrix_instructions() -> None:
    for name in ("fused_prefill-fp16-d128", "fused_prefill-bf16-d64"):
        assert aot.instructions(packaged.kernel(name, 90).ptx())["wgmma"]
        assert not aot.instructions(packaged.kernel(name, 89).ptx())["wgmma"]


def test_an_unknown_later_architecture_gets_the_generic_file() -> None:
    assert packaged.kernel("fused_prefill-fp16-d128", 121).target == "sm_80"


def test_sources_compile_to_the_packaged_bytes() -> None:
    """A covering few; `scripts/build_ptx.py --check` compares all."""
    command = [
        sys.executable,
        "-Wignore",
        "scripts/build_ptx.py",
        "--check",
        "--jobs",
        "2",
        "--only",
    ]
    names = ["fused_decode-bf16-d64", "fused_prefill-fp16-d128"]
    names += ["fused_decode_sliced-fp16-d80", "update-64"]
    done = subprocess.run(command + names, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_difference_is_noticed(tmp_path: Path) -> None:
    differences, write = build_ptx.differences, build_ptx.write
    one = build_ptx.Built("k", "ptx", {"entry": "k"}, {"file": "k.ptx.gz", "target": "sm_80"}, {})
    write([one], tmp_path)
    assert differences([one], tmp_path) == []
    assert differences([replace(one, ptx="other")], tmp_path) == ["k.ptx.gz"]
    changed = replace(one, common={"entry": "l"})
    assert differences([changed], tmp_path) == ["index.json: k"]


@pytest.mark.parametrize(
    ("pattern", "replacement", "gate"),
    [
        (r"cp\.async\.c[ag]", "ld.shared", "16-byte cp.async"),
        (r"mma\.sync", "fma", "matrix instructions"),
    ],
)
def test_gates_can_fail(pattern: str, replacement: str, gate: str) -> None:
    _, made = artifact("fused_decode-fp16-d128", 80)
    worse = replace(made, ptx=re.sub(pattern, replacement, made.ptx))
    with pytest.raises(AvlError, match=gate):
        aot.check(VARIANTS["fused_decode-fp16-d128"], worse, "sm_80", aot.Assembled(100, 0))


def test_update_without_its_barrier_is_refused() -> None:
    _, made = artifact("update-64", 80)
    worse = replace(made, ptx=made.ptx.replace("bar.sync", "nop"))
    with pytest.raises(AvlError, match="a barrier between reads and writes"):
        aot.check(VARIANTS["update-64"], worse, "sm_80", aot.Assembled(32, 0))


def test_spills_and_large_launches_are_refused() -> None:
    _, made = artifact("select_core-1024", 80)
    variant = VARIANTS["select_core-1024"]
    with pytest.raises(AvlError, match="no spills"):
        aot.check(variant, made, "sm_80", aot.Assembled(255, 8))
    with pytest.raises(AvlError, match="at most 48 KB"):
        aot.check(variant, replace(made, shared=49153), "sm_80", aot.Assembled(100, 0))


def test_hidden_parameters_are_taken_out_only_if_unread() -> None:
    ptx = (
        ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1,\n"
        "\t.param .u64 k_param_2\n)\n.reqntid 128\n{\n\tld.param.u64 %rd1, [k_param_0];\n}\n"
    )
    assert aot.parameters(aot.without_hidden(ptx, 1)) == (".param .u64 k_param_0",)
    with pytest.raises(AvlError, match="expected 2 parameters"):
        aot.without_hidden(ptx, 2)
    with pytest.raises(AvlError, match="unread scratch pointers"):
        aot.without_hidden(ptx.replace("[k_param_0]", "[k_param_1]"), 1)


def test_ptx_that_does_not_assemble_is_refused() -> None:
    with pytest.raises(AvlError, match="expected PTX that assembles for sm_80"):
        aot.assemble(".version 8.0\n.target sm_80\n.address_size 64\nnonsense\n", "sm_80")


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = packaged.kernel("update-64", 80)
    (tmp_path / found.file).write_bytes(gzip.compress(found.ptx().encode() + b" "))
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    with pytest.raises(AvlError, match="SHA-256"):
        found.ptx()
    (tmp_path / found.file).unlink()
    with pytest.raises(AvlError, match="expected packaged PTX"):
        found.ptx()


def test_unknown_kernels_and_old_gpus_are_refused() -> None:
    with pytest.raises(AvlError, match="expected a packaged kernel, found 'decode'"):
        packaged.kernel("decode", 80)
    with pytest.raises(AvlError, match=r"compute capability 8.0 or later, found 7.5"):
        packaged.kernel("update-64", 75)


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the committed table by kernel and target."""
    report = json.loads((ROOT / "benchmarks/kernels-ptx.json").read_text())
    return {(row["kernel"], row["target"]): row for row in report["kernels"]}


def test_the_committed_table_is_of_these_files(
    table: dict[tuple[str, str], dict[str, Any]],
) -> None:
    assert len(table) == len(EVERY)
    for name, target in EVERY:
        found, made = artifact(name, target)
        row = table[name, found.target]
        assert row["sha256"] == found.sha256
        assert row["instructions"] == aot.instructions(made.ptx)
        assert row["shared_bytes"] == found.shared
        assert set(row["spilled_bytes"].values()) == {0}
    report = json.loads((ROOT / "benchmarks/kernels-ptx.json").read_text())
    assert report["triton"] == packaged.index()["triton"]
    assert (ROOT / "benchmarks/kernels-ptx.md").read_text() == kernel_table.markdown(report)


def test_the_committed_sweep_is_within_the_limits() -> None:
    report = json.loads((ROOT / "benchmarks/kernels-sweep.json").read_text())
    limits, results = report["limits"], report["results"].values()
    assert max(one["out_error_over_rounding"] for one in results) <= limits["out"] == 2
    assert max(one["mass_error"] for one in results) <= limits["mass"] == 1e-6
    assert len(results) == len(kernel_sweep.FORMS) * len(DTYPES)
    assert sum(one["cases"] for one in results) >= 600

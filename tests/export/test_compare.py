"""Two backends, or one and transformers, compared tensor by tensor: the first that differs."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_export.check import compare
from avl_export.check.cli import main
from avl_export.check.compare import compare_backends
from avl_export.check.recheck import recheck
from avl_export.check.runners import DeviceRunner, Runner, load_runner
from avl_export.check.table import CheckError, Output, Row, Table, ignore
from avl_export.check.walk import DECODE, check_prompt
from avl_runtime.execute.protocol import BackendError
from avl_runtime.package.package import Package, load_package
from device.standin import HostDevice
from device.standin_engines import LIMITS, open_on, write_engines
from export.checkpoints import make_config, write_random

Edit = Callable[[onnx.GraphProto], None]
FIRST, LAST = "decoder.0.onnx", "decoder.1.onnx"


def swap(one: str, other: str) -> Edit:
    """Exchange the places that two weights of one shape are read from."""

    def edit(graph: onnx.GraphProto) -> None:
        weights = [
            next(w for w in graph.initializer if w.name.endswith(name)) for name in (one, other)
        ]
        places = [copy.deepcopy(list(weight.external_data)) for weight in weights]
        for weight, place in zip(weights, reversed(places), strict=True):
            del weight.external_data[:]
            weight.external_data.extend(place)

    return edit


def rewire(position: int, name: str) -> Edit:
    """Give the first attention another input."""

    def edit(graph: onnx.GraphProto) -> None:
        node = next(n for n in graph.node if n.op_type == "SplitCacheAttention")
        assert node.input[position] != name
        node.input[position] = name

    return edit


# A weight or a wire that is wrong, and the first output that it reaches.
FAULTS: dict[str, tuple[str, Edit, str]] = {
    "vision": (
        "vision.onnx",
        swap("layers.0.self_attn.k_proj.weight", "layers.0.self_attn.q_proj.weight"),
        "vision features",
    ),
    "keys": (
        FIRST,
        swap("layers.0.self_attn.k_proj.weight", "layers.1.self_attn.k_proj.weight"),
        "dense prompt 1 decoder.0 k_new.0",
    ),
    "values": (
        FIRST,
        swap("layers.0.self_attn.v_proj.weight", "layers.1.self_attn.v_proj.weight"),
        "dense prompt 1 decoder.0 v_new.0",
    ),
    "queries": (
        FIRST,
        swap("layers.0.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.weight"),
        "dense prompt 1 decoder.0 mass_new.0",
    ),
    "mlp": (
        FIRST,
        swap("layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"),
        "dense prompt 1 decoder.0 hidden_out",
    ),
    "second segment": (
        LAST,
        swap("layers.2.mlp.gate_proj.weight", "layers.2.mlp.up_proj.weight"),
        "dense prompt 1 decoder.1 logits",
    ),
    "cached keys": (FIRST, rewire(3, "v_active.0"), "dense prompt 2 decoder.0 mass_active.0"),
    "parked values": (FIRST, rewire(7, "k_parked.0"), "avl step 2 decoder.0 k_new.1"),
}


def damage(folder: Path, file: str, edit: Edit) -> None:
    """Change a graph of a package, and what the manifest says of it."""
    model = onnx.load(folder / file, load_external_data=False)
    edit(model.graph)
    data = model.SerializeToString()
    (folder / file).write_bytes(data)
    manifest = json.loads((folder / "avl.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == file:
            entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "avl.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With heads as wide as kernels want them."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return write_random(folder, make_config(text={"head_dim": 16}))


@pytest.fixture(scope="session")
def wide_package(wide: Path, package_of: Callable[[Path], Path]) -> Path:
    """`wide` exported."""
    return package_of(wide)


@pytest.fixture
def wide_copy(wide_package: Path, tmp_path: Path) -> Path:
    """A copy of `wide_package` to damage."""
    return shutil.copytree(wide_package, tmp_path / "model.avl")


@pytest.fixture(scope="session")
def package(wide_package: Path) -> Package:
    return load_package(wide_package)


@pytest.fixture(scope="session")
def sound(package: Package) -> Runner:
    return load_runner("ort-cpu", package)


def test_a_backend_is_like_itself(package: Package, sound: Runner) -> None:
    told: list[Row] = []
    rows = compare_backends(package, sound, sound, told.append)
    assert all(row.ok and row.difference == 0 for row in rows)
    assert all(row.largest > 0 for row in rows)
    passes = [f"{m} {p}" for m in ("dense", "avl") for p in ("prompt 1", "prompt 2", "step 1")]
    names = {row.name for row in rows}
    for one in passes:
        for layer, graph in ((0, "decoder.0"), (1, "decoder.0"), (2, "decoder.1")):
            for output in ("k_new", "v_new", "mass_new"):
                assert f"{one} {graph} {output}.{layer}" in names
            assert (f"{one} {graph} mass_active.{layer}" in names) == (not one.endswith("prompt 1"))
            assert f"{one} {graph} mass_parked.{layer}" not in names
        assert f"{one} decoder.0 hidden_out" in names
        assert f"{one} decoder.1 logits" in names
    assert "avl step 2 decoder.1 mass_parked.2" in names
    assert {row.name for row in told} <= names
    assert len(told) == 1 + 2 * 2 * 5  # encoder; two modes of five passes through two segments


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_output_that_differs_is_named(
    fault: str,
    dtype: str,
    package: Package,
    sound: Runner,
    wide_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where as much is allowed as in bfloat16."""
    monkeypatch.setattr(compare, "tolerance_of", lambda _: compare.TOLERANCE[dtype])
    file, edit, first = FAULTS[fault]
    damage(wide_copy, file, edit)
    rows: list[Row] = []
    with pytest.raises(CheckError, match=f"found {first} first to differ") as error:
        compare_backends(
            package, sound, load_runner("ort-cpu", load_package(wide_copy)), rows.append
        )
    assert "\n" not in str(error.value)
    assert "(cosine " in str(error.value)
    assert not all(row.ok for row in rows)


@pytest.mark.parametrize("prompt_rows", [64, 5])
def test_engines_on_a_device(
    prompt_rows: int, package: Package, sound: Runner, tmp_path: Path
) -> None:
    """Through a stand-in for TensorRT-RTX, with caches in blocks, in chunks that it takes."""
    engines = write_engines(package, tmp_path, replace(LIMITS, prompt_rows=prompt_rows))
    device = HostDevice()
    runner = DeviceRunner(open_on(device, package, engines))
    free, _ = device.memory()
    rows = compare_backends(package, sound, runner, ignore)
    assert all(row.difference <= 1e-5 < row.largest for row in rows)
    chunks = {row.name.split(" decoder")[0] for row in rows if "prompt" in row.name}
    prompt = len(check_prompt(package).input_ids) - DECODE
    assert len(chunks) == 2 * max(2, -(-prompt // prompt_rows)) >= 4
    assert (len(chunks) > 4) == (prompt_rows < 64)
    assert device.memory()[0] == free
    assert runner.name == "tensorrt-rtx"


@pytest.mark.parametrize("fault", ["keys", "parked values", "second segment"])
def test_engines_of_another_graph(
    fault: str, package: Package, sound: Runner, wide_copy: Path, tmp_path: Path
) -> None:
    file, edit, first = FAULTS[fault]
    damage(wide_copy, file, edit)
    engines = write_engines(load_package(wide_copy), tmp_path / "engines")
    runner = DeviceRunner(open_on(HostDevice(), package, engines))
    wanted = f"expected tensorrt-rtx to compute what ort-cpu does, found {first} first to differ"
    with pytest.raises(CheckError, match=wanted):
        compare_backends(package, sound, runner, ignore)


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        ("vision", "encoders features"),
        ("keys", "dense decoder.0 k_new.0"),
        ("values", "dense decoder.0 v_new.0"),
        ("mlp", "dense decoder.0 hidden_out"),
        ("parked values", "parked decoder.0 k_new.1"),
    ],
)
def test_against_transformers(fault: str, first: str, wide: Path, wide_copy: Path) -> None:
    file, edit, _ = FAULTS[fault]
    damage(wide_copy, file, edit)
    with pytest.raises(CheckError, match=f"what transformers does, found {first} first"):
        recheck(wide_copy, ignore, backends=["ort-cpu"], model=str(wide))


def test_a_right_package_and_transformers(
    wide: Path, wide_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(wide_package), "--backend", "ort-cpu"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"] == ["ort-cpu"]
    wanted = ["encoders features"]
    for mode in ("dense", "parked"):
        for graph, layers, last in (("0", (0, 1), "hidden_out"), ("1", (2,), "logits")):
            new = [f"{kind}_new.{layer}" for layer in layers for kind in "kv"]
            wanted += [f"{mode} decoder.{graph} {name}" for name in (*new, last)]
    assert [row["name"] for row in report["rows"]] == wanted
    assert all(row["difference"] < 1e-4 < row["largest"] for row in report["rows"])
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "dense decoder.1" in text
    assert text.endswith("outputs compared, none differs\n")


def test_what_cannot_be_compared(
    wide: Path, wide_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(wide_package), "--backend"]
    for second in (["tensorrt-rtx"], ["ort-cpu", "--backend", "tensorrt"]):
        assert main([*command, *second]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"expected engines for {second[-1]}, found none" in line
    cut = shutil.copytree(wide_package, tmp_path / "cut")
    (cut / FIRST).write_bytes((cut / FIRST).read_bytes()[:-1])
    assert main([str(cut), "--backend", "ort-cpu"]) == 1
    assert FIRST in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--backend", "ort-cpu"], "PACKAGE"),
        (["p", "--backend", "ort-cpu", "--layers"], "no --backend beside it"),
        (["p", "--backend", "ort-cpu", "--no-check"], "unrecognized arguments: --no-check"),
        (["p", *["--backend", "ort-cpu"] * 2], "two different ones"),
        (
            ["p", "--backend", "ort-cpu", "--backend", "ort-cuda", "--model", "m"],
            "--model is for a comparison with transformers",
        ),
        (["p", "--backend", "auto"], "invalid choice"),
    ],
)
def test_usage(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
    assert part in capsys.readouterr().err


@given(
    size=st.integers(1, 40),
    tolerance=st.sampled_from([1e-3, 5e-2]),
    factor=st.floats(0.1, 3),
    seed=st.integers(0, 99),
)
def test_a_difference_is_judged_by_the_largest_value(
    size: int, tolerance: float, factor: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    expected = rng.standard_normal(size).astype(np.float32)
    off = np.zeros(size, np.float32)
    off[rng.integers(size)] = factor * tolerance * np.abs(expected).max()
    table = Table(tolerance)
    table.add("here", [Output("x", expected + off, expected)])
    if not 0.99 < factor < 1.01:
        assert (table.first_wrong is None) == (factor < 1)
    table.add("here", [Output("y", np.full(size, np.nan, np.float32), expected)])
    assert not table.rows[-1].ok
    assert not table.rows[-1].difference < np.inf


def test_a_backend_that_fails_says_so_in_a_sentence(package: Package) -> None:
    runner = load_runner("ort-cpu", package)
    with pytest.raises(BackendError, match=rf"^ort-cpu: expected {FIRST} to run, found: .*hidden"):
        runner.run(0, {})
    with pytest.raises(BackendError, match=r"^ort-cpu: expected the image encoder to run, found: "):
        runner.encode("image", {})

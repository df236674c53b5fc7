"""Packages that are damaged, foreign or hostile get one line, and nothing else happens."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.cli.run import main as avl_run
from avl_runtime.package.package import FORMAT_VERSION, MANIFEST, PackageError, load_package

SAMPLE = Path(__file__).parents[2] / "samples" / "page.png"


@pytest.fixture
def copy(tiny_package: Path, tmp_path: Path) -> Path:
    """A copy of avl-tiny's package that a test may damage."""
    return Path(shutil.copytree(tiny_package, tmp_path / "copy.avl"))


def edit(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((package / MANIFEST).read_text())
    change(manifest)
    (package / MANIFEST).write_text(json.dumps(manifest))


def refused(package: Path, *says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Loading fails with one line that holds `says`; so does the command, with exit code 1."""
    with pytest.raises(AvlError) as caught:
        LVLM.load(package)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message
    assert avl_run([str(package), "What?"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.strip().splitlines() == [f"avl-run: {message}"]


def test_no_package(tmp_path: Path, capsys) -> None:
    refused(tmp_path / "nowhere", "avl-export", capsys=capsys)
    refused(tmp_path, "avl-export", capsys=capsys)


@pytest.mark.parametrize("name", ["", b""])
def test_an_empty_path_is_not_the_working_directory(
    name: str, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_package)
    with pytest.raises(PackageError, match=r"expected the path of a package folder, found b?''"):
        LVLM.load(name)
    assert load_package(".").manifest.model == "avl-tiny"


def test_a_newer_format(copy: Path, capsys) -> None:
    edit(copy, lambda m: m.update(format_version=99, unheard_of=1))
    refused(copy, f"format {FORMAT_VERSION}", "99", "update avl", capsys=capsys)


def test_a_package_of_the_format_before(copy: Path) -> None:
    """What a version added has a default, so that packages of before still run."""
    edit(copy, lambda m: m.update(format_version=4))
    before = LVLM.load(copy, backend="ort-cpu").generate("What?", max_new_tokens=4)
    edit(copy, lambda m: m.update(format_version=FORMAT_VERSION))
    assert (
        before.token_ids
        == LVLM.load(copy, backend="ort-cpu").generate("What?", max_new_tokens=4).token_ids
    )


def test_a_package_that_does_not_tell_kinds_of_layers(copy: Path) -> None:
    """Those of before hold layers of full attention alone, as this one does and says."""
    told = LVLM.load(copy, backend="ort-cpu").generate("What?", max_new_tokens=4)
    assert [one.kinds for one in load_package(copy).manifest.segments] == [
        ("full",) * 2,
        ("full",) * 4,
    ]

    def forget(manifest: dict[str, Any]) -> None:
        manifest["format_version"] = 5
        for segment in manifest["segments"]:
            del segment["kinds"]

    edit(copy, forget)
    before = LVLM.load(copy, backend="ort-cpu").generate("What?", max_new_tokens=4)
    assert before.token_ids == told.token_ids
    # Written anew for engines, it has today's keys, which only today's format allows.
    assert load_package(copy).manifest.with_engines(()).format_version == FORMAT_VERSION


@pytest.mark.parametrize("kind", ["latent", "state", "", "Full", "x" * 10**6])
def test_a_kind_of_layer_that_nothing_here_runs(copy: Path, capsys, kind: str) -> None:
    edit(copy, lambda m: m["segments"][1]["kinds"].__setitem__(2, kind))
    refused(copy, "shared), found '", "as that of layer 4; update avl", capsys=capsys)


@pytest.mark.parametrize(("kind", "window"), [("sliding", None), ("sliding", 0), ("full", 3)])
def test_windows_without_layers_and_layers_without_windows(
    copy: Path, capsys, kind: str, window: int | None
) -> None:
    edit(copy, lambda m: m["segments"][1]["kinds"].__setitem__(2, kind))
    edit(copy, lambda m: m["reach"].update(window=window))
    refused(copy, "expected a window where layers", "found a window of", capsys=capsys)


def test_a_layer_that_keeps_a_state_of_no_size(copy: Path, capsys) -> None:
    edit(copy, lambda m: m["segments"][1]["kinds"].__setitem__(2, "gated_delta"))
    refused(copy, "sizes of the states", "decoder.1.onnx", "None", capsys=capsys)


def test_a_graph_without_a_layer_that_keeps_rows(copy: Path, capsys) -> None:
    edit(copy, lambda m: m["segments"][0].update(kinds=["convolution"] * 2))
    refused(copy, "a layer that keeps rows in decoder.0.onnx", capsys=capsys)


def test_an_unknown_key(copy: Path, capsys) -> None:
    edit(copy, lambda m: m.update(trust_remote_code=True))
    refused(copy, "trust_remote_code", capsys=capsys)


def test_a_missing_key(copy: Path, capsys) -> None:
    edit(copy, lambda m: m["dims"].pop("head_dim"))
    refused(copy, "head_dim", capsys=capsys)


def test_a_wrong_type(copy: Path, capsys) -> None:
    edit(copy, lambda m: m["dims"].update(num_layers="six"))
    refused(copy, "num_layers", "six", capsys=capsys)


@pytest.mark.parametrize(
    "path", ["../outside.onnx", "/etc/passwd", "a/../../b", "a\\b", "", "\ud800", "a\0b"]
)
@pytest.mark.parametrize("place", ["files", "segments", "image", "embedding", "shards"])
def test_a_path_that_leaves_the_package(copy: Path, path: str, place: str, capsys) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if place == "files":
            manifest["files"][0]["path"] = path
        elif place == "shards":
            manifest["weights"]["shards"][0]["path"] = path
        elif place == "segments":
            manifest["segments"][1]["file"] = path
        else:
            manifest[place]["file"] = path

    edit(copy, change)
    refused(copy, "inside the package", capsys=capsys)


def test_a_link_that_leaves_the_package(copy: Path, tmp_path: Path, capsys) -> None:
    outside = tmp_path / "outside.onnx"
    (copy / "vision.onnx").rename(outside)
    (copy / "vision.onnx").symlink_to(outside)
    refused(copy, "vision.onnx", "leading out", capsys=capsys)
    (copy / "vision.onnx").unlink()
    (copy / "vision.onnx").symlink_to("vision.onnx")
    refused(copy, "vision.onnx: expected a packaged file, found none", capsys=capsys)


def test_a_changed_file(copy: Path, capsys) -> None:
    graph = copy / "decoder.0.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    refused(copy, "decoder.0.onnx", "SHA-256", capsys=capsys)


def test_a_truncated_file(copy: Path, capsys) -> None:
    graph = copy / "decoder.1.onnx"
    graph.write_bytes(graph.read_bytes()[:-10])
    refused(copy, "decoder.1.onnx", "bytes", capsys=capsys)


def test_a_missing_file(copy: Path, capsys) -> None:
    (copy / "tokenizer.json").unlink()
    refused(copy, "tokenizer.json", capsys=capsys)


@pytest.fixture
def movable(copy: Path, tiny_checkpoint: Path) -> Path:
    """A package whose weights lie inside it, as --copy makes one."""
    shutil.copyfile(tiny_checkpoint / "model.safetensors", copy / "model.safetensors")
    edit(copy, lambda m: m["weights"].update(folder=None))
    assert LVLM.load(copy).generate("What?", max_new_tokens=1).token_ids
    return copy


def test_missing_weights(movable: Path, capsys) -> None:
    (movable / "model.safetensors").unlink()
    refused(movable, "model.safetensors", "--copy", capsys=capsys)


def test_truncated_weights(movable: Path, capsys) -> None:
    weights = movable / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(movable, "model.safetensors", "bytes", capsys=capsys)


def test_other_weights(movable: Path, capsys) -> None:
    weights = movable / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[40] ^= 1
    weights.write_bytes(data)
    refused(movable, "model.safetensors", "header", capsys=capsys)


def test_a_header_length_that_lies(movable: Path, capsys) -> None:
    weights = movable / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[:8] = struct.pack("<Q", 1 << 62)
    weights.write_bytes(data)
    refused(movable, "model.safetensors", "header", capsys=capsys)


def test_an_embedding_outside_its_file(copy: Path, capsys) -> None:
    edit(copy, lambda m: m["embedding"].update(offset=1 << 40))
    refused(copy, "embedding", capsys=capsys)


@pytest.mark.parametrize("token", [1 << 31, 1 << 32, 1 << 70])
def test_a_token_that_no_tokenizer_has(copy: Path, capsys, token: int) -> None:
    edit(copy, lambda m: m["tokens"].update(bos=token))
    refused(copy, f"token {token} of the manifest", capsys=capsys)


def test_numbers_out_of_range(copy: Path, capsys) -> None:
    edit(copy, lambda m: m["tokens"].update(bos=-1))
    refused(copy, "bos: expected a number of at least 0, found '-1'", capsys=capsys)
    edit(copy, lambda m: m["tokens"].update(bos=None))
    edit(copy, lambda m: m["image"]["layout"]["processing"].update(rescale=10**400))
    refused(copy, "a number", capsys=capsys)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_number_for(copy: Path, capsys, number: float) -> None:
    edit(copy, lambda m: m["generation"].update(top_p=number))
    says = f"generation: top_p: expected a number, found '{number}'"
    refused(copy, says, capsys=capsys)


Change = Callable[[dict[str, Any]], None]


def _experts(**changed: object) -> Change:
    whole = {"layers": [1, 3], "count": 8, "chosen": 2, "intermediate_size": 64}
    return lambda m: m["dims"].update(experts=whole | changed)


ROWS = {"rows": "int8", "policy": "avl", "questions": 9, "tokens": 9, "apart": 0, "divergence": 0}
CONTRADICTIONS: list[tuple[Change, str]] = [
    (lambda m: m["dims"].update(hidden_size=2), "an embedding of 2 columns"),
    (lambda m: m["dims"].update(num_heads=0), "dims: num_heads: expected at least 1, found 0"),
    (lambda m: m["dims"].update(max_positions=0), "max_positions: expected at least 1, found 0"),
    (lambda m: m["dims"].update(intermediate_size=0), "intermediate_size: expected at least 1"),
    (lambda m: m["dims"].update(num_heads=7), "a multiple of the 3 KV heads, found 7"),
    (lambda m: m["dims"].update(head_dims=[32] * 5), "head_dims: expected 6 sizes of at least 1"),
    (lambda m: m["dims"].update(head_dims=[16] * 6), "at most head_dim 32, which one of them has"),
    (_experts(chosen=0), "experts.chosen: expected at least 1, found 0"),
    (_experts(intermediate_size=0), "experts.intermediate_size: expected at least 1, found 0"),
    (_experts(chosen=9), "experts.chosen: expected at most the 8 that there are, found 9"),
    (_experts(layers=[]), "expected some of the 6 layers, ascending, found ()"),
    (_experts(layers=[3, 6]), "expected some of the 6 layers, ascending, found (3, 6)"),
    (_experts(layers=[3, 3]), "expected some of the 6 layers, ascending, found (3, 3)"),
    (lambda m: m["dims"].update(num_layers=7), "all 7 layers in order"),
    (lambda m: m["segments"][0].update(last_layer=0), "beginnings [0, 2] and ends [0, 6]"),
    (lambda m: m["segments"][1].update(first_layer=1), "beginnings [0, 1] and ends [2, 6]"),
    (lambda m: m.update(segments=[]), "all 6 layers in order"),
    (lambda m: m["embedding"].update(file="other.safetensors"), "one of the shards"),
    (lambda m: m["tokens"].update(eos=[3, 10**30]), "token ids from 0 to 2147483647, found 1000"),
    (lambda m: m["segments"][1].update(kinds=["full"]), "the 4 layers of decoder.1.onnx, found 1"),
    (lambda m: m["segments"][0].update(kinds=[]), "the 2 layers of decoder.0.onnx, found 0"),
    (lambda m: m["segments"][0].update(kinds="full"), "kinds: expected a list, found 'full'"),
    (lambda m: m["segments"][0].update(kinds=["full", 1]), "kinds: expected str, found '1'"),
    (lambda m: m["generation"].update(bad_words_ids=[[1], [2, 1 << 31]]), "found 2147483648"),
    (
        lambda m: m["segments"][0]["kept"].append(["int3", "decoder.0.onnx"]),
        "keeps (fp16, int8, int8-int4, int8-int2), found 'int3' beside decoder.0.onnx",
    ),
    (
        lambda m: m["segments"][1]["kept"].append(["computed", "decoder.1.onnx"]),
        "int8-int2), found 'computed' beside decoder.1.onnx",
    ),
    (
        lambda m: m["segments"][1]["kept"].append(["int8", "decoder.1.onnx"]),
        "one graph for rows in int8 beside decoder.1.onnx, found 2",
    ),
    (
        lambda m: m.update(checked_rows=ROWS) or m["segments"][1].update(kept=[]),
        "checked_rows: expected rows that decoder.1.onnx has a graph for, found int8",
    ),
]


@pytest.mark.parametrize(("change", "says"), CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself(copy: Path, capsys, change: Change, says: str) -> None:
    edit(copy, change)
    refused(copy, says, "export again", capsys=capsys)


def _moved_cut(manifest: dict[str, Any]) -> None:
    manifest["segments"][0]["last_layer"] = manifest["segments"][1]["first_layer"] = 3
    manifest["segments"][1]["kinds"].pop()
    manifest["segments"][0]["kinds"].append("full")


def _more_layers(manifest: dict[str, Any]) -> None:
    manifest["segments"][1]["last_layer"] = manifest["dims"]["num_layers"] = 10**30
    manifest["segments"][1]["kinds"] = None


OTHER_GRAPHS: list[tuple[Change, str]] = [
    (
        lambda m: m["dims"].update(num_kv_heads=2),
        "k_active.0 [any, 2, any, 32] as avl.json says, found [any, 3, any, 32]",
    ),
    (lambda m: m["dims"].update(head_dim=10**30), "found [any, 3, any, 32]"),
    (lambda m: m["dims"].update(vocab_size=2), "logits [any, any, 2]"),
    (_moved_cut, "decoder.0.onnx: expected 3 layers as avl.json says, found 2"),
    (_more_layers, "found 4"),
    (lambda m: m["segments"][1]["deepstack"].append(3), "a tensor deepstack.3"),
    (
        lambda m: m["segments"][1].update(file="decoder.1.int8.onnx"),
        "k_active.2 as tensor(float) as avl.json says, found tensor(int8)",
    ),
]


@pytest.mark.parametrize(("change", "says"), OTHER_GRAPHS)
def test_a_manifest_of_other_graphs(copy: Path, capsys, change: Change, says) -> None:
    edit(copy, change)
    refused(copy, says, "avl.json has changed since export", capsys=capsys)


def test_pictures_of_another_size_than_the_graph_reads(copy: Path, capsys) -> None:
    edit(copy, lambda m: m["image"]["layout"]["processing"].update(crop=[2, 168]))
    assert avl_run([str(copy), "What?", "--quiet", "--image", str(SAMPLE)]) == 1
    assert capsys.readouterr().err == (
        "avl-run: vision.onnx: expected pixel_values [1, 3, 2, 168] as avl.json says, found "
        "[any, 3, 168, 168]; avl.json has changed since export, export again\n"
    )


def test_a_dtype_the_cpu_does_not_have(copy: Path, capsys) -> None:
    edit(copy, lambda m: m.update(dtype="bf16"))
    refused(copy, "bf16", "--dtype fp32", capsys=capsys)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_manifest_raises_anything_but_one_line(
    tiny_package: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any value anywhere in the manifest: it is taken, or refused as a PackageError."""
    manifest = json.loads((tiny_package / MANIFEST).read_text())
    place: Any = manifest
    key: Any = data.draw(st.sampled_from(sorted(manifest)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
    place[key] = data.draw(JSON)
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    try:
        load_package(folder)
    except PackageError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(PackageError) as caught:
        load_package(folder)
    assert "\n" not in str(caught.value)

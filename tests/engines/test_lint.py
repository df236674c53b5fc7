"""What a parser drops or changes without an error is found, on made-up and on real networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import pytest

from avl_runtime.engines.lint import Attention, Layer, Listing, lint
from avl_runtime.engines.network import Toolkit, listing, load_toolkit, parse
from avl_runtime.engines.options import BuildError

INPUTS = ("hidden", "active_len.0", "parked_len.0")
GOOD = Listing(
    inputs=INPUTS,
    outputs=("hidden_out", "mass_active.0", "mass_parked.0"),
    layers=(
        Layer("masks", "SELECT", ("hidden", "active_len.0", "parked_len.0"), ("scores",)),
        Layer("softmax", "SOFTMAX", ("scores",), ("mass_active.0", "mass_parked.0")),
        Layer("result", "MATRIX_MULTIPLY", ("scores",), ("hidden_out",)),
    ),
)


def finding(found: Listing, plugins: Sequence[str] = (), lengths: Sequence[str] = ()) -> str:
    with pytest.raises(BuildError) as error:
        lint("decoder.0.onnx", found, INPUTS, plugins, lengths)
    text = str(error.value)
    assert text.startswith("decoder.0.onnx: expected ")
    return text


def with_layers(*layers: Layer) -> Listing:
    return replace(GOOD, layers=layers)


def attention(causal: str, has_lengths: bool, queries: int, keys: int) -> Layer:
    found = Attention(causal, has_lengths, (queries, keys))
    return Layer("attention 7", "ATTENTION_INPUT", ("scores",), ("x",), found)


def test_a_good_network_passes() -> None:
    lint("decoder.0.onnx", GOOD, INPUTS)
    aligned = attention("LOWER_RIGHT", True, -1, -1)
    lint("decoder.0.onnx", with_layers(*GOOD.layers, aligned), INPUTS, lengths=["node"])
    square = attention("UPPER_LEFT", False, 9, 9)
    lint("vision.onnx", with_layers(*GOOD.layers, square), INPUTS)


def test_an_input_that_nothing_reads() -> None:
    masks, softmax, result = GOOD.layers
    masks = replace(masks, inputs=("hidden", "active_len.0"))
    assert "parked_len.0 to be read" in finding(with_layers(masks, softmax, result))
    assert "parked_len.0 to be read" in finding(replace(GOOD, inputs=INPUTS[:2]))


@pytest.mark.parametrize("output", ["mass_active.0", "hidden_out"])
def test_lengths_that_do_not_reach_an_output(output: str) -> None:
    """The input is read, but by something else."""
    layers = [
        replace(layer, outputs=tuple(name for name in layer.outputs if name != output))
        for layer in GOOD.layers
    ]
    text = finding(with_layers(*layers, Layer("short cut", "CAST", ("hidden",), (output,))))
    assert f"{output} to depend on active_len.0" in text
    assert "no path to short cut" in text


@pytest.mark.parametrize("sizes", [(4, 9), (-1, -1)])
def test_a_causal_mask_aligned_with_the_first_key(sizes: tuple[int, int]) -> None:
    text = finding(with_layers(*GOOD.layers, attention("UPPER_LEFT", True, *sizes)))
    assert "aligned with the first at attention 7" in text


def test_key_lengths_that_were_dropped() -> None:
    found = with_layers(*GOOD.layers, attention("NONE", False, 1, 9))
    assert "key lengths at my node" in finding(found, lengths=["my node"])


def test_plugins_that_were_not_taken() -> None:
    taken = Layer("first", "PLUGIN_V3", ("scores",), ("y",))
    text = finding(with_layers(*GOOD.layers, taken), plugins=["first", "second"])
    assert "expected 2 plugin layers, found 1, without second" in text
    assert text.endswith("or build with --no-plugins")


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    pytest.importorskip("tensorrt_rtx")
    return load_toolkit("tensorrt-rtx")


def parsed(toolkit: Toolkit, inputs: str, outputs: str, nodes: str, domain: str = "") -> Listing:
    opsets = '"" : 24' + (f', "{domain}" : 1' if domain else "")
    model = onnx.parser.parse_model(
        f"<ir_version: 11, opset_import: [{opsets}]> g ({inputs}) => ({outputs}) {{ {nodes} }}"
    )
    network, unsupported = parse(toolkit, model, "model.onnx")
    assert unsupported == []
    return listing(toolkit, network.network)


QKV = "float16[B,2,S,64] q, float16[B,2,K,64] k, float16[B,2,K,64] v"


def test_the_real_parser_drops_lengths_of_standard_attention(toolkit: Toolkit) -> None:
    nodes = "y = Attention (q, k, v, , , , lengths)"
    found = parsed(toolkit, f"{QKV}, int64[B] lengths", "float16[B,2,S,64] y", nodes)
    with pytest.raises(BuildError, match="lengths"):
        lint("a.onnx", found, ("q", "k", "v", "lengths"), lengths=["Attention that makes y"])
    with pytest.raises(BuildError, match="key lengths at Attention that makes y"):
        lint("a.onnx", found, ("q", "k", "v"), lengths=["Attention that makes y"])


def test_the_real_parser_aligns_a_causal_mask_with_the_first_key(toolkit: Toolkit) -> None:
    nodes = "y = Attention <is_causal = 1> (q, k, v)"
    found = parsed(toolkit, QKV, "float16[B,2,S,64] y", nodes)
    with pytest.raises(BuildError, match="aligned with the first"):
        lint("a.onnx", found, ("q", "k", "v"))


def test_attention_without_a_mask_passes(toolkit: Toolkit) -> None:
    found = parsed(toolkit, QKV, "float16[B,2,S,64] y", "y = Attention (q, k, v)")
    assert [layer.attention.causal for layer in found.layers if layer.attention] == ["NONE"]
    lint("vision.onnx", found, ("q", "k", "v"))


def test_nodes_that_are_not_supported_are_named(toolkit: Toolkit) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 23, "strange" : 1]> '
        "g (float16[2] x) => (float16[2] y) { a = strange.One (x) y = strange.Two (a) }"
    )
    _, unsupported = parse(toolkit, model, "model.onnx")
    assert [text.split(":  ")[0].split(": ")[0] for text in unsupported] == [
        "strange::One that makes a",
        "strange::Two that makes y",
    ]

#!/usr/bin/env bash
# TensorRT-RTX takes ONNX's Attention without a word and then has no kernel for it in float32,
# whatever the size of the heads, nor in float16 for heads above 256: the parser reports no error, no
# node is unsupported, and the build fails. An attention that comes from ONNX is not marked
# decomposable, and no attribute of the node says so: the parsed network's layer must be cast to
# IAttentionInputLayer and marked by hand, after which everything builds. Programs that only parse
# and build, as trtexec's kind, cannot do that.
#
# Guess before running: what the parser takes is built, in float32 by single steps if need be.
# Found with tensorrt-rtx 1.7.1.116, which builds on a CPU (no GPU is needed): no engine.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tensorrt-rtx==1.7.1.116 onnx==1.22.0
"$folder/venv/bin/python" - <<'PYTHON'
import onnx
import tensorrt_rtx as trt

LOG = trt.Logger(trt.Logger.INTERNAL_ERROR)
KINDS = {"float": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}


def model(kind: str, head_dim: int) -> bytes:
    shape = f"{kind}[n, 3, 16, {head_dim}]"
    return onnx.parser.parse_model(
        f'<ir_version: 11, opset_import: ["" : 23]> g ({shape} x) => ({shape} y) '
        f"<float[1] half = {{0.5}}> {{ c = Cast <to = {KINDS[kind]}> (half) q = Mul (x, c) "
        "k = Add (x, c) v = Sub (x, c) y = Attention (q, k, v) }"
    ).SerializeToString()


def built(kind: str, head_dim: int, mark: bool) -> bool:
    builder = trt.Builder(LOG)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOG)
    assert parser.parse(model(kind, head_dim)) and parser.num_errors == 0
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    (layer,) = [one for one in layers if one.type == trt.LayerType.ATTENTION_INPUT]
    layer.__class__ = trt.IAttentionInputLayer
    assert not layer.attention.decomposable
    layer.attention.decomposable = mark
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *[(count, 3, 16, head_dim) for count in (1, 4, 4)])
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


print("tensorrt-rtx", trt.__version__)
found = {}
for kind, head_dim, mark in (
    ("float", 64, False),
    ("float", 64, True),
    ("float16", 256, False),
    ("float16", 320, False),
    ("float16", 320, True),
):
    outcome = found[kind, head_dim, mark] = built(kind, head_dim, mark)
    said = "decomposable" if mark else "as parsed"
    print(f"{kind}, heads of {head_dim}, {said}: {'an engine' if outcome else 'no engine'}")
assert list(found.values()) == [False, True, True, False, True], found
PYTHON
echo "as described"

"""A package as a model of Triton Inference Server, against a stand-in of what the server gives it.

No server was to be had: these tests hold its documents.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.serve.inference_server.model import parameters
from avl_runtime.serve.inference_server.repository import proto_text, write_repository
from support import triton_utils
from support.server import ONE, TWO
from support.triton_utils import Request, TritonError

NAME = "tiny"


# What no output tells.
UNTOLD = {
    "logprobs": True,
    "top_logprobs": 2,
    "placements": True,
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
}


def configured(model: Path) -> dict[str, Any]:
    """What the server makes of the parameters in config.pbtxt."""
    text = (model / "config.pbtxt").read_text()
    found = re.findall(r'key: ("\w+") value: { string_value: (".*") }', text)
    return {json.loads(key): {"string_value": json.loads(value)} for key, value in found}


def picture(one: Any) -> bytes:
    stream = io.BytesIO()
    one.image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue())


def sampling(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.fixture(scope="module")
def model(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = write_repository(tmp_path_factory.mktemp("models"), NAME, tiny_package)
    chosen = {"backend": "ort-cpu", "kv_bytes": "20000000000", "cache_dir": "rows"}
    given = configured(folder) | {name: {"string_value": one} for name, one in chosen.items()}
    sys.modules["triton_python_backend_utils"] = triton_utils
    spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.TritonPythonModel()
    config = {"parameters": given | {"FORCE_CPU_ONLY_INPUT_TENSORS": {"string_value": "yes"}}}
    found.initialize(
        {
            "model_config": json.dumps(config),
            "model_instance_kind": "MODEL",
            "model_instance_device_id": "0",
            "model_repository": str(folder),
            "model_version": "1",
            "model_name": NAME,
        }
    )
    assert found._answering.rows.limit == 20_000_000_000
    assert (folder / "rows").is_dir()
    yield found
    del sys.modules["triton_python_backend_utils"]
    found.finalize()
    assert triton_utils.Logger.told == []


def executed(model: Any, *requests: Request) -> list[list[triton_utils.InferenceResponse]]:
    assert model.execute(list(requests)) is None
    for request in requests:
        request.tensors = None
    for request in requests:
        assert request.sender.ended.wait(120)
    return [request.sender.responses for request in requests]


def test_answers_whole_and_in_pieces(model: Any, tiny: LVLM) -> None:
    asked = sampling(max_tokens=12, policy="avl")
    whole, pieces, two = executed(
        model,
        Request(text_input=ONE.prompt.encode(), image=picture(ONE), sampling_parameters=asked),
        Request(text_input=TWO.prompt.encode(), image=picture(TWO), stream=True),
        Request(
            text_input=b"Which?",
            image=[picture(ONE), b"data:image/png;base64," + picture(TWO)],
            stream=False,
            sampling_parameters=sampling(max_tokens=4),
        ),
    )
    first = tiny.generate(ONE.prompt, [ONE.image], policy="avl", max_new_tokens=12)
    (answer,) = whole
    assert (answer.text("text_output"), answer.text("finish_reason")) == (first.text, "length")
    second = tiny.generate(TWO.prompt, [TWO.image])
    assert "".join(one.text("text_output") for one in pieces) == second.text
    *before, last = [one.text("finish_reason") for one in pieces]
    assert last == "stop" and set(before) <= {""}
    third = tiny.generate("Which?", [ONE.image, TWO.image], max_new_tokens=4)
    assert [one.text("text_output") for one in two] == [third.text]


def test_what_is_wrong_is_told_and_stops_nobody(model: Any) -> None:
    wrong = [
        Request(text_input=b"a", sampling_parameters=b"[1]"),
        Request(text_input=b"a", sampling_parameters=sampling(n=2)),
        Request(text_input=b"a", sampling_parameters=sampling(nothing=1)),
        *(
            Request(text_input=b"a", sampling_parameters=sampling(**{name: value}))
            for name, value in UNTOLD.items()
        ),
        Request(text_input=b"a", image=b"no picture"),
        Request(text_input=b"a", image=b"http://127.0.0.1/a.png"),
        Request(text_input=b"\xff"),
    ]
    right = Request(text_input=b"a", sampling_parameters=sampling(max_tokens=2))
    *refused, answered = executed(model, *wrong, right)
    for (one,) in refused:
        assert one.error is not None and one.error.code() == TritonError.INVALID_ARG
        assert "expected" in one.error.message() and "/" not in one.error.message()
    assert answered[0].error is None


def test_who_gives_up_is_told_no_more(model: Any) -> None:
    long = sampling(max_tokens=2000, min_new_tokens=2000)
    request = Request(text_input=b"Go on.", stream=True, sampling_parameters=long)
    request.sender.cancelled = True
    (found,) = executed(model, request)
    assert all(one.text("finish_reason") == "" for one in found)


def test_a_repository_that_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_repository(tmp_path / "models", NAME, tmp_path / 'a"b\\é.avl')
    text = (folder / "config.pbtxt").read_text()
    assert f'string_value: "{tmp_path}/a\\"b\\\\\\303\\251.avl"' in text
    assert proto_text("a\n") == '"a\\012"'
    package = tmp_path / "a.avl"
    with pytest.raises(AvlError, match="without a model tiny, found one"):
        write_repository(tmp_path / "models", NAME, package)
    for name in ("", "..", "a/b", "a b"):
        with pytest.raises(AvlError, match="expected a model's name"):
            write_repository(tmp_path / "models", name, package)
    (tmp_path / "file").write_text("")
    for inner in ("file", "file/models"):
        with pytest.raises(AvlError, match=f"found a file at {tmp_path}/file"):
            write_repository(tmp_path / inner, NAME, package)
    (tmp_path / "other.avl").mkdir()
    (tmp_path / "other.avl" / "avl.json").write_text("{}")
    for inside in ("a.avl", "a.avl/models", "other.avl/some/models"):
        with pytest.raises(AvlError, match="expected a folder outside of packages"):
            write_repository(tmp_path / inside, NAME, package)
    with pytest.raises(AvlError, match=r"expected a package outside of .*/new/tiny"):
        write_repository(tmp_path / "new", NAME, tmp_path / "new" / NAME / "a.avl")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(AvlError, match=f"found one that may not be written at {tmp_path};"):
        write_repository(tmp_path / "new" / "models", NAME, package)


def test_the_configuration_is_one_of_the_protocol(tmp_path: Path) -> None:
    """Read by the protocol's own protobuf, where tritonclient[grpc] is installed."""
    protocol = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    folder = write_repository(tmp_path, NAME, tmp_path / 'a"b\\é.avl')
    read = text_format.Parse((folder / "config.pbtxt").read_text(), protocol.ModelConfig())
    assert (read.name, read.backend, read.max_batch_size) == (NAME, "python", 0)
    assert read.model_transaction_policy.decoupled
    assert [one.name for one in read.input if not one.optional] == ["text_input"]
    given = {name: {"string_value": one.string_value} for name, one in read.parameters.items()}
    assert parameters({"parameters": given})["package"] == str(tmp_path / 'a"b\\é.avl')


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("nothing", "1", "expected package, running"),
        ("package", "", "found none"),
        ("kv_bytes", "half", "as kv_bytes"),
        ("running", "0", "at least 1 as running"),
        ("max_new_tokens", "9" * 5000, "as max_new_tokens"),
    ],
)
def test_parameters_that_cannot_be_used(name: str, value: str, told: str) -> None:
    given = {"package": {"string_value": "a.avl"}} | {name: {"string_value": value}}
    with pytest.raises(AvlError, match=told):
        parameters({"parameters": given})

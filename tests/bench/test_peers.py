"""Other libraries beside avl: what they are given, and our side of how they are asked."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import bench_all
from avl_runtime.bench.against import PEERS, peer_candidates
from avl_runtime.bench.errors import BenchError
from avl_runtime.bench.peers import gguf_build, llama_peer, openvino_peer
from avl_runtime.bench.peers.text import build, row_numbers, text_tokens
from avl_runtime.bench.peers.text_model import write_text_model
from avl_runtime.package.package import load_package
from make_random import PRESETS, write

PYTHON = "AVL_PEER_PYTHON"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint, and its text decoder."""
    folder = tmp_path_factory.mktemp("small")
    write(folder / "whole", PRESETS["small"])
    write_text_model(folder / "whole", folder / "text")
    return folder / "whole", folder / "text"


def test_the_text_model_is_the_checkpoints_decoder(small: tuple[Path, Path]) -> None:
    ids = torch.tensor([[3, 141, 59, 26, 5]])
    whole = AutoModelForImageTextToText.from_pretrained(small[0]).eval()
    text = AutoModelForCausalLM.from_pretrained(small[1]).eval()
    with torch.inference_mode():
        torch.testing.assert_close(text(ids).logits, whole(ids).logits)


def rotated(values: np.ndarray, position: int, neighbours: bool) -> np.ndarray:
    """RoPE of one head, number by number."""
    half = len(values) // 2
    found = np.zeros(len(values))
    for pair in range(half):
        first, second = (2 * pair, 2 * pair + 1) if neighbours else (pair, pair + half)
        angle = position * 10000.0 ** (-pair / half)
        c, s = np.cos(angle), np.sin(angle)
        found[first] = values[first] * c - values[second] * s
        found[second] = values[second] * c + values[first] * s
    return found


def test_queries_and_keys_score_alike_in_llama_cpps_layout() -> None:
    rng = np.random.default_rng(0)
    heads, size, hidden = 3, 8, 5
    query, key = rng.standard_normal((2, heads * size, hidden))
    x, y = rng.standard_normal((2, hidden))

    def scores(q: np.ndarray, k: np.ndarray, neighbours: bool) -> list[float]:
        pairs = zip((q @ x).reshape(heads, size), (k @ y).reshape(heads, size), strict=True)
        return [rotated(a, 7, neighbours) @ rotated(b, 2, neighbours) for a, b in pairs]

    moved = [gguf_build.neighbours(one, heads) for one in (query, key)]
    np.testing.assert_allclose(scores(*moved, True), scores(query, key, False))
    assert not np.allclose(scores(query, key, True), scores(query, key, False))


def test_every_tensor_has_a_name_in_gguf(small: tuple[Path, Path]) -> None:
    config = json.loads((small[1] / "config.json").read_text())
    tensors = {k: v.numpy() for k, v in load_file(small[1] / "model.safetensors").items()}
    found = gguf_build.renamed(config, tensors)
    assert len(found) == len(tensors) == 3 + 9 * config["num_hidden_layers"]
    down = "model.layers.3.mlp.down_proj.weight"
    np.testing.assert_array_equal(found["blk.3.ffn_down.weight"], tensors[down].astype(np.float16))
    key = "model.layers.3.self_attn.k_proj.weight"
    assert not np.array_equal(found["blk.3.attn_k.weight"], tensors[key].astype(np.float16))
    assert found["blk.0.attn_norm.weight"].dtype == np.float32
    with pytest.raises(
        SystemExit, match=r"plain Llama, found model.layers.0.self_attn.q_proj.bias"
    ):
        gguf_build.renamed(config, {"model.layers.0.self_attn.q_proj.bias": np.zeros(4)})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model_type": "qwen2"}, "found qwen2"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "found llama3"),
    ],
)
def test_other_decoders_are_refused_for_llama_cpp(change: dict[str, Any], found: str) -> None:
    assert gguf_build.rope_theta({"model_type": "llama", "rope_theta": 5e5}) == 5e5
    with pytest.raises(SystemExit, match=f"{found}; leave llama.cpp out"):
        gguf_build.rope_theta({"model_type": "llama", **change})


def test_a_failed_conversion_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(RuntimeError, match=r"^expected a decoder of llama, .*, found mamba"):
        build("gguf_build", str(tmp_path), tmp_path / "made", "f16")


CONFIG = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
JOB = {
    "input_ids": [1, 9, 9, 2],
    "visual_tokens": [9],
    "new_tokens": 3,
    "batch": 1,
    "threads": 2,
    "checkpoint": "none is read, as it is converted already",
}


def test_prompts_of_text_and_bytes_of_rows() -> None:
    ids = text_tokens(JOB)
    assert len(ids) == 4 and (ids[0], ids[3]) == (1, 2) and {*ids[1:3]} <= {1, 2}
    assert row_numbers({**CONFIG, "hidden_size": 32}) == 2 * 2 * 2 * 8
    assert row_numbers({**CONFIG, "hidden_size": 32, "head_dim": 16}) == 2 * 2 * 2 * 16


class OpenVINO(SimpleNamespace):
    """What the worker uses of OpenVINO GenAI; answers the prompt's first tokens again."""

    def __init__(self) -> None:
        super().__init__()
        self.SchedulerConfig = self.GenerationConfig = SimpleNamespace
        self.StreamerBase = object
        self.StreamingStatus = SimpleNamespace(RUNNING="on")
        self.Tokenizer = str
        self.TokenizedInputs = lambda ids, mask: (ids, mask)
        self.LLMPipeline = self.pipeline
        self.asked: dict[str, Any] = {}

    def pipeline(self, model: str, tokenizer: str, device: str, **properties: Any) -> Any:
        self.asked = {"device": device, **properties}

        def generate(inputs: Any, config: Any, streamer: Any) -> Any:
            assert config.ignore_eos and config.min_new_tokens == config.max_new_tokens
            tokens = inputs[0][0][: config.max_new_tokens]
            assert [streamer.write(token) for token in tokens] == ["on"] * len(tokens)
            return SimpleNamespace(tokens=[tokens])

        return SimpleNamespace(generate=generate)


@pytest.mark.parametrize("precision", [None, "f32"])
def test_openvino_is_asked_without_its_cache_of_prefixes(
    precision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = OpenVINO()
    monkeypatch.setitem(sys.modules, "openvino_genai", library)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Tensor=lambda array: array))
    monkeypatch.setattr(openvino_peer, "version", lambda name: "1")
    made = tmp_path / "openvino-int4" / "model"
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 32}))
    kind = {"weights": "int4", "rows": "u8", "precision": precision, "folder": str(tmp_path)}
    run, told = openvino_peer.load({**JOB, **kind})
    schedule = library.asked.pop("scheduler_config")
    assert schedule.enable_prefix_caching is False
    hint = {} if precision is None else {"INFERENCE_PRECISION_HINT": "f32"}
    expected = {"device": "CPU", "INFERENCE_NUM_THREADS": 2, "KV_CACHE_PRECISION": "u8", **hint}
    assert library.asked == expected
    found = run()
    assert found["tokens"] == [text_tokens(JOB)[:3]] and len(found["steps_s"]) == 2
    assert found["kv_bytes"] == (4 + 3) * 64 and told["weights"] == "int4"


class Llama(SimpleNamespace):
    """What the worker uses of llama.cpp: after token t comes t + 1, and a cache to be cleared."""

    WORDS = 16

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, list[int]] = {}  # of each sequence
        self.calls: list[int] = []
        self.context = SimpleNamespace()
        self.most = 0
        for name in ("model_get_vocab", "get_memory", "backend_init"):
            setattr(self, f"llama_{name}", lambda *_: None)
        self.llama_model_default_params = self.llama_context_default_params = SimpleNamespace
        self.llama_model_load_from_file = lambda path, params: 1
        self.llama_vocab_n_tokens = lambda vocabulary: self.WORDS
        self.llama_print_system_info = lambda: b"CPU : AVX2 = 1"

    def llama_init_from_model(self, model: int, params: Any) -> int:
        self.context = params
        return 1

    def llama_batch_init(self, most: int, embedding: int, sequences: int) -> Any:
        kinds = ("token", "pos", "n_seq_id", "logits")
        arrays = {kind: [0] * most for kind in kinds}
        return SimpleNamespace(seq_id=[[0] * sequences for _ in range(most)], **arrays)

    def llama_memory_clear(self, memory: None, data: bool) -> None:
        self.rows = {}

    def llama_decode(self, context: int, batch: Any) -> int:
        count = batch.n_tokens
        assert count <= self.context.n_batch and batch.n_seq_id[:count] == [1] * count
        self.calls.append(count)
        self.last = batch
        for index in range(count):
            rows = self.rows.setdefault(batch.seq_id[index][0], [])
            assert batch.pos[index] == len(rows)
            rows.append(batch.token[index])
        assert set(self.rows) <= set(range(self.context.n_seq_max))
        self.most = max(self.most, *map(len, self.rows.values()))
        return int(self.most > self.context.n_ctx // self.context.n_seq_max)

    def llama_get_logits_ith(self, context: int, place: int) -> Any:
        assert self.last.logits[place]
        logits = np.zeros(self.WORDS, np.float32)
        logits[(self.last.token[place] + 1) % self.WORDS] = 1
        self.kept = logits
        return logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


@pytest.mark.parametrize(("flash", "batch"), [(False, 1), (True, 1), (False, 3)])
def test_llama_cpp_begins_every_run_anew(
    flash: bool, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Llama()
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(llama_cpp=library))
    monkeypatch.setattr(llama_peer, "version", lambda name: "1")
    made = tmp_path / "gguf-q4_0"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 32}))
    job = {**JOB, "batch": batch, "weights": "q4_0", "flash": flash, "folder": str(tmp_path)}
    run, told = llama_peer.load(job)
    for _ in range(3):
        library.calls.clear()
        found = run()
        assert found["tokens"] == [[3, 4, 5]] * batch and len(found["steps_s"]) == 2
        assert library.calls == [4] * batch + [batch] * 2
    assert library.most == 4 + 2 and library.context.n_threads == 2
    assert library.context.flash_attn_type == int(flash)
    assert found["kv_bytes"] == batch * (4 + 3) * 64 * 2
    assert told["versions"]["llama.cpp"] == "CPU : AVX2 = 1"


def test_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one sequence, found a batch of 2"):
        openvino_peer.load({**JOB, "batch": 2})


def test_one_thread_is_refused_where_openvino_crashes_with_it() -> None:
    with pytest.raises(ValueError, match="expected two threads or more, found 1"):
        openvino_peer.load({**JOB, "threads": 1, "weights": "fp16", "precision": None})


def test_the_script_installs_what_refusals_name() -> None:
    text = (Path(bench_all.ROOT) / "scripts/peers.txt").read_text()
    lines = {line for line in text.splitlines() if not line.startswith("#")}
    names = {line.partition("==")[0] for line in lines}
    for peer in PEERS.values():
        for wanted in peer.packages.split():
            assert wanted in (lines if "==" in wanted else names)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("exit 3", "ends with status 3"),
        ("echo hi", "ends with status 0"),
        ("", "ends with status 0"),
    ],
)
def test_what_is_no_python_is_named(
    said: str, found: str, tiny_package: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "python"
    wrong.write_text(f"#!/bin/sh\n{said}\n")
    wrong.chmod(0o755)
    with pytest.raises(BenchError, match=f"expected a Python interpreter, found .*{found}"):
        peer_candidates([load_package(tiny_package)], ["llama.cpp"], str(wrong), None)


def test_a_checkpoint_of_other_sizes_is_refused(
    small: tuple[Path, Path], tiny_package: Path, tmp_path: Path
) -> None:
    package = [load_package(tiny_package)]
    with pytest.raises(BenchError, match=r"--checkpoint: .* hidden_size is \d+, found 256 in"):
        peer_candidates(package, ["transformers"], None, small[0])
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(BenchError, match="expected a checkpoint of Hugging Face"):
        peer_candidates(package, ["transformers"], None, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "nonsense"], "found 'nonsense'"),
        (["--only", "try,nonsense"], "found 'nonsense'"),
        (["--only", ""], "expected records, or try alone"),
        (["--only", "s1,try"], "expected records, or try alone"),
        (["--repeats", "0"], "expected a whole number of at least 1, found '0'"),
        (["--threads", "x"], "expected a whole number of at least 1, found 'x'"),
    ],
)
def test_records_are_looked_at_before_any_is_measured(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench_all.main([*arguments, "--folder", str(tmp_path / "f"), "--out", str(tmp_path / "o")])
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def peer_python() -> Iterator[str]:
    """Of an environment that scripts/peers.sh made."""
    if PYTHON not in os.environ:
        pytest.skip(f"{PYTHON} is not set: run scripts/peers.sh, and name the Python it prints")
    yield os.environ[PYTHON]


@pytest.mark.parametrize("kind", ["fp32", "int4"])
def test_all_peers_read_the_same_prompt(kind: str, peer_python: str, tmp_path: Path) -> None:
    record = bench_all.Record(
        "small",
        ("dense",),
        ("--visual-tokens", "0", "--text-tokens", "40", "--new-tokens", "8"),
        bench_all.TEXT_PEERS,
        stored="fp16",
        kind=kind,
        repeats=2,
    )
    bench_all.TRIALS[kind] = record
    options = ["--only", kind, "--folder", str(tmp_path), "--peer-python", peer_python]
    bench_all.main([*options, "--threads", "2", "--idle-wait", "0"])
    report = json.loads((tmp_path / f"bench-{kind}.json").read_text())
    rows = {row["name"]: row for row in report["candidates"]}
    names = ["openvino", "openvino f32", "llama.cpp", "llama.cpp flash", "onnxruntime-genai"]
    assert list(rows) == ["dense", *names]
    if kind == "fp32":  # the same weights: the same answer, but for what fp16 rounds
        assert rows["onnxruntime-genai"]["same_tokens"] == 1
        assert rows["openvino f32"]["same_tokens"] == rows["llama.cpp"]["same_tokens"] == 1

"""Whole requests beside OpenVINO's VLMPipeline: what it is given, and how it is asked."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_peers import PYTHON, OpenVINO
from transformers import AutoModelForImageTextToText, AutoProcessor

import bench_all
import whole_requests
from avl_runtime.bench.peers import openvino_vlm_build as build
from avl_runtime.bench.peers import openvino_vlm_peer as peer
from make_random import PRESETS, write

TINY = Path(whole_requests.ROOT) / "avl_export/models/avl-tiny"


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "small"
    write(folder, PRESETS["small"])
    return folder


@pytest.mark.parametrize("which", ["avl-tiny", "random"])
def test_the_older_names_hold_the_same_model(
    which: str, random_weights: Path, tmp_path: Path
) -> None:
    source = TINY if which == "avl-tiny" else random_weights
    build.write_older(source, tmp_path / "older")
    build.check_whole(tmp_path / "older")
    mine, theirs = (
        AutoModelForImageTextToText.from_pretrained(one, dtype=torch.float32).eval()
        for one in (source, tmp_path / "older")
    )
    side = mine.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    image = mine.config.image_token_id
    ids = torch.tensor([[5, *[image] * mine.config.image_seq_length, 6, 7]])
    with torch.inference_mode():
        found, wanted = (one(input_ids=ids, pixel_values=pixels).logits for one in (theirs, mine))
    torch.testing.assert_close(found, wanted)


def test_names_are_those_that_old_checkpoints_have() -> None:
    names = {
        "model.vision_tower.encoder.layers.0.mlp.fc1.bias": "vision_tower.vision_model.encoder."
        "layers.0.mlp.fc1.bias",
        "model.multi_modal_projector.linear_1.bias": "multi_modal_projector.linear_1.bias",
        "model.language_model.norm.weight": "language_model.model.norm.weight",
        "lm_head.weight": "language_model.lm_head.weight",
    }
    for newer, older in names.items():
        assert build.older_name(newer) == older == build.older_name(older)


def test_a_missing_weight_ends_the_conversion(random_weights: Path, tmp_path: Path) -> None:
    build.write_older(random_weights, tmp_path / "older")
    path = tmp_path / "older" / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"found none for 16 weights, as model\.vision_tower"):
        build.check_whole(tmp_path / "older")


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(SystemExit, match="expected a checkpoint of llava, found qwen3_vl"):
        build.write_older(tmp_path, tmp_path / "older")


def test_pictures_and_the_first_token_are_transformers(tmp_path: Path) -> None:
    build.write_older(TINY, tmp_path / "older")
    mine = AutoProcessor.from_pretrained(TINY, backend="pil").image_processor
    told = json.loads((tmp_path / "older" / build.PICTURES).read_text())
    assert told["size"] == {"shortest_edge": mine.size.shortest_edge}
    assert told["image_mean"] == list(mine.image_mean) and told["resample"] == mine.resample
    build.begin_with_bos(tmp_path / "older")
    assert peer.has_template(tmp_path / "older")
    assert (tmp_path / "older" / build.TEMPLATE).read_text().startswith("<s>{%-")


class VLM(OpenVINO):
    """As OpenVINO, for pictures; answers with their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.VLMPipeline = self.pictures

    def pictures(self, model: str, device: str, **properties: Any) -> Any:
        self.asked = {"device": device, **properties}

        def generate(prompt: str, images: list[Any], generation_config: Any, streamer: Any) -> Any:
            assert generation_config.ignore_eos and not generation_config.apply_chat_template
            for token in range(generation_config.max_new_tokens):
                assert streamer.write(token) == "on"
            metrics = SimpleNamespace(get_num_input_tokens=lambda: 7)
            text = f"{prompt} {images[0].shape}"
            return SimpleNamespace(perf_metrics=metrics, texts=[text])

        return SimpleNamespace(generate=generate)


def test_the_pipeline_is_asked_without_its_cache_of_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = VLM()
    monkeypatch.setitem(sys.modules, "openvino_genai", library)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Tensor=np.asarray))
    monkeypatch.setattr(peer, "version", lambda name: "1")
    model = tmp_path / "openvino-vlm-int4" / "model"
    model.mkdir(parents=True)
    (model / "tokenizer_config.json").write_text("{}")
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    asked = [{"picture": str(tmp_path / "a.png"), "prompt": prompt} for prompt in ("one", "two")]
    job = {"checkpoint": "none", "folder": str(tmp_path), "weights": "int4", "rows": "u8"}
    job |= {"precision": "f32", "threads": 2, "new_tokens": 3, "rounds": [asked[:1], asked[1:]]}
    run, told = peer.load(job)
    assert library.asked.pop("scheduler_config").enable_prefix_caching is False
    precision = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "u8"}
    assert library.asked == {"device": "CPU", "INFERENCE_NUM_THREADS": 2, **precision}
    assert told["weights"] == "int4"
    for prompt in ("one", "two"):
        (one,) = run()["requests"]
        assert one["text"] == f"{prompt} (1, 3, 4, 3)" and one["prompt_tokens"] == 7
        assert 0 < one["first_s"] < one["total_s"]


def test_one_thread_is_refused_where_openvino_crashes_with_it() -> None:
    with pytest.raises(ValueError, match="expected two threads or more, found 1"):
        peer.load({"threads": 1, "weights": "fp16", "precision": None})


def test_every_round_has_pictures_of_its_own(tmp_path: Path) -> None:
    for name in ("tiny", "try"):
        case, place = whole_requests.CASES[name], tmp_path / name
        place.mkdir()
        found = whole_requests.requests(case, place)
        files = [one["picture"] for requests in found for one in requests]
        seen = {Image.open(file).tobytes() for file in files}
        assert len(found) == 1 + case.repeats
        assert len(seen) == len(files) == case.pictures * (1 + case.repeats)


def figures(texts: list[str], prompt_tokens: int = 9) -> whole_requests.Figures:
    found = whole_requests.Figures()
    found.texts, found.prompt_tokens = texts, prompt_tokens
    return found


def test_other_prompts_and_other_texts_are_refused() -> None:
    case = whole_requests.CASES["tiny"]
    dense = figures(["a", "b"])
    whole_requests.check(case, {"dense": dense, "openvino": figures(["x", "y"])})
    whole_requests.check(case, {"dense": dense, "openvino f32": figures(["a", "b"])})
    with pytest.raises(SystemExit, match="openvino f32: expected dense's text 'b', found 'c'"):
        whole_requests.check(case, {"dense": dense, "openvino f32": figures(["a", "c"])})
    with pytest.raises(SystemExit, match="prompt of 9 tokens, as dense reads, found 8"):
        whole_requests.check(case, {"dense": dense, "openvino": figures(["a", "b"], 8)})


def test_bench_all_measures_them_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("dense", 6.0), ("dense bf16", 4.0), ("openvino", 8.0), ("openvino f32", 9.0)]
    found = [{"name": name, "first_ms": {"median": value}} for name, value in rows]

    def run(script: Path, *command: object) -> None:
        assert script.name == "whole_requests.py"
        asked = dict(zip(command[::2], command[1::2], strict=True))
        assert asked["--peer-python"] == Path("python") and asked["--threads"] == 2
        Path(str(asked["--json"])).write_text(json.dumps({"tiny": {"candidates": found}}))

    monkeypatch.setattr(bench_all, "run", run)
    options = ["--only", "requests", "--peer-python", "python", "--threads", "2"]
    bench_all.main([*options, "--folder", str(tmp_path / "f"), "--out", str(tmp_path / "o")])
    told = json.loads((tmp_path / "o" / "bench-targets.json").read_text())["targets"]
    ratios = {one["what"]: one for one in told if one["found"] is not None}
    (what,) = ratios
    assert what.startswith("avl-tiny: ") and ratios[what]["found"] == 0.5
    assert ratios[what]["reached"] and f"| {what} | 0.500 |" in capsys.readouterr().out


@pytest.mark.parametrize("amx", [True, False])
def test_bf16_is_measured_where_there_is_amx(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = SimpleNamespace(runs_amx=lambda: amx)
    monkeypatch.setattr(whole_requests, "host", lambda: kernels)
    found = whole_requests.candidates(whole_requests.CASES["tiny"], TINY, TINY, "python")
    own = {name: job["compute"] for name, (_, job) in found.items() if "openvino" not in name}
    wanted = dict.fromkeys(("dense", "fastv", "avl"), "auto")
    if amx:
        wanted |= dict.fromkeys(("dense bf16", "fastv bf16", "avl bf16"), "bf16")
    assert own == wanted and len(found) == len(wanted) + 2


def test_a_package_is_measured(tiny_package: Path) -> None:
    case = dataclasses.replace(
        whole_requests.CASES["tiny"],
        policies=("dense",),
        pictures=1,
        starts=1,
        repeats=1,
        bf16=False,
    )
    started = whole_requests.candidates(case, tiny_package, TINY, None)
    report = whole_requests.measure(case, started, 1, 0, lambda line: None)
    (row,) = report["candidates"]
    assert report["prompt_tokens"] == 144 + 13 and row["weights"] == "fp32"
    assert 0 < row["first_ms"]["median"] < row["total_ms"]["median"]
    assert whole_requests.table("tiny", report).count("| dense |") == 1


def test_the_peer_is_measured_beside_it(tmp_path: Path) -> None:
    if PYTHON not in os.environ:
        pytest.skip(f"{PYTHON} is not set: run scripts/peers.sh, and name the Python it prints")
    out = tmp_path / "found.json"
    options = ["--only", "try", "--folder", str(tmp_path), "--json", str(out), "--idle-wait", "0"]
    whole_requests.main([*options, "--peer-python", os.environ[PYTHON], "--threads", "2"])
    report = json.loads(out.read_text())["try"]
    assert report["prompt_tokens"] == 16 + 1 + 16
    assert [row["name"] for row in report["candidates"]] == ["dense", "openvino", "openvino f32"]

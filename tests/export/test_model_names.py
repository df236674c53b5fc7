"""MODEL that is no checkpoint: said what it is, without a word to the network or torch."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from avl_export import cli
from avl_export.checkpoint.checkpoint import find_checkpoint
from avl_export.checkpoint.hub import HubError
from avl_export.checkpoint.model_names import is_path
from export.hub_server import serve, use

Refused = Callable[..., str]
HUB_SHAPED = ("models/llava-finetune", "models/completely-different")


@pytest.fixture(autouse=True)
def _alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A working directory with two checkpoints' folders, and no network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("llava-finetuned", "other"):
        (tmp_path / "models" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("./nope", "there is no nope in"),
        ("./modles", "is it models?"),
        ("models/llava-finetune", "is it models/llava-finetuned?"),
        ("models/LLaVA-Finetuned/", "is it models/llava-finetuned?"),
        ("model/llava-finetuned/", "is it models/llava-finetuned?"),
        ("./models/llava-finetuned/checkpoint-500", "there is no checkpoint-500 in"),
        ("~/models/llava_finetuned", "/models/llava-finetuned?"),
        ("~nobody-of-this-name/llava", "there is no ~nobody-of-this-name in"),
        ("/somewhere/llava", "there is no somewhere in /"),
        ("models/completely-different", "there is no completely-different in"),
        ("models\\llava-finetuned", "is it models/llava-finetuned?"),
        ("C:\\models\\llava", "there is no"),
        ("C:/llava", "there is no C: in"),
        ("a/b/c/d", "there is no a in"),
        ("x" * 5000 + "/" + "y" * 5000 + "/", "no such folder"),
    ],
    ids=lambda text: text[:40],
)
def test_misspelt_folders(model: str, said: str, refused: Refused) -> None:
    line = refused(model)
    assert "expected a checkpoint folder or a hub id ORG/NAME, found no such folder" in line
    assert said in line
    assert ("--revision main" in line) == (model in HUB_SHAPED)
    assert len(line) < 600


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("llava.gguf", "there is no llava.gguf in"),
        ("models/lava-q4_k.gguf", "is it models/llava-Q4_K_M.gguf?"),
        ("model/llava-Q4_K_M.gguf", "is it models/llava-Q4_K_M.gguf?"),
        ("org/llava-Q4_K_M.gguf", "there is no org in"),
        ("weights/model.safetensors", "there is no weights in"),
    ],
)
def test_misspelt_files(model: str, said: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "models" / "llava-Q4_K_M.gguf").write_bytes(b"GGUF")
    line = refused(model)
    file = ", a GGUF file" if model.endswith(".gguf") else ""
    assert f"expected a checkpoint folder{file} or a hub id ORG/NAME, found no such file" in line
    assert said in line
    assert ("--revision main" in line) == ("/" in model)


def test_a_folder_or_a_model_of_the_hub(refused: Refused) -> None:
    assert "add --revision main if a model of the hub is meant" in refused("models/llava-finetune")
    with pytest.raises(AssertionError, match="the network was asked"):
        find_checkpoint("models/llava-finetune", "main")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("lava-7b", "is it llava-7b?"),
        ("Qwen3-VL-2B", "is it qwen3-vl-2b?"),
        ("model", "is it models?"),
        ("something", "check the name"),
        ("https://huggingface.co/llava-hf/llava-1.5-7b-hf", "pass llava-hf/llava-1.5-7b-hf"),
        ("https://huggingface.co/org/name/tree/main", "pass org/name"),
        ("hf://models/org/name", "found an address"),
    ],
)
def test_names_that_are_no_paths(model: str, said: str, refused: Refused) -> None:
    assert said in refused(model)


def test_an_empty_name(capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell's variable that is not set gives: the working directory is not meant."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["--model", "", "--out", "out"])
    assert stop.value.code == 2
    assert "found an empty name" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["llava-hf/llava-1.5-7b-hf", "org/name.v2", "Org/n-GGUF"])
def test_hub_ids_are_no_paths(model: str) -> None:
    assert not is_path(model)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llava-Q4_K_M.gguf", "expected a whole GGUF file, found one of 5 bytes"),
        ("model.ONNX", "found an ONNX graph; choose"),
        ("model.engine", "found an engine; choose"),
        ("pytorch_model.bin", "found a pickle, which can run code when read; save it"),
        ("model.pth", "found a pickle"),
        ("model.safetensors", "found a file of one; pass the folder that holds it"),
        ("config.json", "found a file of one; pass the folder that holds it"),
        ("llava.tar.gz", "found an archive; pass the folder in it"),
        ("notes", "found a file; pass the folder of a checkpoint"),
    ],
)
@pytest.mark.parametrize("folder", ["./", "models/", "models/other/"])
def test_files(folder: str, name: str, said: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / folder / name).write_bytes(b"GGUF\x03")
    assert said in refused(f"{folder}{name}")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("model.gguf", "mmproj-model.gguf"), "a GGUF model (model.gguf); pass the file"),
        (("llava-Q4_K_M.gguf", "mmproj-f16.gguf"), "a GGUF model (llava-Q4_K_M.gguf); pass the"),
        (("model.onnx", "genai_config.json"), "an ONNX graph (model.onnx)"),
        (("avl.json", "vision.onnx"), "an avl package (avl.json); run it with avl-run"),
        (("openvino_language_model.xml",), "an OpenVINO model"),
        (("model_index.json",), "a diffusion pipeline"),
        (("consolidated.00.pth", "params.json"), "a model in its maker's own layout"),
        (("pytorch_model.bin",), "a pickle, which can run code when read"),
        (("checkpoint-500/config.json", "checkpoint-900/config.json"), "checkpoint-500, check"),
        (("refs/main", "snapshots/abc/config.json"), "pass models/other/snapshots/abc"),
        (("notes.txt",), "found none among notes.txt"),
        ((), "found an empty folder"),
    ],
    ids=str,
)
def test_folders(files: tuple[str, ...], said: str, tmp_path: Path, refused: Refused) -> None:
    for name in files:
        path = tmp_path / "models" / "other" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    line = refused("models/other")
    assert "config.json" in line
    assert said in line


@pytest.mark.parametrize(
    ("name", "said"), [("llava.gguf", "a GGUF model"), ("model.onnx", "an ONNX graph")]
)
def test_a_config_beside_other_weights(
    name: str, said: str, checkpoint: Path, refused: Refused
) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    assert f"found {said} ({name})" in refused(checkpoint)


def test_a_repository_of_other_weights(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "llava.gguf")
    monkeypatch.undo()
    with serve() as hub:
        use(hub, checkpoint.parent / "models", monkeypatch)
        hub.add("some/model", checkpoint)
        assert "found a GGUF model (llava.gguf) on the hub" in refused("some/model")
        (checkpoint / "config.json").unlink()
        hub.add("some/other-GGUF", checkpoint)
        with pytest.raises(HubError, match=r"some/other-GGUF: .*found a GGUF model \(llava.gguf\)"):
            find_checkpoint("some/other-GGUF")
        assert "llava.gguf" not in hub.fetched()


BEFORE = """
import json, sys
from avl_export.check.cli import main as check
from avl_export.cli import main as export
said = []
for command, *arguments in json.loads(sys.argv[1]):
    main = check if command == "avl-check" else export
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    heavy = [name for name in ("torch", "transformers", "onnx") if name in sys.modules]
    said.append([status, heavy])
print(json.dumps(said))
"""


def test_refusals_come_before_torch(master: Path, tmp_path: Path) -> None:
    """In a process of its own; importing torch and transformers takes longer than all else."""

    def damaged(name: str, change: Callable[[Path], object]) -> list[str]:
        folder = shutil.copytree(master, tmp_path / name)
        change(folder)
        return ["--model", str(folder)]

    def config(**changes: object) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return change

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    good = ["--model", str(master)]
    cases: dict[str, list[str]] = {
        "no folder": ["--model", "./nope"],
        "a file": ["--model", str(master / "config.json")],
        "a place that is taken": [*good, "--out", str(tmp_path / "taken")],
        "the checkpoint's folder": [*good, "--out", str(master)],
        "a policy": [*good, "--policy", "magic"],
        "a split": [*good, "--split", "two"],
        "splits in disorder": [*good, "--split", "2,1"],
        "an architecture": damaged("a", config(model_type="florence2")),
        "an original layout": damaged("b", config(model_type="internvl_chat")),
        "a quantization": damaged("c", config(quantization_config={"quant_method": "hqq"})),
        "a config that is none": damaged("d", lambda f: (f / "config.json").write_text("[")),
        "no tokenizer": damaged("e", lambda f: (f / "tokenizer.json").unlink()),
        "no weights": damaged("f", lambda f: (f / "model.safetensors").unlink()),
        "no processor": damaged("g", lambda f: (f / "preprocessor_config.json").unlink()),
        "weights cut short": damaged(
            "h", lambda f: (f / "model.safetensors").write_bytes(bytes(100))
        ),
    }
    commands = {name: ["avl-export", *arguments] for name, arguments in cases.items()}
    commands["no package"] = ["avl-check", str(tmp_path), "--layers"]
    done = subprocess.run(
        [sys.executable, "-c", BEFORE, json.dumps(list(commands.values()))],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    found = dict(zip(commands, json.loads(done.stdout), strict=True))
    usage = {"a policy", "a split", "splits in disorder"}
    assert found == {name: [2 if name in usage else 1, []] for name in commands}, done.stderr

"""Convert a LLaVA checkpoint for OpenVINO's VLMPipeline with optimum-intel, offline.

Arguments: CHECKPOINT FOLDER fp16|int8|int4; writes FOLDER/model. INT4 is symmetric in blocks of 64;
optimum-intel leaves the vision tower, the output matrix and the embedding in 8 bits.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from avl_runtime.bench.peers.openvino_build import FORMATS

PROCESSOR, PICTURES = "processor_config.json", "preprocessor_config.json"
TEMPLATE = "chat_template.jinja"
# Names of newer versions of transformers, and those of older ones, which all versions read. A
# version that does not know a name only warns, and draws the weight at random.
OLDER = (
    (re.compile(r"^model\.(?=vision_tower\.|multi_modal_projector\.)"), ""),
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
)


def main(checkpoint: Path, folder: Path, weights: str) -> None:
    """Write the checkpoint in older names, convert it, and remove it again."""
    from optimum.commands.optimum_cli import main as optimum

    whole, model = folder / "whole", folder / "model"
    write_older(checkpoint, whole)
    check_whole(whole)
    begin_with_bos(whole)
    sys.argv[1:] = ["export", "openvino", "-m", str(whole), "--task", "image-text-to-text"]
    sys.argv += ["--weight-format", weights, *FORMATS[weights], str(model)]
    optimum()
    # VLMPipeline takes the sizes of pictures from this file alone, and optimum-intel does not
    # write it.
    shutil.copy(whole / PICTURES, model / PICTURES)
    shutil.rmtree(whole)


def older_name(name: str) -> str:
    """What older versions of transformers call a weight of a LLaVA."""
    for newer, older in OLDER:
        name = newer.sub(older, name)
    return name


def write_older(checkpoint: Path, whole: Path) -> None:
    """A LLaVA's checkpoint as all versions of transformers read it; ends the process if it cannot.

    Args:
        whole: the folder to write.
    """
    from safetensors.torch import load_file, save_file

    kind = json.loads((checkpoint / "config.json").read_text())["model_type"]
    if kind != "llava":
        sys.exit(f"expected a checkpoint of llava, found {kind}, which is not converted here")
    whole.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.suffix in (".json", ".jinja") and not file.name.endswith(".index.json"):
            shutil.copy(file, whole / file.name)
    if not (whole / PICTURES).exists():
        (whole / PICTURES).write_text(json.dumps(picture_steps(checkpoint)))
    tensors: dict[str, Any] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        tensors |= {older_name(name): tensor for name, tensor in load_file(shard).items()}
    save_file(tensors, whole / "model.safetensors", {"format": "pt"})


def picture_steps(checkpoint: Path) -> dict[str, Any]:
    """What preprocessor_config.json would hold, from the file that newer versions write."""
    processor = json.loads((checkpoint / PROCESSOR).read_text())
    steps: dict[str, Any] = processor["image_processor"]
    return {**steps, "processor_class": processor["processor_class"]}


def check_whole(folder: Path) -> None:
    """End the process unless transformers finds every weight."""
    from transformers import AutoModelForImageTextToText

    _, told = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    missing = sorted(told["missing_keys"])
    if missing:
        sys.exit(
            f"expected names that this version of transformers reads, found none for "
            f"{len(missing)} weights, as {missing[0]}"
        )


def begin_with_bos(folder: Path) -> None:
    """Have a chat template begin with BOS where transformers puts it before every text.

    OpenVINO GenAI leaves out what a tokenizer adds by itself where it fills in a template.
    """
    from transformers import AutoTokenizer

    template, known = folder / TEMPLATE, AutoTokenizer.from_pretrained(folder)
    if template.is_file() and known("x").input_ids[0] == known.bos_token_id:
        template.write_text(known.bos_token + template.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

"""Write a checkpoint with a vision tower as GGUF, by llama.cpp's own converter, offline.

Arguments: CHECKPOINT FOLDER q4_0|q8_0; writes FOLDER/model.gguf, the decoder, and
FOLDER/vision.gguf, tower and projector in 8 bits, the fewest that the converter gives them. It lies
beside the interpreter, where scripts/peers.sh puts it, as no package holds it.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from avl_runtime.bench.peers.gguf_build import FILE_TYPES, quantize

CONVERTER = Path(sys.prefix) / "llama.cpp"
# What published checkpoints say of their parts and a config written by transformers does not: by
# these names the converter finds how a part is laid out.
PARTS = {
    "idefics3": {"text_config": "VLlama3ForCausalLM"},
    "internvl": {"text_config": "Qwen3ForCausalLM", "vision_config": "InternVisionModel"},
    "qwen3_vl": {},
}
# Of llama.cpp's tokens.
ORDINARY, CONTROL, BYTE = 1, 3, 6
LINES = ("\n", "\n\n")
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]  # Idefics3's


def main(checkpoint: Path, folder: Path, kind: str) -> None:
    """Convert both parts, quantize the decoder, and remove what was only on the way."""
    if not (CONVERTER / "convert_hf_to_gguf.py").is_file():
        sys.exit(f"expected llama.cpp's converter in {CONVERTER}, found none; run scripts/peers.sh")
    named = folder / "named"
    write_named(checkpoint, named)
    sys.path[:0] = [str(CONVERTER), str(CONVERTER / "gguf-py")]
    take_words()
    plain, vision = folder / "plain.gguf", folder / "vision.gguf"
    convert(named, plain, "f16")
    convert(named, vision, "q8_0", "--mmproj")
    quantize(plain, folder / "model.gguf", FILE_TYPES[kind])
    plain.unlink()
    shutil.rmtree(named)


def write_named(checkpoint: Path, named: Path) -> None:
    """The checkpoint, its config with the names of its parts; ends the process if it cannot.

    Args:
        named: the folder to make; it holds links.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    kind = config["model_type"]
    if kind not in PARTS:
        sys.exit(f"expected a checkpoint of {', '.join(PARTS)}, found {kind}; leave llama.cpp out")
    named.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.name != "config.json":
            (named / file.name).symlink_to(file.resolve())
    for part, architecture in PARTS[kind].items():
        config[part]["architectures"] = [architecture]
    (named / "config.json").write_text(json.dumps(config))


def take_words() -> None:
    """Have the converter take any tokenizer.json: it knows those of published models by a hash."""
    conversion: Any = import_module("conversion")
    found = conversion.get_model_class

    def get_model_class(name: str, mmproj: bool = False) -> Any:
        kind = found(name, mmproj=mmproj)
        if not mmproj:
            kind.set_vocab = write_words
        return kind

    conversion.get_model_class = get_model_class


def write_words(model: Any) -> None:
    """A vocabulary of the model's size in which tokens with names of their own keep them.

    Text is given to llama.cpp as numbers. What it puts around pictures itself it looks for by name:
    those tokens, ends of lines and numbers of tiles, and bytes. Other tokens stand for these.

    Args:
        model: the converter's.
    """
    tokenizer = json.loads((model.dir_model / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    size = model.hparams["vocab_size"]
    words = [special.get(number, f"token {number}") for number in range(size)]
    kinds = [CONTROL if number in special else ORDINARY for number in range(size)]
    free = (number for number in range(size) if number not in special)
    for byte, number in zip(range(256), free, strict=False):
        words[number], kinds[number] = f"<0x{byte:02X}>", BYTE
    for line, number in zip(LINES, free, strict=False):
        words[number] = line
    for tile, number in zip(TILES, free, strict=False):
        words[number], kinds[number] = tile, CONTROL
    writer = model.gguf_writer
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def convert(named: Path, made: Path, kind: str, *more: str) -> None:
    """Run the converter in this process; ends it with the converter's status if that fails."""
    file = str(CONVERTER / "convert_hf_to_gguf.py")
    sys.argv = [file, str(named), "--outfile", str(made), "--outtype", kind, *more]
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

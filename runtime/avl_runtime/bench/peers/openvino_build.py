"""Convert the text decoder of a checkpoint for OpenVINO with optimum-intel, offline.

Arguments: CHECKPOINT FOLDER fp16|int8|int4; writes FOLDER/model and FOLDER/tokenizer. INT4 is
symmetric in blocks of 64; optimum-intel leaves the output matrix and the embedding in 8 bits.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from avl_runtime.bench.peers.text_model import write_text_model

FORMATS = {"fp16": (), "int8": (), "int4": ("--sym", "--group-size", "64")}


def main(checkpoint: Path, folder: Path, weights: str) -> None:
    """Write the text model, convert it, and remove it again."""
    from optimum.commands.optimum_cli import main as optimum

    text = folder / "text"
    write_text_model(checkpoint, text)
    sys.argv[1:] = ["export", "openvino", "-m", str(text), "--task", "text-generation-with-past"]
    sys.argv += ["--disable-convert-tokenizer", "--weight-format", weights, *FORMATS[weights]]
    sys.argv.append(str(folder / "model"))
    optimum()
    write_tokenizer(folder / "tokenizer")
    shutil.rmtree(text)


def write_tokenizer(folder: Path) -> None:
    """Any tokenizer: a pipeline wants one, but is asked by token ids."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    # Without any special token the converted one is refused when it is loaded.
    special = {"eos_token": letters[0]}
    known = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    folder.mkdir()
    names = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
    for name, model in zip(names, convert_tokenizer(known, with_detokenizer=True), strict=True):
        openvino.save_model(model, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

#!/usr/bin/env bash
# OpenVINO Tokenizers does not convert a byte-level BPE tokenizer that has no special token:
# "Incorrect number of inputs passed to BPETokenizer, try to reconvert tokenizer with newer version
# of OpenVINO Tokenizers". With one special token, whichever, the same tokenizer is converted, and
# gives the same ids as transformers'.
#
# Guess before running: with special tokens or without, it is converted and gives the same ids.
# Found with openvino-tokenizers 2026.4.1.0 beside transformers 5.5.4: RuntimeError without.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openvino-tokenizers==2026.4.1.0 \
    openvino==2026.4.1 transformers==5.5.4 2>/dev/null
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys
from importlib.metadata import version

import openvino
from openvino_tokenizers import convert_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
refused = "Incorrect number of inputs passed to BPETokenizer"
found = []
for special in ({}, {"eos_token": "!"}):
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    expected = theirs("hello")["input_ids"]
    try:
        made = openvino.compile_model(convert_tokenizer(theirs, with_detokenizer=False), "CPU")
        ids = made(["hello"])["input_ids"][0].tolist()
        found.append("same ids" if ids == expected else f"ids {ids}")
    except RuntimeError as error:
        found.append(refused if refused in str(error) else str(error))
    print(f"special tokens {special}: transformers {expected}, OpenVINO Tokenizers: {found[-1]}")
print("openvino-tokenizers", version("openvino-tokenizers"), "transformers", version("transformers"))
sys.exit(found != [refused, "same ids"])
PYTHON
echo "as described"

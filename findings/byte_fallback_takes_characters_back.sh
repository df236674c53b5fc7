#!/usr/bin/env bash
# A decoder with byte fallback (LLaMA's and so LLaVA-1.5's kind of tokenizer) decodes a run of byte
# tokens as a whole: when the run ends within a character, every byte of the run becomes U+FFFD,
# characters before it that were complete included. Text that was right with n tokens is wrong with
# n + 1, and a reply that is cut within a character, decoded in one go, differs from what a stream
# of the same tokens has shown, which drops nothing that was complete.
#
# Guess before running: 'aé' and one byte of the next character decode to 'aé' and one U+FFFD.
# Found with tokenizers 0.23.3: 'a' and three U+FFFD; DecodeStream gives 'a', 'é' and nothing.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

vocabulary = {"<unk>": 0, "▁a": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
tokenizer.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
ids = [1] + [2 + byte for byte in "é漢".encode()]
whole = [tokenizer.decode(ids[:count]) for count in range(1, len(ids) + 1)]
stream = DecodeStream(skip_special_tokens=False)
pieces = [stream.step(tokenizer, token) for token in ids]
print("tokenizers", tokenizers.__version__)
for count, text in enumerate(whole, 1):
    print(f"{count} tokens decoded at once: {text!r}, streamed: {''.join(filter(None, pieces[:count]))!r}")
assert whole == ["a", "a�", "aé", "a���", "a����", "aé漢"], whole
assert pieces == ["a", None, "é", None, None, "漢"], pieces
PYTHON
echo "as described"

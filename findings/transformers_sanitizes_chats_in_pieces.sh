#!/usr/bin/env bash
# apply_chat_template(..., sanitize_control_tokens=True) of transformers encodes control tokens that
# a user wrote as plain text. It cuts the chat at each of them and encodes the pieces alone, so that
# no merge goes across a cut: the ids are other ones than those of the same characters as plain text
# (split_special_tokens=True, encode_special_tokens of the tokenizers library). Where the tokenizer,
# not the template, writes the start token, as LLaVA-1.5's does, it raises NotImplementedError.
#
# Guess before running: the ids that split_special_tokens=True gives.
# Found with transformers 5.23.0: 'tag <s>.' has the pieces 'Ġ', '<', 's', '>', '.' instead of
# 'Ġ<', 's', '>.'.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 \
    tokenizers==0.23.3 jinja2==3.1.6
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def made(start_token_by_itself=False):
    vocabulary = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "<"), (">", ".")]
    vocabulary |= {left + right: len(vocabulary) + n for n, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    if start_token_by_itself:
        start = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=start)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return fast


text = "tag <s>."
said = [{"role": "user", "content": text}]
options = {"tokenize": True, "return_dict": False, "sanitize_control_tokens": True}
fast = made()
found = fast.convert_ids_to_tokens(fast.apply_chat_template(said, **options))
plain = fast.convert_ids_to_tokens(
    fast(text, split_special_tokens=True, add_special_tokens=False)["input_ids"])
print("transformers", transformers.__version__)
print("sanitized ", found)
print("plain text", plain)
assert found == ["t", "a", "g", "Ġ", "<", "s", ">", "."], found
assert plain == ["t", "a", "g", "Ġ<", "s", ">."], plain
try:
    made(start_token_by_itself=True)(
        text, sanitize_control_tokens=True, add_special_tokens=True)
except NotImplementedError as error:
    print("with a start token of the tokenizer's:", error)
else:
    raise SystemExit(1)
PYTHON
echo "as described"

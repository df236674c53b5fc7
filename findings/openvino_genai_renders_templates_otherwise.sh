#!/usr/bin/env bash
# OpenVINO GenAI renders chat templates with a renderer of its own. Where a template is valid for
# both, its prompts may silently differ from those that transformers' Jinja makes and the model was
# trained on:
# - spaces before "{{" at the start of a line are dropped (Jinja's lstrip_blocks takes them before
#   "{%" and "{#" alone), so that an indented template gives other tokens;
# - "/" between whole numbers divides as "//" does, and "//" and "%" of negative numbers round
#   towards zero where Python rounds down;
# - a number with a fraction that is joined to text is written with six digits behind the point;
# - an empty mapping counts as true;
# - a template that takes the first character of a message is given its first part, a mapping.
#
# Guess before running: equal prompts wherever both accept the template.
# Found with openvino-genai 2026.4.1.0, beside transformers 5.5.4 and Jinja 3.1.6: the table below.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openvino-genai==2026.4.1.0 \
    openvino-tokenizers==2026.4.1.0 openvino==2026.4.1 transformers==5.5.4 jinja2==3.1.6 2>/dev/null
"$folder/venv/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import sys
from importlib.metadata import version

import openvino
import openvino_genai
from openvino_tokenizers import convert_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!")
names = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
for name, model in zip(names, convert_tokenizer(theirs, with_detokenizer=True)):
    openvino.save_model(model, f"{sys.argv[1]}/{name}")
other = openvino_genai.Tokenizer(sys.argv[1])

messages = [{"role": "user", "content": "hello"}]
expected = {
    "{% for m in messages %}\n    {{ m.role }}: {{ m.content }}\n{% endfor %}": (
        "    user: hello\n", "user: hello\n"),
    "{% if true %}\n  {{ 'x' }}\n{% endif %}": ("  x\n", "x\n"),
    "{% if true %}\n  x\n{% endif %}": ("  x\n", "  x\n"),
    "{{ 7 / 2 }} {{ -7 // 2 }} {{ -7 % 3 }}": ("3.5 -4 2", "3 -3 -1"),
    "{{ 1.5 }} {{ 'x' ~ 1.5 }}": ("1.5 x1.5", "1.5 x1.500000"),
    "{% if {} %}true{% else %}false{% endif %}": ("false", "true"),
    "{{ messages[0].content[0] }}": ("h", "{'type': 'text', 'text': 'hello'}"),
}
print("openvino-genai", version("openvino-genai"), "transformers", version("transformers"))
wrong = 0
for template, wanted in expected.items():
    found = (
        theirs.apply_chat_template(messages, chat_template=template, tokenize=False),
        other.apply_chat_template(messages, add_generation_prompt=False, chat_template=template),
    )
    print(f"{template!r}\n    Jinja {found[0]!r}, OpenVINO GenAI {found[1]!r}")
    wrong += found != wanted
sys.exit(1 if wrong else 0)
PYTHON
echo "as described"

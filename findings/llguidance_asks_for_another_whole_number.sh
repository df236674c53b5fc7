#!/usr/bin/env bash
# llguidance compiles JSON Schema to a grammar that a reply is held to token by token. It reads the
# schema's whole numbers as 64-bit floats. A `const` or `enum` of more than 53 bits (an id, a time in
# nanoseconds) is rounded: the reply must be another number, and the only right one is refused. As
# `minimum` and `maximum` they are rounded too. Nothing is said of it, also not in strict use.
#
# Guess before running: a `const` of 2**53 + 1 allows that number alone, or is refused as too large.
# Found with llguidance 1.9.1: it allows 2**53 alone, which jsonschema 4.26.0 calls invalid.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check llguidance==1.9.1 jsonschema==4.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import json
from importlib.metadata import version

import jsonschema
from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")
right = 2**53 + 1
near = (right - 1, right, right + 1)


def allowed(schema: dict[str, object]) -> list[int]:
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"lenient": False})
    found = []
    for number in near:
        matcher = LLMatcher(tokenizer, grammar)
        assert not matcher.is_error(), matcher.get_error()
        tokens = list(str(number).encode())
        if matcher.validate_tokens(tokens) == len(tokens):
            assert matcher.consume_tokens(tokens) and matcher.is_accepting()
            found.append(number)
    return found


print("llguidance", version("llguidance"), "jsonschema", version("jsonschema"))
for schema in (
    {"const": right},
    {"enum": [right]},
    {"type": "integer", "minimum": right, "maximum": right},
):
    valid = [one for one in near if jsonschema.Draft202012Validator(schema).is_valid(one)]
    print(schema, "valid:", valid, "allowed:", allowed(schema))
    assert valid == [right]
    assert allowed(schema) == [right - 1]
assert allowed({"const": 2**53 - 1}) == [] and near[0] == 2**53
PYTHON
echo "as described"

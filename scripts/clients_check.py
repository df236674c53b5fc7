#!/usr/bin/env python
"""Have litellm and lmms-eval ask avl-serve, each a process of its own: clients that people have.

    ./scripts/clients_check.sh        # installs the clients, then runs this

Starts avl-serve on this machine with avl-tiny, once with its own chat template and once with one
that knows tools. litellm asks what clients_litellm.py lists; lmms-eval runs its model async_openai
on a task of files that are written here, without internet. Texts must be those of `LVLM.generate`.
Prints a line for each check; exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avl_runtime import LVLM
from avl_runtime.bench.surroundings import machine
from avl_runtime.tasks import samples
from started import served

HERE = Path(__file__).parent
KEY = "a-key-for-the-check-0123456789"
TOKENS = 24
QUESTIONS = 6
TASK = "local_pictures"
# As Qwen2.5's, with avl-tiny's words for roles.
TEMPLATE = """\
{%- if tools %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}USER: {% if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{% if part.type == 'image' %}<image>
{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %} {% elif message.role == 'assistant' -%}
ASSISTANT:{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}</s>{% elif message.role == 'tool' -%}
USER:
<tool_response>
{{ message.content }}
</tool_response>{% endif %}{% endfor %}
{%- if add_generation_prompt %}ASSISTANT:{% endif %}"""
YAML = f"""\
task: {TASK}
dataset_path: json
dataset_kwargs:
  data_files:
    test: QUESTIONS
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{expected}}}}"
generation_kwargs:
  max_new_tokens: {TOKENS}
  temperature: 0
process_results: !function utils.rated
metric_list:
  - metric: as_generated
    aggregation: mean
    higher_is_better: true
"""
UTILS = """\
from PIL import Image


def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def rated(doc, results):
    return {"as_generated": float(results[0] == doc["expected"])}
"""


def with_tools(package: Path, folder: Path) -> Path:
    """A copy of a package with a chat template that knows tools."""
    other = folder / "tools.avl"
    shutil.copytree(package, other)
    manifest = other / "avl.json"
    found = json.loads(manifest.read_text()) | {"chat_template": TEMPLATE}
    manifest.write_text(json.dumps(found))
    return other


def by_litellm(python: Path, model: LVLM, base: str) -> Iterator[dict[str, Any]]:
    """What litellm finds."""
    picture = HERE.parent / "samples" / "page.png"
    prompt = "Read the text."
    expected = {
        policy: model.generate(prompt, [picture], policy=policy, max_new_tokens=TOKENS).text
        for policy in ("dense", "avl", "fastv")
    }
    (end, *_) = model.package.manifest.tokens.eos
    given = {
        "base": base,
        "key": KEY,
        "image": "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode(),
        "prompt": prompt,
        "expected": expected,
        "tokens": TOKENS,
        "bias": {str(end): 50},
    }
    done = subprocess.run(
        [python, HERE / "clients_litellm.py"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"check"')]
    if done.returncode or not lines:
        raise SystemExit(f"expected litellm to run, found: {done.stderr[-2000:]}")
    for line in lines:
        yield {"client": "litellm", **json.loads(line)}


def by_lmms_eval(python: Path, model: LVLM, base: str, folder: Path) -> dict[str, Any]:
    """What lmms-eval finds: how many of its answers are those of `LVLM.generate`."""
    task = folder / "task"
    task.mkdir()
    rows = []
    for number, one in enumerate(samples("ocr", "held-out", QUESTIONS)):
        picture = task / f"{number}.png"
        one.image.save(picture)
        text = model.generate(one.prompt, [picture], max_new_tokens=TOKENS).text
        rows.append({"image": str(picture), "prompt": one.prompt, "expected": text})
    questions = task / "questions.json"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task / f"{TASK}.yaml").write_text(YAML.replace("QUESTIONS", str(questions)))
    (task / "utils.py").write_text(UTILS)
    out = folder / "out"
    asked = f"model=tiny,base_url={base},api_key={KEY},num_cpus=4,max_retries=1"
    words = ["--model", "async_openai", "--model_args", asked, "--tasks", TASK, "--batch_size", "1"]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    done = subprocess.run(
        [python, "-m", "lmms_eval", *words, "--include_path", task, "--output_path", out],
        env=os.environ | offline | {"HF_HOME": str(folder / "hub")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(file.read_text()) for file in sorted(out.rglob("*_results.json"))]
    scores = [one["results"][TASK] for one in found]
    score = (
        next((value for name, value in scores[0].items() if "as_generated" in name), None)
        if (scores)
        else None
    )
    about = f"async_openai: {QUESTIONS} questions about pictures in files, answered as generated"
    error = None if score == 1 else f"found {score}: {(done.stdout + done.stderr)[-1500:]}"
    return {"client": "lmms-eval", "check": "async_openai", "about": about, "error": error}


def versions(python: Path) -> dict[str, str]:
    """Of the clients, and of the library that both ask with."""
    code = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({n: m.version(n) for n in ('litellm', 'lmms-eval', 'openai')}))"
    )
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return dict(json.loads(said))


def main() -> int:
    """Check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="avl-tiny's folder")
    parser.add_argument("--python", type=Path, required=True, help="that has the clients")
    parser.add_argument("--json", type=Path, help="write what was found there")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        keys = folder / "keys"
        keys.write_text(KEY)
        packages = [f"tiny={parsed.package}", f"tools={with_tools(parsed.package, folder)}"]
        options = ["--api-key", str(keys), "--backend", "ort-cpu", "--running", "4", "--quiet"]
        with (
            LVLM.load(parsed.package, backend="ort-cpu") as model,
            served(packages, options) as server,
        ):
            base = f"http://127.0.0.1:{server.port}/v1"
            checks = list(by_litellm(parsed.python, model, base))
            checks.append(by_lmms_eval(parsed.python, model, base, folder))
    for one in checks:
        print(f"{one['client']} {one['check']}: {one['error'] or 'as expected'}")
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "avl": importlib.metadata.version("avl"),
        "clients": versions(parsed.python),
        "checks": checks,
    }
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any(one["error"] for one in checks))


if __name__ == "__main__":
    sys.exit(main())

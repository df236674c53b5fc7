"""The names that users import and type."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

import avl_plugins.policies
import avl_runtime
from avl_plugins.errors import AvlError
from avl_runtime.chat import Chat
from avl_runtime.generate.results import Result, Stats


def test_names_of_the_runtime() -> None:
    assert avl_runtime.policies is avl_plugins.policies
    assert avl_runtime.AvlError is AvlError
    for name in ("load", "stream", "generate", "generate_batch", "chat"):
        assert callable(getattr(avl_runtime.LVLM, name))
    assert callable(Chat.send)
    assert callable(Chat.stream)


@pytest.mark.parametrize("name", ["LVLM", "Options", "Result", "Chat"])
def test_faces(name: str) -> None:
    assert name in avl_runtime.__all__ and isinstance(getattr(avl_runtime, name), type)


def test_load_takes_a_backend_and_a_policy() -> None:
    parameters = inspect.signature(avl_runtime.LVLM.load).parameters
    assert list(parameters) == [
        *("folder", "backend", "policy", "threads", "verify", "park", "kv", "compute"),
        *("prefix_cache", "cache_dir", "cache_limit"),
    ]
    assert parameters["backend"].default == "auto"


def test_results() -> None:
    names = {field.name for field in fields(Result)}
    assert {"text", "token_ids", "finish_reason", "logits", "stats", "placements"} <= names
    assert {field.name for field in fields(Stats)} >= {
        "policy",
        "backend",
        "prompt_tokens",
        "visual_tokens",
        "new_tokens",
        "prefill_ms",
        "decode_ms_per_token",
        "kv_bytes",
        "kv_bytes_dense",
        "peak_rss_bytes",
    }


@pytest.mark.parametrize("name", ["AVL", "FastV", "Dense", "Random", "Chain"])
def test_policies_are_frozen_dataclasses(name: str) -> None:
    policy = getattr(avl_plugins.policies, name)
    assert is_dataclass(policy)
    assert policy.__dataclass_params__.frozen


@pytest.mark.parametrize("text", ["dense", "avl", "fastv", "avl+fastv", "random"])
def test_policy_names(text: str) -> None:
    policy = avl_plugins.policies.parse(text)
    assert avl_plugins.policies.parse(str(policy)) == policy


COMMANDS = {
    "avl_export.cli": "--model --out --policy --split --dtype --quantize --copy --dry-run --check "
    "--json",
    "avl_export.check.cli": "PACKAGE --layers --backend --model --lora --json",
    "avl_runtime.cli.run": "--image --policy --backend --max-new-tokens --temperature --top-p "
    "--top-k --seed --stats --json --show --heatmap --video --min-p --presence-penalty "
    "--frequency-penalty --repetition-penalty --logit-bias --logprobs",
    "avl_runtime.cli.info": "PACKAGE --json",
    "avl_runtime.cli.build": "--backend --compute-capability --max-prompt --max-batch --dry-run "
    "--json",
    "avl_runtime.cli.bench": "--policies --backends --visual-tokens --text-tokens --new-tokens "
    "--against --peer-python --batch --threads --repeats --json --csv",
    "avl_runtime.cli.serve": "PACKAGE --host --port --api-key --policy --kv --running --queue",
    "avl_runtime.cli.batch": "PACKAGE QUESTIONS --out --resume --running --policy --kv",
    "avl_runtime.cli.eval": "--tasks --policies --samples --json --plot",
}


@pytest.mark.parametrize("module", COMMANDS)
def test_commands_have_their_options(module: str) -> None:
    code = f"import sys; from {module} import main; sys.exit(main(['--help']))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    missing = [option for option in COMMANDS[module].split() if option not in result.stdout]
    assert missing == []
    assert result.stderr == ""


@pytest.mark.parametrize("module", COMMANDS)
def test_a_wrong_option_ends_with_2(module: str) -> None:
    code = f"import sys; from {module} import main; sys.exit(main(['--no-such-option']))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr

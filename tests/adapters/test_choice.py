"""Which adapter is merged into which model, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from adapters.made import WEIGHTS, edit, train
from adapters.test_merge import merged_weights
from avl_export.checkpoint import hub
from avl_export.cli import default_out, main
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan

Refused = Callable[..., str]
Q_PROJ = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="session")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for `base`; tests that change it take `adapter`."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    return train(base, folder, target_modules=["q_proj"], r=4, lora_alpha=8)


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "adapter")


def planned(model: Path | str, tmp_path: Path, lora: Path | None = None) -> Plan:
    return make_plan(Options(str(model), tmp_path / "out", split=(1,), lora=lora))


def change(folder: Path, act: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    act(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_alone_it_names_its_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan, named = planned(adapter, tmp_path), planned(base, tmp_path, adapter)
    assert plan.checkpoint.folder == base
    assert f"merged into its base, {base}" in plan.notes[0]
    found, wanted = merged_weights(plan), merged_weights(named)
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in found)
    assert plan.report()["adapter"] == str(adapter)
    assert plan.report()["weights"] == "copied"
    assert plan.checkpoint.name == named.checkpoint.name == "base+adapter"


def test_beside_the_weights_it_is_merged(base: Path, adapter: Path, tmp_path: Path) -> None:
    """As transformers, with peft installed, loads such a folder."""
    folder = shutil.copytree(base, tmp_path / "model")
    for name in ("adapter_config.json", WEIGHTS):
        shutil.copy(adapter / name, folder)
    plan = planned(folder, tmp_path)
    assert "its adapter is merged" in plan.notes[0]
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    layer = loaded.model.language_model.layers[0].self_attn.q_proj
    exact = layer.weight + layer.get_delta_weight("default")
    found = merged_weights(plan)["model.language_model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(torch.from_numpy(found), exact.detach(), rtol=0, atol=1e-6)
    reference = dict(plan.family.reference().named_parameters())
    assert not [name for name in reference if "lora" in name]


def test_the_command_names_what_it_does(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--lora", str(adapter), "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert "is merged into its base" in captured.err.splitlines()[0]
    assert Path(report["out"]).name == "adapter.avl"
    assert default_out(str(base), adapter).name == "base+adapter.avl"
    assert main(["--lora", str(adapter), "--model", str(base), "--dry-run"]) == 0
    assert "copied into the package" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "part"),
    [
        (None, "names no base; name the base with --model"),
        ("", "names no base"),
        ("no/such/folder", "found no 'no/such/folder'"),
        ("/gone", "with --lora"),
    ],
)
def test_no_base(named: str | None, part: str, adapter: Path, refused: Refused) -> None:
    edit(adapter, base_model_name_or_path=named)
    line = refused(adapter)
    assert "adapter" in line
    assert part in line


def test_a_base_that_is_an_adapter(adapter: Path, tmp_path: Path, refused: Refused) -> None:
    other = shutil.copytree(adapter, tmp_path / "other")
    edit(adapter, base_model_name_or_path=str(other))
    assert "another adapter's folder" in refused(adapter)


def test_two_adapters(base: Path, adapter: Path, tmp_path: Path, refused: Refused) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    shutil.copy(adapter / "adapter_config.json", folder)
    assert "expected one adapter" in refused(folder, "--lora", str(adapter))


def test_a_folder_without_an_adapter(base: Path, tmp_path: Path, refused: Refused) -> None:
    assert "with adapter_config.json, found none" in refused(base, "--lora", str(tmp_path))


def test_a_quantized_base(base: Path, adapter: Path, tmp_path: Path, refused: Refused) -> None:
    from quantize.packers import quantize_checkpoint

    quantize_checkpoint(base, tmp_path / "packed", "gptq", group=16)
    assert "gptq checkpoint" in refused(tmp_path / "packed", "--lora", str(adapter))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"peft_type": "IA3"}, "found 'IA3'"),
        ({"peft_type": None}, "peft_type of LORA"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "expected r"),
        ({"lora_alpha": "much"}, "expected r"),
        ({"r": 8}, "expected shape [8, 48], found [4, 48]"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern"),
        ({"alpha_pattern": {"(": 4}}, "alpha_pattern"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
    ids=str,
)
def test_configurations(
    changes: dict[str, Any], part: str, base: Path, adapter: Path, refused: Refused
) -> None:
    edit(adapter, **changes)
    assert part in refused(base, "--lora", str(adapter))


@pytest.mark.parametrize(
    ("act", "part"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.lora_B.weight"), "expected lora_B"),
        (lambda t: t.update(stranger=torch.ones(3)), "stranger: expected a tensor for a weight"),
        (lambda t: t.update({f"{Q_PROJ}.lora_C.weight": torch.ones(3)}), "lora_C"),
        (lambda t: t.update({f"{Q_PROJ}.weight": torch.ones(3, 48)}), "found [3, 48]"),
        (lambda t: t.update({f"{Q_PROJ}.lora_A.other.weight": torch.ones(4, 48)}), "found two"),
        (lambda t: t.update({f"{Q_PROJ}.lora_B.weight": torch.ones(48, 4).int()}), "found I32"),
        (lambda t: t.clear(), "found none"),
    ],
)
def test_tensors(
    act: Callable[[dict[str, torch.Tensor]], Any],
    part: str,
    base: Path,
    adapter: Path,
    refused: Refused,
) -> None:
    change(adapter, act)
    assert part in refused(base, "--lora", str(adapter))


def test_only_pickled_tensors(base: Path, adapter: Path, refused: Refused) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "which can run code when read" in refused(base, "--lora", str(adapter))


def test_matrices_that_shall_stay_tied(tied: Path, tmp_path: Path, refused: Refused) -> None:
    folder = train(tied, tmp_path / "adapter", target_modules=["lm_head"], r=4)
    edit(folder, ensure_weight_tying=True)
    assert "ensure_weight_tying" in refused(tied, "--lora", str(folder))


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_on_the_hub(
    alone: bool,
    base: Path,
    adapter: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a repository holds is never left out in silence."""
    snapshot = shutil.copytree(adapter if alone else base, tmp_path / "snapshot")
    shutil.copy(adapter / "adapter_config.json", snapshot)
    monkeypatch.setattr(hub, "find", lambda *_: None if alone else snapshot)
    monkeypatch.setattr(hub, "fetch_small", lambda *_: snapshot)
    line = refused("some/model")
    assert "adapter" in line
    assert "hf download" in line

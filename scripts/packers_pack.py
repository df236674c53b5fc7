#!/usr/bin/env python
"""Quantize a checkpoint with the tools that people quantize with: run by packers_check.py.

    build/packers/bin/python scripts/packers_pack.py CHECKPOINT FOLDER CASE

Writes FOLDER/checkpoint as the tool writes it, and FOLDER/meant.safetensors: each weight as the
tool itself turns codes into numbers again, in the dtype in which it does so, by its name from the
number of the layer on. Runs in an environment of packers.txt, without avl.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

# A pool of GPTQModel's wants two, and it takes half of the processor's cores.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # a minute of compiling for each kernel

import torch
from safetensors.torch import load_file, save_file
from torch import nn

GROUP = 32
Weights = dict[str, torch.Tensor]
TEMPLATE = """{% for message in messages %}{% for part in message.content -%}
{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"""


def linears(source: Path) -> Iterator[tuple[str, str, nn.Linear]]:
    """The decoder's linears: the stem of a key, the name from the layer's number on, and itself."""
    for key, weight in load_file(next(source.glob("*.safetensors"))).items():
        if "language_model" in key and ".layers." in key and weight.dim() == 2:
            outputs, inputs = weight.shape
            linear = nn.Linear(inputs, outputs, bias=False, dtype=weight.dtype)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            stem = key.removesuffix(".weight")
            yield stem, stem.partition(".layers.")[2], linear


def write(source: Path, folder: Path, packed: Weights, config: Mapping[str, Any]) -> None:
    """A checkpoint whose decoder's linears are what is `packed`."""
    folder.mkdir()
    for path in source.glob("*.json"):
        if path.name != "model.safetensors.index.json":
            shutil.copy(path, folder)
    tensors = load_file(next(source.glob("*.safetensors")))
    for stem, _, _ in linears(source):
        del tensors[f"{stem}.weight"]
    held = {name: tensor.contiguous() for name, tensor in packed.items()}
    save_file({**tensors, **held}, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    told = json.loads(path.read_text()) | {"quantization_config": dict(config)}
    path.write_text(json.dumps(told, indent=1))


def alone(package: str) -> None:
    """Let modules of `package` be imported without its own __init__.

    Those of AutoAWQ and AutoGPTQ import models of a transformers of their time.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise SystemExit(f"expected {package}, found none; run scripts/packers_check.sh")
    for name in (package, f"{package}.nn_modules", f"{package}.modules"):
        folder = Path(found.submodule_search_locations[0], *name.split(".")[1:])
        if folder.is_dir():
            module = ModuleType(name)
            module.__path__ = [str(folder)]
            sys.modules[name] = module


def seen(module: nn.Module, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """A linear's weight [outputs, inputs] as it computes with it: what it makes of unit vectors."""
    with torch.no_grad():
        columns: torch.Tensor = module(torch.eye(inputs, dtype=dtype))
    return columns.T.contiguous()


def scales_and_zeros(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Asymmetric, by group: [outputs, groups] both. Zeros are never 0, which GPTQ v1 cannot say."""
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)
    least, most = groups.amin(-1).clamp(max=-1e-3), groups.amax(-1)
    scales = ((most - least) / ((1 << bits) - 1)).to(weight.dtype)
    return scales, (-least / scales.float()).round().clamp(1, (1 << bits) - 1)


def autogptq(source: Path, out: Path, bits: int, ordered: bool) -> tuple[Weights, Weights, Any]:
    """AutoGPTQ's linears, with inputs of groups beside each other or spread (`desc_act`)."""
    alone("auto_gptq")
    name = "qlinear_cuda" if ordered else "qlinear_cuda_old"
    kind = importlib.import_module(f"auto_gptq.nn_modules.qlinear.{name}").QuantLinear
    packed, meant = Weights(), Weights()
    generator = torch.Generator().manual_seed(0)
    for stem, own, linear in linears(source):
        inputs, outputs = linear.in_features, linear.out_features
        order = torch.arange(inputs, dtype=torch.int32) // GROUP
        sorted_weight = linear.weight.data
        if ordered:
            places = torch.randperm(inputs, generator=generator)
            order = order[places]
            sorted_weight = sorted_weight[:, order.argsort(stable=True)]
        scales, zeros = scales_and_zeros(sorted_weight, bits)
        module = kind(bits, GROUP, inputs, outputs, False, weight_dtype=torch.float16)
        module.pack(linear, scales, zeros, order)
        packed |= {f"{stem}.{name}": value for name, value in module.state_dict().items()}
        meant[f"{own}.weight"] = seen(module.eval(), inputs, torch.float16)
    # As `BaseQuantizeConfig.to_dict` and `save_quantized` of AutoGPTQ 0.7.1 name them.
    config = {
        "bits": bits,
        "group_size": GROUP,
        "damp_percent": 0.01,
        "desc_act": ordered,
        "static_groups": False,
        "sym": False,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": None,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
    }
    return packed, meant, config


def autoawq(source: Path, out: Path) -> tuple[Weights, Weights, Any]:
    """AutoAWQ's WQLinear_GEMM, and the configuration that AutoAWQ writes."""
    alone("awq")
    gemm = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    unpack = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    alone("awq.models")
    told = importlib.import_module("awq.models._config").AwqConfig(q_group_size=GROUP)
    packed, meant = Weights(), Weights()
    for stem, own, linear in linears(source):
        scales, zeros = (t.T.contiguous() for t in scales_and_zeros(linear.weight.data, 4))
        module = gemm.from_linear(linear.half(), 4, GROUP, scales=scales, zeros=zeros)
        state = module.state_dict()
        packed |= {f"{stem}.{name}": value for name, value in state.items()}
        codes = (state[name] for name in ("qweight", "qzeros", "scales"))
        meant[f"{own}.weight"] = unpack(*codes, 4, GROUP).T.contiguous()
    return packed, meant, told.to_transformers_dict()


def hqq(source: Path, out: Path, bits: int, axis: int) -> tuple[Weights, Weights, Any]:
    """HQQLinear's own state, and the configuration that transformers writes.

    Codes are turned into numbers in fp32 and rounded once: in fp16 hqq rounds twice.
    """
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
    from transformers import HqqConfig

    own = BaseQuantizeConfig(nbits=bits, group_size=GROUP, axis=axis)
    packed, meant = Weights(), Weights()
    for stem, name, linear in linears(source):
        module = HQQLinear(linear, own, compute_dtype=torch.float16, device="cpu")
        wide = {part: module.meta[part].float() for part in ("scale", "zero")}
        meta = {**module.meta, **wide, "compute_dtype": torch.float32}
        meant[f"{name}.weight"] = Quantizer.dequantize(module.W_q, meta).half()
        packed |= {f"{stem}.{part}": value for part, value in module.state_dict().items()}
    told = HqqConfig(nbits=bits, group_size=GROUP, axis=axis)
    return packed, meant, told.to_dict()


def gptqmodel(source: Path, out: Path, **options: Any) -> Weights:
    """GPTQModel from loading to saving, calibrated by a few random texts."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    whole = out / "source"
    shutil.copytree(source, whole)
    (whole / "chat_template.jinja").write_text(TEMPLATE)
    model = GPTQModel.load(str(whole), QuantizeConfig(**options), device="cpu", dtype=torch.float16)
    numbers = torch.randint(0, 500, (8, 64), generator=torch.Generator().manual_seed(0))
    texts = [" ".join(f"w{n}" for n in row) for row in numbers.tolist()]
    talks = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    model.quantize(talks, batch_size=1, calibration_data_min_length=1)
    model.save(str(out / "checkpoint"))
    again = GPTQModel.load(
        str(out / "checkpoint"), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16
    )
    meant = Weights()
    for name, module in again.model.named_modules():
        if hasattr(module, "qweight") and ".layers." in name:
            weight = module.dequantize_weight() if hasattr(module, "dequantize_weight") else None
            own = f"{name.partition('.layers.')[2]}.weight"
            meant[own] = (
                seen(module, module.in_features, torch.float16)
                if weight is None
                else weight.T.contiguous()
            )
    return meant


def autoround(source: Path, out: Path, form: str, bits: int = 4) -> Weights:
    """AutoRound from loading to saving, without its search (`iters=0`)."""
    from auto_round import AutoRound
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float16)
    processor = AutoProcessor.from_pretrained(source)
    made = AutoRound(
        model,
        processor.tokenizer,
        processor=processor,
        bits=bits,
        group_size=GROUP,
        iters=0,
        disable_opt_rtn=True,  # without texts, which it would fetch
        device_map="cpu",
    )
    quantized, _ = made.quantize()
    meant = {
        name.partition(".layers.")[2]: value.detach().clone()
        for name, value in quantized.state_dict().items()
        if "language_model" in name and ".layers." in name and value.dim() == 2
    }
    made.save_quantized(str(out / "checkpoint"), format=form, inplace=True)
    return meant


Pack = Callable[..., Any]
# Those that hand back linears, and those that write the checkpoint themselves.
PACKERS: Mapping[str, tuple[str, Pack, dict[str, Any]]] = {
    "auto-gptq": ("auto-gptq", autogptq, {"bits": 4, "ordered": False}),
    "auto-gptq desc_act": ("auto-gptq", autogptq, {"bits": 4, "ordered": True}),
    "auto-gptq 8 bits": ("auto-gptq", autogptq, {"bits": 8, "ordered": False}),
    "autoawq gemm": ("autoawq", autoawq, {}),
    "hqq axis 1": ("hqq", hqq, {"bits": 4, "axis": 1}),
    "hqq 8 bits axis 0": ("hqq", hqq, {"bits": 8, "axis": 0}),
    "gptqmodel gptq": ("gptqmodel", gptqmodel, {"bits": 4, "group_size": GROUP}),
    "gptqmodel gptq_v2 asymmetric": (
        "gptqmodel",
        gptqmodel,
        {"bits": 4, "group_size": GROUP, "sym": False, "format": "gptq_v2"},
    ),
    "gptqmodel desc_act": (
        "gptqmodel",
        gptqmodel,
        {"bits": 4, "group_size": GROUP, "desc_act": True, "act_group_aware": False},
    ),
    "gptqmodel 8 bits by output": (
        "gptqmodel",
        gptqmodel,
        {"bits": 8, "group_size": -1, "act_group_aware": False},
    ),
    "gptqmodel mixed": (
        "gptqmodel",
        gptqmodel,
        {
            "bits": 4,
            "group_size": GROUP,
            "dynamic": {r"-:.*layers\.0\.mlp\.up_proj": {}, r"+:.*o_proj": {"bits": 8}},
        },
    ),
    "gptqmodel awq": (
        "gptqmodel",
        gptqmodel,
        {"bits": 4, "group_size": GROUP, "quant_method": "awq", "format": "gemm"},
    ),
    "auto-round": ("auto-round", autoround, {"form": "auto_round"}),
    "auto-round auto_gptq": ("auto-round", autoround, {"form": "auto_gptq"}),
    "auto-round auto_gptq 8 bits": ("auto-round", autoround, {"form": "auto_gptq", "bits": 8}),
    "auto-round auto_awq": ("auto-round", autoround, {"form": "auto_awq"}),
}


def main() -> None:
    source, out, case = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    tool, pack, options = PACKERS[case]
    out.mkdir(parents=True)
    found = pack(source, out, **options)
    if isinstance(found, tuple):
        packed, meant, config = found
        write(source, out / "checkpoint", packed, config)
    else:
        meant = found
    if not meant:
        raise SystemExit(f"{case}: expected quantized linears, found none")
    held = {name: weight.contiguous() for name, weight in meant.items()}
    save_file(held, out / "meant.safetensors", {"tool": tool})
    print(json.dumps({"tool": tool, "version": importlib.metadata.version(tool)}))


if __name__ == "__main__":
    main()

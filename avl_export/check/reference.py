"""What transformers computes in fp32 with the weights that a package has.

A model is either whole in memory, or its weights are streamed: a module has them only while it
runs, so that a model of any size takes little more memory than its largest matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn
from transformers import DynamicCache

from avl_export.check.streaming import Load, streamed
from avl_export.check.table import CheckError
from avl_export.check.walk import check_prompt
from avl_export.checkpoint.adapters.adapter import Adapter
from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.source import Source
from avl_export.checkpoint.tied import untie_as
from avl_export.checkpoint.weight_map import map_weights
from avl_export.families import Family
from avl_export.families.buffers import initial_buffers, keep_stored
from avl_export.quantize.packaged import read_packaged
from avl_export.quantize.reading import read_weight
from avl_export.quantize.stored import stored_source
from avl_plugins.graph_io import CONVOLUTION, DELTA, LOGITS, MADE, TAP, named
from avl_runtime.package.package import Package
from avl_runtime.prompts.processor import Prompt

# Rounding to 4 bits moves a weight matrix by about a tenth of its norm; another matrix differs by
# more than its whole norm.
WEIGHT_TOLERANCE = 0.5

Array = NDArray[Any]
# Hears of a decoder layer: its number, what it was given, what it put out, and what the next one
# was given, which of the last is what it put out, [1, N, C]; and what it was given beside the state
# [1, N, size], if anything.
Hear = Callable[[int, Array, Array, Array, Array | None], None]


@dataclass(frozen=True, slots=True)
class Reference:
    """What transformers makes of a check's prompt of N tokens, float32 by name.

    Attributes:
        tensors: `embedded` [N, C] are what the first layer is given but for the decoder's scale,
            `layer_out.L` [N, C] what the next one is given, `k_new.L` and `v_new.L` [Hkv, N, D], or
            the states behind all tokens, `logits` [N, V].
        quantization: the largest logit difference that quantized weights make, None without any.
    """

    tensors: Mapping[str, Array]
    quantization: float | None = None


def read_reference(
    package: Package, family: Family, checkpoint: Checkpoint, adapter: Adapter | None = None
) -> Reference:
    """Run transformers, whole in memory, with what the codes of a quantized package stand for.

    Raises:
        CheckError: transformers cannot read the checkpoint; or codes do not stand for its weights.
    """
    prompt, quantized = check_prompt(package), package.manifest.quantization is not None
    if checkpoint.packing is not None:  # codes, which transformers cannot read here
        load = checkpoint_loader(checkpoint, family.model)
        if quantized:
            load = codes_loader(package, family, load)
        return Reference(tensors(family, empty_model(family), prompt, load))
    model = load_model(family, adapter)
    found = tensors(family, model, prompt)
    if not quantized:
        return Reference(found)
    set_codes(package, model)
    logits = found[LOGITS]
    found = tensors(family, model, prompt)
    return Reference(found, float(np.abs(found[LOGITS] - logits).max()))


def tensors(
    family: Family, model: nn.Module, prompt: Prompt, load: Load | None = None
) -> dict[str, Array]:
    """What `model` computes, see `Reference`."""
    found: dict[str, Array] = {}

    def hear(layer: int, given: Array, _out: Array, after: Array, _beside: Array | None) -> None:
        if layer == 0:
            found["embedded"] = given[0]
        found[named(TAP, layer)] = after[0]

    # Not every decoder of transformers makes a cache by itself. One made by the configuration,
    # which states need, would forget rows that windows leave behind.
    config = cast(Any, model).config.get_text_config()
    rows = DynamicCache(config=config if family.decoder.dims.states is not None else None)
    out = forward(family, model, prompt, hear, load, use_cache=True, past_key_values=rows)
    for layer, cache in enumerate(rows.layers):
        found |= {named(kind, layer): array for kind, array in _kept(cache).items()}
    found[LOGITS] = out.logits[0].float().numpy()
    return found


def _kept(cache: Any) -> dict[str, Array]:
    """What a layer of transformers' cache keeps of the one sequence, by kinds of graphs."""
    if not hasattr(cache, "conv_states"):
        return {
            MADE.keys: cache.keys[0].float().numpy(),
            MADE.values: cache.values[0].float().numpy(),
        }
    # It keeps as many inputs as a convolution sees, and one of them is never read again.
    found = {CONVOLUTION.made: cache.conv_states[0][0, :, 1:].float().numpy().T}
    if cache.recurrent_states[0] is not None:
        found[DELTA.made] = cache.recurrent_states[0][0].float().numpy()
    return found


def forward(
    family: Family,
    model: Any,
    prompt: Prompt,
    hear: Hear,
    load: Load | None = None,
    **options: Any,
) -> Any:
    """Run transformers' model over a whole prompt; returns its output.

    Args:
        hear: hears of each decoder layer when it is known what came of it.
        load: reads the parameters of a model without any, see `streamed`.
        options: of the model's `forward`.
    """
    layers = family.layers_of(model)
    last: tuple[Array, Array] = np.empty(0), np.empty(0)  # of the layer before: see Hear
    beside: Array | None = None

    def enter(number: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            nonlocal last, beside
            given = _state(args or kwargs["hidden_states"])
            if number == 0:
                given = given / given.dtype.type(family.decoder.embedding_scale)
            else:
                hear(number - 1, *last, given, beside)
            if family.decoder.dims.layer_inputs:
                beside = _state(args[1])
            last = given, given

        return hook

    def leave(_: Any, __: Any, output: Any) -> None:
        nonlocal last
        last = last[0], _state(output)

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            entered = layer.register_forward_pre_hook(enter(number), with_kwargs=True)
            stack.callback(entered.remove)
            stack.callback(layer.register_forward_hook(leave).remove)
        stack.enter_context(torch.no_grad())
        if load is not None:
            stack.enter_context(streamed(model, load))
        found = model(**family.reference_inputs(prompt), **options)
    hear(len(layers) - 1, *last, last[1], beside)
    return found


def watch(layer: nn.Module, hear: Callable[[Array], None], entering: bool = False) -> None:
    """From now on, `hear` hears of what a layer puts out, or of what it is given."""
    if entering:
        layer.register_forward_pre_hook(lambda _, args: hear(_state(args)))
    else:
        layer.register_forward_hook(lambda _, __, output: hear(_state(output)))


def _state(output: Any) -> Array:
    state: Array = (output[0] if isinstance(output, tuple) else output).float().numpy()
    return state


def load_model(family: Family, adapter: Adapter | None = None) -> nn.Module:
    """transformers' model with the checkpoint's weights, in fp32 on the CPU, an adapter merged.

    Raises:
        CheckError: transformers cannot read the checkpoint.
    """
    try:
        model = family.reference()
    except Exception as error:  # transformers refuses a checkpoint with any kind of error
        line = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise CheckError(
            f"expected transformers to load the checkpoint, found {line}; fix the checkpoint, or "
            "export without a comparison, with --no-check"
        ) from None
    if adapter is None:
        return model
    untie_as(model, family.model)
    return adapter.apply(model)


def set_codes(package: Package, model: nn.Module) -> None:
    """Give `model` the weights that the codes of `package` stand for.

    Raises:
        CheckError: they are far from those that it had.
    """
    packaged = read_packaged(package)
    parameters = dict(model.named_parameters())
    embedding = cast(Any, model).get_input_embeddings()
    table = next(name for name, value in parameters.items() if value is embedding.weight)
    embedding.weight = nn.Parameter(embedding.weight.detach().clone())  # no output matrix any more
    places = [(name, parameters[name], place) for name, place in packaged.linears.items()]
    places += [
        (name, embedding.weight if name == table else parameters[name], place)
        for name, place in packaged.rows.items()
    ]
    with torch.no_grad():
        for name, parameter, place in places:
            found = torch.from_numpy(read_weight(package.folder, place))
            error = float(torch.linalg.vector_norm(found - parameter))
            size = float(torch.linalg.vector_norm(parameter))
            if not error <= WEIGHT_TOLERANCE * size:
                raise CheckError(
                    f"expected codes that stand for {name}, found a difference of {error:.1e} from "
                    f"a weight of norm {size:.1e}; report it with the checkpoint's name"
                )
            parameter.copy_(found)


def empty_model(family: Family) -> nn.Module:
    """transformers' model of `family` in fp32 with eager attention and no weights.

    Parameters are on the meta device; buffers that no checkpoint stores have their values, on the
    CPU, as transformers' own initialisation gives them.
    """
    traced = cast(Any, family.model)
    config = copy.deepcopy(traced.config)
    with torch.device("meta"):
        model: Any = type(traced)._from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    keep_stored(model)
    for module, name, _, value in initial_buffers(model):
        module._buffers[name] = value
    return cast(nn.Module, model.eval())


def checkpoint_loader(
    checkpoint: Checkpoint, model: nn.Module, adapter: Adapter | None = None
) -> Load:
    """Reads a parameter of `model` from `checkpoint`, as fp32, changed as `adapter` says.

    Codes are read as what they stand for.
    """
    weights = map_weights(checkpoint, model, {name: name for name in checkpoint.shards})

    def load(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name in weights.packed:
            made = stored_source(checkpoint, weights, name, shape, floats=True)
            return torch.from_numpy(cast(Source, made).read_floats(0, shape[0]))
        if name not in weights.places and checkpoint.told:
            # llama.cpp leaves out what its graphs do not read, and neither do ours; transformers
            # runs it, as the norm behind a tower whose last state nobody looks at.
            return torch.zeros(shape)
        placed = weights.place(name, shape)
        stored = Source(placed.key, checkpoint.shards[placed.location], placed.record)
        if adapter is not None and name in adapter.changes:
            return torch.from_numpy(adapter.source(name, stored).read_floats(0, shape[0]))
        if placed.record != checkpoint.tensors[placed.key][1]:  # rows of a tensor
            return torch.from_numpy(stored.read_floats(0, shape[0]))
        if placed.swapped:
            return torch.from_numpy(stored.read_floats(0, shape[0])).mT
        with safe_open(checkpoint.shards[placed.location], "pt") as file:
            return cast(torch.Tensor, file.get_tensor(placed.key).float())

    return load


def codes_loader(package: Package, family: Family, plain: Load) -> Load:
    """Reads what the codes of `package` stand for, and with `plain` what is not quantized."""
    packaged, model = read_packaged(package), cast(Any, family.model)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    table = model.get_input_embeddings().weight
    embedding = next(name for name, value in model.named_parameters() if value is table)

    def load(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name == embedding:  # codes of linears under its name are those of the output matrix
            place = packaged.rows.get(name)
        else:
            linear = packaged.linears.get(name) or packaged.linears.get(tied.get(name, name))
            place = linear or packaged.rows.get(name)
        if place is None:
            return plain(name, shape)
        return torch.from_numpy(read_weight(package.folder, place))

    return load

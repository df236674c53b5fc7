"""What every family does in the same way with transformers' classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.weight_files import ADAPTER_CONFIG
from avl_export.families.base import Traits
from avl_export.families.buffers import initial_buffers, keep_stored
from avl_export.families.decoders.decoder import Decoder, adapt, check_text
from avl_plugins.errors import quoted

MOST_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class HfFamily:
    """The part of `families.base.Family` that does not depend on the family.

    `model_class` is transformers' class.
    """

    model_class: ClassVar[Any]
    name: str
    folder: Path
    traits: Traits
    model: nn.Module
    decoder: Decoder

    @property
    def config(self) -> Any:
        """The configuration of `model`."""
        return cast(Any, self.model).config

    @property
    def dtype(self) -> torch.dtype:
        """What `model` computes in."""
        return next(self.model.parameters()).dtype

    def layers_of(self, model: nn.Module) -> Sequence[nn.Module]:
        return list(model.get_submodule(f"{self.decoder.name}.layers").children())

    def constants(self) -> dict[str, torch.Tensor]:
        stored = self.model.state_dict()
        others = {
            name: value for _, _, name, value in initial_buffers(self.model) if name not in stored
        }
        return {**others, **self.decoder.constants()}

    def reference(self) -> nn.Module:
        # What transformers leaves out or initialises has been named or refused by then.
        bar, level = (
            transformers_logging.is_progress_bar_enabled(),
            transformers_logging.get_verbosity(),
        )
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        # With peft installed transformers would apply an adapter that lies there, and rename
        # parameters: adapters are merged by avl itself.
        alone = {"subfolder": "none"} if (self.folder / ADAPTER_CONFIG).is_file() else {}
        try:
            model = self.model_class.from_pretrained(
                self.folder,
                adapter_kwargs=alone,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                use_safetensors=True,
            )
        finally:
            transformers_logging.set_verbosity(level)
            if bar:
                transformers_logging.enable_progress_bar()
        return cast(nn.Module, model.eval())


def meta_model(
    checkpoint: Checkpoint,
    config_class: Any,
    model_class: Any,
    dtype: torch.dtype,
    check: Callable[[Any, str], None],
    *,
    slides: bool = False,
    both_ways: bool = False,
    experts: bool = False,
) -> tuple[Any, nn.Module, Decoder]:
    """Configuration, model and decoder of `checkpoint`, the model on the meta device.

    Args:
        check: raises FamilyError for encoders that the family cannot export; it is given the
            configuration and the path of config.json.
        slides: as for `adapt`.
        both_ways: whether attention to later tokens may be asked for, as `Traits.reach` says.
        experts: whether the decoder may have a mixture of experts.

    Raises:
        FamilyError: as `check`, the decoder is none that graphs compute, or the configuration is
            invalid.
    """
    where, kind = str(checkpoint.folder / "config.json"), ""
    try:
        config = config_class.from_dict(dict(checkpoint.config))
        tower = config.vision_config.model_type  # which models of other towers take as it comes
        if not isinstance(tower, str):
            raise FamilyError(
                f"{where}: expected the name of a tower as model_type of vision_config, found "
                f"{quoted(tower, 40)}; fix the file"
            )
        _check_layers(config, where)
        text = config.get_text_config()
        kind = f" (its decoder is {quoted(text.model_type, 40)})"
        check_text(text, where, both_ways=both_ways, experts=experts)
        check(config, where)
        with torch.device("meta"):
            model = model_class._from_config(config, dtype=dtype).eval()
        keep_stored(model)
        decoder = adapt(model, where, slides=slides, both_ways=both_ways)
    except FamilyError:
        raise
    except Exception as error:  # transformers refuses a configuration with any kind of error
        line = " ".join(str(error).split())[:200]
        raise FamilyError(
            f"{where}: expected a {config_class.model_type} configuration, found {line}{kind}; "
            "fix config.json"
        ) from None
    return config, model, decoder


def _check_layers(config: Any, where: str) -> None:
    """Refuse counts of layers that nothing could hold: each is made, without weights, to look."""
    for part in (config.get_text_config(), config.vision_config):
        for name in ("num_hidden_layers", "depth"):
            count = getattr(part, name, None)
            if isinstance(count, int) and count > MOST_LAYERS:
                raise FamilyError(
                    f"{where}: expected at most {MOST_LAYERS} as {name}, found "
                    f"{quoted(count, 40)}; fix the file"
                )

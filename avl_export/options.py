"""The options of one export, validated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avl_plugins.errors import AvlError, quoted
from avl_plugins.policies import parse

DtypeOption = Literal["auto", "fp32", "fp16", "bf16"]
QuantizeOption = Literal["none", "int8", "int4"]
BLOCK_SIZES = (32, 64, 128)
ALSO = ("embedding", "lm_head", "vision")
METHODS = ("rtn", "clip", "hqq")
GGUF = ".gguf"  # how names of files for llama.cpp end


class OptionsError(AvlError):
    """An option is invalid, or impossible for this checkpoint."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to export and how.

    `split` holds the layers after which the decoder is cut, ascending; None is 2, or 1 in a decoder
    of two layers. `check` is None to check small models only, and `layers` compares layer by layer.
    `revision` is the hub's branch, tag or commit. A `dry_run` is planned and not exported.
    `hash_weights` records a hash of all bytes of linked weights. `force` removes what else lies in
    the folder of a package that is replaced.

    `quantize` turns the linears of the decoder's layers into codes of 4 or 8 bits, and what
    `quantize_also` names. `block_size` inputs share a scale; None is 64 for int4 and one scale an
    output for int8. `quantize_method` None is the one that measured best.

    `vision_attention` asks encoders for the attention that their tokens receive, and `restore` the
    decoder for attention that can be biased where tokens are gone.

    `lora` is the folder of an adapter that is merged into the weights. `mmproj` is the file of the
    encoder and projector where `model` is a GGUF file, and `config` a folder or hub id whose
    configuration, tokenizer and processor then count.
    """

    model: str
    out: Path
    policy: str = "dense"
    split: tuple[int, ...] | None = None
    dtype: DtypeOption = "auto"
    copy: bool = False
    check: bool | None = None
    layers: bool = False
    revision: str | None = None
    dry_run: bool = False
    hash_weights: bool = False
    quantize: QuantizeOption = "none"
    quantize_also: tuple[str, ...] = ()
    quantize_method: str | None = None
    block_size: int | None = None
    lora: Path | None = None
    force: bool = False
    mmproj: Path | None = None
    config: str | None = None
    vision_attention: bool = False
    restore: bool = False

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise OptionsError(
                "--model: expected an alias, a folder or a hub id, found an empty name; name one"
            )
        policy = parse(self.policy)
        object.__setattr__(self, "policy", str(policy))
        if policy.reads_vision and not self.vision_attention:
            raise OptionsError(
                f"--policy {policy}: expected --vision-attention with it, as it chooses by the "
                "encoder's attention, found none; add it"
            )
        if policy.biases and not self.restore:
            raise OptionsError(
                f"--policy {policy}: expected --restore with it, as it biases attention, found "
                "none; add it"
            )
        if self.split is not None and list(self.split) != sorted(set(self.split)):
            raise OptionsError(
                f"--split: expected layers in ascending order, each once, "
                f"found {','.join(map(str, self.split))}; sort them"
            )
        self._check_gguf()
        if self.layers and self.check is False:
            raise OptionsError("--layers: expected a check, found --no-check; leave one out")
        unknown = [part for part in self.quantize_also if part not in ALSO]
        if unknown:
            raise OptionsError(
                f"--quantize-also: expected {', '.join(ALSO)}, found {quoted(unknown[0])}; the "
                "linears of the decoder's layers are always quantized"
            )
        for option, value, allowed in (
            ("--block-size", self.block_size, BLOCK_SIZES),
            ("--quantize-method", self.quantize_method, METHODS),
        ):
            if value is not None and value not in allowed:
                raise OptionsError(
                    f"{option}: expected {', '.join(map(str, allowed))}, found {value}; choose "
                    "one of them"
                )
        if self.quantize == "none":
            given = {
                "--quantize-also": self.quantize_also,
                "--quantize-method": self.quantize_method,
                "--block-size": self.block_size,
            }
            for option, chosen in given.items():
                if chosen:
                    raise OptionsError(
                        f"{option}: expected --quantize int4 or int8 with it, found none; add "
                        f"one or leave {option} out"
                    )

    def _check_gguf(self) -> None:
        if self.model.lower().endswith(GGUF):
            return
        for option, given in (("--mmproj", self.mmproj), ("--config", self.config)):
            if given is not None:
                raise OptionsError(
                    f"{option}: expected a GGUF file as --model with it, found "
                    f"{quoted(self.model)}; leave {option} out"
                )

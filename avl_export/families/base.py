"""The seam between model families and everything else in the exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from avl_plugins.graph_io import FEATURES, VISION_ATTENTION
from avl_runtime.package.manifest import CAUSAL, ImageEncoder, Reach, Tokens, VideoEncoder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from avl_export.families.decoders.decoder import Decoder
    from avl_runtime.prompts.processor import Prompt


@dataclass(frozen=True, slots=True)
class Traits:
    """What the manifest says about a model beyond its graphs.

    `deepstack` names the decoder layers that add encoder features to what they put out. Features
    that are added in front of a layer are those of the one before; in front of the first layer they
    are image_features, divided by the decoder's `embedding_scale`. `beside_visual` is the token
    whose row visual tokens have in a table of layers' inputs, see `LayerTable`. `bare` are texts
    around which the tokenizer shall write nothing, though its file says so.
    """

    tokens: Tokens
    chat_template: str | None
    image: ImageEncoder
    video: VideoEncoder | None = None
    deepstack: tuple[int, ...] = ()
    reach: Reach = CAUSAL
    beside_visual: int | None = None
    bare: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class EncoderGraph:
    """An encoder to be traced: what `layout.prepare` makes -> image_features [tokens, C].

    Leading axes of the features may be split further (images, tiles or frames); the runtime joins
    them. Holds only the submodules it needs.

    Attributes:
        file: as in the traits' encoders.
        example: the inputs by name, on the meta device.
        dynamic: axes of the inputs that may change, as torch.export takes them.
        outputs: image_features and, for deepstack, deepstack_features [K, tokens, C].
        attending: what puts out vision_attention [..., 3] behind them, with the same axes; None
            where nobody has written that yet.
    """

    file: str
    module: nn.Module
    example: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, Mapping[int, Any]]
    outputs: tuple[str, ...] = (FEATURES,)
    attending: nn.Module | None = None

    def telling(self) -> EncoderGraph:
        """The same with vision_attention as its last output.

        Raises:
            RuntimeError: it has none.
        """
        if self.attending is None:
            raise RuntimeError(f"{self.file}: expected an encoder that tells attention")
        outputs = (*self.outputs, VISION_ATTENTION)
        return replace(self, module=self.attending, outputs=outputs, attending=None)


class Family(Protocol):
    """One checkpoint seen through its family's eyes; its modules live on the meta device."""

    @property
    def name(self) -> str:
        """The family's name: the config's model_type."""
        ...

    @property
    def traits(self) -> Traits:
        """Sizes, tokens and preprocessing."""
        ...

    @property
    def model(self) -> nn.Module:
        """The whole transformers model, in the compute dtype, without weights."""
        ...

    @property
    def decoder(self) -> Decoder:
        """Its decoder."""
        ...

    def encoders(self) -> Sequence[EncoderGraph]:
        """The graphs that read pictures and videos, each file once."""
        ...

    def constants(self) -> dict[str, torch.Tensor]:
        """Values of the buffers that no checkpoint stores, by name in `model`."""
        ...

    def reference(self) -> nn.Module:
        """The model with its weights, fp32 on the CPU, eager attention: reads the checkpoint."""
        ...

    def layers_of(self, model: nn.Module) -> Sequence[nn.Module]:
        """The decoder layers of `reference()`."""
        ...

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """Keywords with which `reference()` reads a prompt, as a batch of one.

        Positions are not among them: transformers works them out by itself.
        """
        ...


def runs_on_cpu_alone(family: Family) -> bool:
    """Whether no engine computes a family's decoder, but ONNX Runtime's CPU does."""
    dims = family.decoder.dims
    return family.traits.reach != CAUSAL or dims.states is not None or dims.experts is not None

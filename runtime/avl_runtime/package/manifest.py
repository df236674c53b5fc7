"""What `avl.json` says: the dataclasses that it is read into and written from."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from avl_plugins import graph_io
from avl_plugins.errors import AvlError
from avl_plugins.schema import COMPUTED, RowType
from avl_runtime.package.dims import Dims
from avl_runtime.package.engine_sets import EngineSet
from avl_runtime.package.generation_defaults import NEUTRAL, GenerationDefaults
from avl_runtime.package.quantization import Quantization
from avl_runtime.vision import ImageLayout, Kind, VideoLayout

MANIFEST = "avl.json"
FORMAT_VERSION = 8
# Fields that a version added have defaults: what older packages lack.
READ_VERSIONS = (4, 5, 6, 7, 8)


class PackageError(AvlError):
    """A package is missing, damaged, foreign or from a newer version."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file inside the package; `path` is relative, with forward slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Shard:
    """A safetensors file the graphs read weights from.

    `header_sha256` hashes the 8 length bytes and the header; `sha256` the whole file, if asked for;
    `sample_sha256` a sample of it (`shard_files`). `modified_ns` is the time, in nanoseconds, at
    which a file that the package links to was last modified.
    """

    path: str
    size: int
    header_sha256: str
    sha256: str | None
    modified_ns: int | None = None
    sample_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the shards lie: `folder` is absolute, or None for the package itself."""

    folder: str | None
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """Which tokens a token attends to, where that is not all before it.

    Attributes:
        window: positions that tokens see in layers of the kind `sliding`, their own included.
        blocks: whose tokens see one another, later ones too: those of a run of `images` tokens, or
            all of a `prompt`.
    """

    window: int | None = None
    blocks: Literal["images", "prompt"] | None = None

    def __str__(self) -> str:
        parts = [f"a window of {self.window} tokens"] * (self.window is not None)
        if self.blocks is not None:
            of = "picture" if self.blocks == "images" else "prompt"
            parts.append(f"tokens of a {of} that attend to one another")
        return " and ".join(parts) or "attention to all tokens before"


CAUSAL = Reach()


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers `first_layer` to `last_layer` - 1 as one graph; the last segment yields logits.

    `deepstack` names the layers with an input `deepstack.i` [B, S, C] that is added to what the
    layer puts out (DeepStack, arXiv 2406.04334): features at visual tokens, zeros elsewhere.
    `kinds` says of each layer what it keeps (`graph_io.LAYER_KINDS`); None, as in packages of
    before, stands for full attention in all of them. `kept` names graphs of the same layers that
    keep rows in another way: the way's name (`avl_plugins.schema`) and the file, of each.
    """

    file: str
    first_layer: int
    last_layer: int
    deepstack: tuple[int, ...]
    kinds: tuple[str, ...] | None = None
    kept: tuple[tuple[str, str], ...] = ()

    def graph(self, kept: RowType) -> str:
        """The file of the graph that keeps rows in a way.

        Raises:
            PackageError: the package has none.
        """
        if kept == COMPUTED:
            return self.file
        file = dict(self.kept).get(kept.name)
        if file is None:
            raise PackageError(
                f"--kv {kept.name}: expected a package with graphs that keep rows as {kept.name}, "
                "found one without; export again, for a CPU (--dtype fp32 or --quantize), or leave "
                "it out"
            )
        return file


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """Tower and projector: what `layout` prepares -> image_features [tokens, hidden].

    `placeholder` is what the chat template writes for a picture, `token` the id of each of the
    tokens that take its place. A graph of a decoder with deepstack layers has a second output,
    deepstack_features [layers, tokens, hidden], and one of a package with `vision_attention` a last
    one, vision_attention [..., 3]. `several` is the layout of pictures that come
    together in one turn, where it is another.
    """

    file: str
    placeholder: str
    token: int
    layout: ImageLayout
    several: ImageLayout | None = None

    def layout_among(self, count: int) -> ImageLayout:
        """The layout of each of `count` pictures of a turn."""
        return self.layout if count <= 1 or self.several is None else self.several


@dataclass(frozen=True, slots=True)
class VideoEncoder:
    """As `ImageEncoder`, for videos; `file` and `token` may be the image encoder's own."""

    file: str
    placeholder: str
    token: int
    layout: VideoLayout


@dataclass(frozen=True, slots=True)
class Embedding:
    """The token embedding matrix [vocab, hidden], read in place from a shard.

    I8 and I4 (two columns a byte) are codes, whose scales the manifest's quantization names.
    """

    file: str
    offset: int
    dtype: Literal["F32", "F16", "BF16", "I8", "I4"]
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class LayerTable:
    """What layers read of a token beside its state: rows [layers * layer_inputs] of a table.

    Attributes:
        table: as the token embedding's.
        visual: the token whose row those have that encoders give features for.
    """

    table: Embedding
    visual: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Special token ids.

    `names` are the names of tokens that a chat template may use, each with the token's text:
    `bos_token`, `eos_token` and so on, as the checkpoint's tokenizer has them. None, as in packages
    of before, stands for those of the ids and of the placeholders.
    """

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    names: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """Rows of the cache in fewer bits, which a check on somebody's questions found harmless.

    Attributes:
        rows: how they are kept.
        policy: under which they were checked.
        questions, tokens: what was asked, and how many tokens the answers had.
        apart: the largest difference of a metric's mean score from that of rows as computed.
        divergence: KL(as computed || these), in nats a token.
    """

    rows: Literal["int8"]
    policy: str
    questions: int
    tokens: int
    apart: float
    divergence: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole of `avl.json`."""

    format_version: int
    producer: str
    family: str
    model: str
    dtype: Literal["fp32", "fp16", "bf16"]
    dims: Dims
    image: ImageEncoder
    video: VideoEncoder | None
    segments: tuple[Segment, ...]
    embedding: Embedding
    quantization: Quantization | None
    tokens: Tokens
    chat_template: str | None
    default_policy: str
    weights: Weights
    files: tuple[FileEntry, ...]
    engines: tuple[EngineSet, ...]
    generation: GenerationDefaults = NEUTRAL
    reach: Reach = CAUSAL
    layer_table: LayerTable | None = None
    adapter: str | None = None  # the name of the LoRA adapter that is merged into the weights
    vision_attention: bool = False  # whether encoders tell what attention tokens receive in them
    restores: bool = False  # whether attention can be biased where tokens are gone
    checked_rows: CheckedRows | None = None  # how rows are kept where nobody says how

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def with_engines(self, engines: tuple[EngineSet, ...]) -> Manifest:
        """The same with these engine sets, in the format in which it is written from now on."""
        return dataclasses.replace(self, engines=engines, format_version=FORMAT_VERSION)

    @property
    def visual_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens whose rows come from an encoder."""
        return tuple({self.image.token} | ({self.video.token} if self.video else set()))

    @property
    def encoders(self) -> dict[Kind, str]:
        """The encoder's graph of every medium the model takes; two media may share one."""
        files: dict[Kind, str] = {"image": self.image.file}
        if self.video is not None:
            files["video"] = self.video.file
        return files

    @property
    def encoded(self) -> tuple[str, ...]:
        """What encoders put out, in order."""
        deepstack = (graph_io.DEEPSTACK_FEATURES,) if self.deepstack_layers else ()
        attention = (graph_io.VISION_ATTENTION,) if self.vision_attention else ()
        return (graph_io.FEATURES, *deepstack, *attention)

    @property
    def deepstack_layers(self) -> tuple[int, ...]:
        """Decoder layers that add encoder features to what they put out, ascending."""
        return tuple(layer for segment in self.segments for layer in segment.deepstack)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Files of all graphs, each once: encoders first, then segments."""
        encoders = dict.fromkeys(self.encoders.values())
        return (*encoders, *(segment.file for segment in self.segments))

    def graph_of(self, segment: Segment, kept: RowType = COMPUTED) -> graph_io.Segment:
        """What the graph of one of the segments reads and writes, that keeps rows in a way."""
        first, last, ends = segment.first_layer, segment.last_layer, segment == self.segments[-1]
        kinds, blocks = segment.kinds, self.reach.blocks is not None
        return graph_io.Segment(
            self.dims, first, last, segment.deepstack, ends, kinds, kept, blocks, self.restores
        )

    def windows(self, segment: Segment) -> tuple[int | None, ...]:
        """How many positions a row sees in each layer of a segment with rows; None for all."""
        graph = self.graph_of(segment)
        slides = (graph.kind(layer) is graph_io.SLIDING for layer in graph.row_layers)
        return tuple(self.reach.window if one else None for one in slides)

    @property
    def row_layers(self) -> tuple[int, ...]:
        """Decoder layers that keep rows, ascending; the others keep a state."""
        return tuple(
            layer for segment in self.segments for layer in self.graph_of(segment).row_layers
        )

    def splits(self) -> tuple[int, ...]:
        """Layers after which hidden states can be dropped."""
        return tuple(segment.first_layer for segment in self.segments[1:])

"""What a package with quantized weights holds: every tensor, its bytes and where they come from.

ONNX Runtime reads external data from one folder only, so such a package is self-contained: what
is not quantized is copied, in the dtype that graphs compute in, which keeps it mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from avl_export.checkpoint.places import QuantizedPlace
from avl_export.checkpoint.safetensors_header import TensorRecord
from avl_export.checkpoint.source import Source
from avl_export.quantize.codes import StoredCodes
from avl_export.quantize.layout import File, FileLayout
from avl_export.quantize.selection import Selection
from avl_export.quantize.spec import Spec
from avl_runtime.package.quantization import EXPERTS

PLAIN = "weights.safetensors"
ROWS = ".rows"  # behind the name of a token embedding whose codes are looked up row by row
OF_DTYPE = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
CODES_ARE = {
    4: "signed 4-bit codes, two a byte, the even column in the low half",
    8: "signed 8-bit codes",
}
SCALES_ARE = "a weight is scale * (code - zero_point), zero_point 0 where there is none"


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that is copied, and its place in `PLAIN`."""

    source: Source
    record: TensorRecord


@dataclass(frozen=True, slots=True)
class Store:
    """The weights of a package, planned.

    Attributes:
        files: codes and scales, and what is not quantized; tensors in the order of their bytes.
        linears: places of quantized weights, by the parameter's name in the model; those of
            experts have three axes.
        plain: the other weights, by name.
        sources: the tensors behind `linears`, `rows` and `embedding`, by name.
        embedding: the token embedding's name.
        rows: places of quantized tables, whose rows are looked up, by name.
        kept: why weights that were asked for are not quantized, by name.
        fitting: as in `Selection`.
        spec: None where no weight is quantized: one file of changed weights and the others.
    """

    spec: Spec | None
    files: tuple[File, ...]
    linears: Mapping[str, QuantizedPlace]
    plain: Mapping[str, Plain]
    sources: Mapping[str, Source | StoredCodes]
    embedding: str
    rows: Mapping[str, QuantizedPlace]
    kept: Mapping[str, str]
    fitting: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)

    @property
    def quantized(self) -> list[tuple[str, QuantizedPlace]]:
        """Every quantized tensor and the name of its parameter."""
        return [*self.linears.items(), *self.rows.items()]

    @property
    def parts(self) -> tuple[str, ...]:
        """What is quantized: parts that were asked for, and the decoder's experts if they are."""
        mixed = any(len(place.shape) == 3 for place in self.linears.values())
        return (*(self.spec.parts if self.spec else ()), *((EXPERTS,) if mixed else ()))

    @property
    def has_zeros(self) -> bool:
        """Whether some codes of 0 are not 0, which TensorRT does not take."""
        return any(place.zeros is not None for place in self.linears.values())


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a store is made of.

    Attributes:
        shapes: of the parameters that graphs read, by name, each once.
        sources: the stored tensors by name, codes where the checkpoint is quantized.
        embedding: the token embedding's name.
        tables: names of others whose rows are looked up one by one.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sources: Mapping[str, Source | StoredCodes]
    embedding: str
    tables: tuple[str, ...] = ()


def plan_store(spec: Spec, selection: Selection, wanted: Wanted) -> Store:
    """Lay the files out.

    Raises:
        CheckpointError: stored codes cannot be taken over.
    """
    plain = FileLayout(PLAIN, {"format": "pt"})
    drafts = {}
    for name in wanted.shapes:
        if name in selection.linears:
            source = wanted.sources[name]
            drafts[name] = _Draft.linear(name, selection.linears[name], spec, source)
        elif name in selection.stacks:
            drafts[name] = _Draft.rows(name, selection.stacks[name], spec)
    held = sorted({spec.bits, *(draft.bits for draft in drafts.values())})
    quantized = FileLayout(
        f"weights.int{spec.bits}.safetensors",
        {
            "format": "avl",
            "codes": " or ".join(CODES_ARE[bits] for bits in held),
            "scales": SCALES_ARE,
        },
    )
    for name in wanted.shapes:
        if name in drafts:
            drafts[name].add_to(quantized)
        else:
            shape = _plain_source(wanted.sources[name]).record.shape  # which may be swapped
            plain.add(name, _plain_dtype(name, spec, selection, wanted), shape)
    tables = (wanted.embedding, *wanted.tables)
    rows: dict[str, _Draft] = {}
    for name in tables:
        record = _plain_source(wanted.sources[name]).record
        if name in selection.tables:
            # A tied matrix may be there as a linear's weight already.
            rows[name] = _Draft.rows(f"{name}{ROWS}", record.shape, spec)
            rows[name].add_to(quantized)
        elif name not in plain.wanted:
            # Rows are looked up one by one, so they may stay in the checkpoint's own dtype.
            plain.add(name, record.dtype, record.shape)
    files = tuple(layout.finish() for layout in (quantized, plain))
    return Store(
        spec=spec,
        files=files,
        linears={name: draft.place(files[0]) for name, draft in drafts.items()},
        plain={
            name: Plain(_plain_source(wanted.sources[name]), record)
            for name, record in files[1].tensors.items()
        },
        sources={name: wanted.sources[name] for name in (*drafts, *tables)},
        embedding=wanted.embedding,
        rows={name: draft.place(files[0]) for name, draft in rows.items()},
        kept=selection.kept,
        fitting=selection.fitting,
    )


def _plain_dtype(name: str, spec: Spec, selection: Selection, wanted: Wanted) -> str:
    """What a tensor is copied in: what graphs compute in, or what one of 16 bits was to shrink."""
    dtype, source = OF_DTYPE[spec.scale_dtype], wanted.sources[name]
    if name in selection.kept and dtype == "F32" and isinstance(source, Source):
        return source.record.dtype
    return dtype


def plan_plain(wanted: Wanted, kept: Mapping[str, str] | None = None) -> Store:
    """A store of floating-point weights in their own dtypes; `kept` as in `Store`."""
    layout = FileLayout(PLAIN, {"format": "pt"})
    sources = {name: _plain_source(source) for name, source in wanted.sources.items()}
    for name, source in sources.items():
        layout.add(name, source.record.dtype, source.record.shape)
    file = layout.finish()
    return Store(
        spec=None,
        files=(file,),
        linears={},
        plain={name: Plain(sources[name], record) for name, record in file.tensors.items()},
        sources=sources,
        embedding=wanted.embedding,
        rows={},
        kept=kept or {},
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    """A quantized tensor before its file is laid out; names and shapes of what it is stored as."""

    name: str
    shape: tuple[int, ...]
    scale_dtype: str
    bits: Literal[4, 8]
    block: int | None
    codes_shape: tuple[int, ...]
    scales_shape: tuple[int, ...]
    zeros: bool
    by_rows: bool

    @classmethod
    def linear(
        cls, name: str, shape: tuple[int, int], spec: Spec, source: Source | StoredCodes
    ) -> _Draft:
        outputs, inputs = shape
        bits, block, zeros = spec.bits, spec.block, False
        if isinstance(source, StoredCodes):
            bits, block, zeros = source.bits, source.block, source.read_zeros() is not None
        scales = (outputs,) if block is None else (inputs // block, outputs)
        codes = (inputs, outputs * bits // 8)
        return cls(name, shape, spec.scale_dtype, bits, block, codes, scales, zeros, False)

    @classmethod
    def rows(cls, name: str, shape: tuple[int, ...], spec: Spec) -> _Draft:
        *lead, columns = shape
        scales = (*lead, 1 if spec.block is None else columns // spec.block)
        codes = (*lead, columns * spec.bits // 8)
        return cls(
            name=name,
            shape=shape,
            scale_dtype=spec.scale_dtype,
            bits=spec.bits,
            block=spec.block,
            codes_shape=codes,
            scales_shape=scales,
            zeros=False,
            by_rows=True,
        )

    @property
    def names(self) -> tuple[str, str, str]:
        """Codes, scales and zeros."""
        return (
            f"{self.name}.int{self.bits}",
            f"{self.name}.scale",
            f"{self.name}.zero_point",
        )

    def add_to(self, file: FileLayout) -> None:
        codes, scales, zeros = self.names
        kind = "U8" if self.bits == 4 else "I8"
        if self.by_rows:  # first, as they are written before the last row's scales are known
            file.add(codes, kind, self.codes_shape)
        file.add(scales, OF_DTYPE[self.scale_dtype], self.scales_shape)
        if self.zeros:
            file.add(zeros, kind, (*self.scales_shape[:-1], self.codes_shape[1]))
        if not self.by_rows:
            file.add(codes, kind, self.codes_shape)

    def place(self, file: File) -> QuantizedPlace:
        codes, scales, zeros = self.names
        return QuantizedPlace(
            location=file.name,
            shape=self.shape,
            bits=self.bits,
            block=self.block,
            codes=file.tensors[codes],
            scales=file.tensors[scales],
            zeros=file.tensors[zeros] if self.zeros else None,
            by_rows=self.by_rows,
        )


def _plain_source(source: Source | StoredCodes) -> Source:
    if isinstance(source, StoredCodes):
        raise RuntimeError(f"{source.codes.key}: packed, and read as it is")
    return source

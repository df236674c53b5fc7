"""MutualAttention in standard ONNX ops, in the language of `onnx.parser`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WHOLE = """
    of_heads_q = Transpose <perm = [0, 2, 1, 3]> (q)
    of_heads_k = Transpose <perm = [0, 2, 1, 3]> (k)
    of_heads_v = Transpose <perm = [0, 2, 1, 3]> (v)
    of_heads = Attention <scale: float = @scale> (of_heads_q, of_heads_k, of_heads_v)
    out = Transpose <perm = [0, 2, 1, 3]> (of_heads)
"""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a body computes scores, one head and one part of the queries at a time.

    All together would be by far an encoder's largest array (64 GiB for a picture of 12 megapixels),
    and a CPU fills it several times more slowly.

    Attributes:
        parts: into how many the queries of a frame are divided, whose number is a multiple.
    """

    heads: int
    head_dim: int
    parts: int


def cut_body(cut: Cut, masked: bool) -> str:
    """The body for inputs q, k, v and, where it is `masked`, seen."""
    return "".join(f"    {line}\n" for line in _lines(cut, masked))


def _lines(cut: Cut, masked: bool) -> Iterator[str]:
    heads, parts, width = range(cut.heads), range(cut.parts), cut.heads * cut.head_dim
    yield f"flat = Constant <value_ints = [0, 0, {width}]> ()"
    yield f"in_parts = Constant <value_ints = [0, {cut.parts}, -1, {width}]> ()"
    yield f"apart = Constant <value_ints = [0, 0, {cut.heads}, {cut.head_dim}]> ()"
    yield "of_parts = Constant <value_ints = [1]> ()"
    for name in "qkv":
        yield f"rows_of_{name} = Reshape ({name}, flat)"
    yield "factor = Constant <value_float: float = @scale> ()"
    yield "same_factor = CastLike (factor, q)"
    yield "scaled = Mul (rows_of_q, same_factor)"
    yield "parted = Reshape (scaled, in_parts)"
    yield "columns = Transpose <perm = [0, 2, 1]> (rows_of_k)"
    yield _split("columns", 1, [f"columns_{h}" for h in heads])
    yield _split("rows_of_v", 2, [f"values_{h}" for h in heads])
    yield _split("parted", 1, [f"parted_{p}" for p in parts])
    if masked:
        yield "nothing = Constant <value_float = 0.0> ()"
        yield "far = Constant <value_float = -30000.0> ()"  # fp16 holds it; its exponential is zero
        yield "unseen = Where (seen, nothing, far)"
        yield "mask = CastLike (unseen, q)"
    for p in parts:
        yield f"part_{p} = Squeeze (parted_{p}, of_parts)"
        yield _split(f"part_{p}", 2, [f"queries_{p}_{h}" for h in heads])
        for h in heads:
            of = f"{p}_{h}"
            yield f"product_{of} = MatMul (queries_{of}, columns_{h})"
            scores = f"product_{of}"
            if masked:
                scores = f"scores_{of}"
                yield f"{scores} = Add (product_{of}, mask)"
            yield f"shares_{of} = Softmax <axis = -1> ({scores})"
            yield f"seen_{of} = MatMul (shares_{of}, values_{h})"
        yield f"made_{p} = Concat <axis = 2> ({', '.join(f'seen_{p}_{h}' for h in heads)})"
    yield f"made = Concat <axis = 1> ({', '.join(f'made_{p}' for p in parts)})"
    yield "out = Reshape (made, apart)"


def _split(what: str, axis: int, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} = Identity ({what})"
    return f"{', '.join(names)} = Split <axis = {axis}, num_outputs = {len(names)}> ({what})"

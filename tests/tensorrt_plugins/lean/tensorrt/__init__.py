"""`tensorrt` made of tensorrt-lean: its plugin registry and framework, without a builder.

tensorrt-lean holds the framework for Python plugins file for file as full TensorRT does. What it
lacks are the builder's classes for symbolic sizes and tensor descriptions; small ones stand in.
"""

import enum
import operator
from pathlib import Path

import tensorrt_lean
from tensorrt_lean import *  # noqa: F403
from tensorrt_lean import DataType, DimensionOperation, __version__  # noqa: F401

# Makes `tensorrt.plugin` the framework.
__path__.append(  # noqa: F405
    str(Path(tensorrt_lean.__file__).parents[1] / "tensorrt_lean_bindings")
)

float16, float32 = DataType.HALF, DataType.FLOAT


class TensorFormat(enum.IntEnum):
    LINEAR = 0
    CHW2 = 1


class ITensor:
    pass


_OPERATIONS = {
    DimensionOperation.SUM: operator.add,
    DimensionOperation.SUB: operator.sub,
    DimensionOperation.PROD: operator.mul,
    DimensionOperation.MAX: max,
    DimensionOperation.MIN: min,
    DimensionOperation.FLOOR_DIV: operator.floordiv,
    DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
}


class IDimensionExpr:
    """A number, an axis of an input (a pair), or an operation on two of these."""

    def __init__(self, value, left=None, right=None):
        self.value, self.left, self.right = value, left, right

    def is_constant(self):
        if self.left is None:
            return isinstance(self.value, int)
        return self.left.is_constant() and self.right.is_constant()

    def get_constant_value(self):
        return self.evaluate({})

    def is_size_tensor(self):
        return False

    def evaluate(self, sizes):
        """The value, given `sizes` {(input, axis): size}."""
        if self.left is not None:
            left, right = self.left.evaluate(sizes), self.right.evaluate(sizes)
            return _OPERATIONS[self.value](left, right)
        return self.value if isinstance(self.value, int) else sizes[self.value]


class IExprBuilder:
    def constant(self, value):
        return IDimensionExpr(int(value))

    def operation(self, operation, left, right):
        return IDimensionExpr(operation, left, right)


class DimsExprs(list):
    def __init__(self, of):
        super().__init__([None] * of if isinstance(of, int) else of)


class ISymExpr:
    pass


class PluginTensorDesc:
    def __init__(self, dims=(), type=None):  # noqa: A002
        self.dims, self.type, self.format, self.scale = dims, type, TensorFormat.LINEAR, 1.0


class DynamicPluginTensorDesc:
    def __init__(self, desc, least, best, most):
        self.desc, self.min, self.opt, self.max = desc, least, best, most

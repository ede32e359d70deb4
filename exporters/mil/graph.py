"""A Core ML program as it was written: blocks of operations over named values, and constants that lie on disk until used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Value = Tensor | str


class Storage(NamedTuple):
    """How a MIL type lies on disk, and in which torch type this evaluator computes with it."""

    on_disk: np.dtype
    bits: int
    computed: torch.dtype

    @property
    def packed(self) -> bool:
        """Whether several values share a byte."""
        return self.bits < 8


# By MIL.proto's names of its DataType. Half precision is computed in float32: rounding it is the evaluator's, once an
# operation. Small integers keep their width; NumPy's uint16 and uint32 become signed types that torch computes with.
STORAGE = {
    "BOOL": Storage(np.dtype(np.bool_), 8, torch.bool),
    "FLOAT16": Storage(np.dtype(np.float16), 16, torch.float32),
    "FLOAT32": Storage(np.dtype(np.float32), 32, torch.float32),
    "INT4": Storage(np.dtype(np.int8), 4, torch.int8),
    "INT8": Storage(np.dtype(np.int8), 8, torch.int8),
    "INT16": Storage(np.dtype(np.int16), 16, torch.int16),
    "INT32": Storage(np.dtype(np.int32), 32, torch.int32),
    "INT64": Storage(np.dtype(np.int64), 64, torch.int64),
    "UINT1": Storage(np.dtype(np.uint8), 1, torch.uint8),
    "UINT2": Storage(np.dtype(np.uint8), 2, torch.uint8),
    "UINT3": Storage(np.dtype(np.uint8), 3, torch.uint8),
    "UINT4": Storage(np.dtype(np.uint8), 4, torch.uint8),
    "UINT6": Storage(np.dtype(np.uint8), 6, torch.uint8),
    "UINT8": Storage(np.dtype(np.uint8), 8, torch.uint8),
    "UINT16": Storage(np.dtype(np.uint16), 16, torch.int32),
    "UINT32": Storage(np.dtype(np.uint32), 32, torch.int64),
}


@dataclass(frozen=True)
class TensorType:
    """MIL's name of a dtype, and the shape with None for a dimension that only a run knows."""

    dtype: str
    shape: tuple[int | None, ...]

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is what was declared."""
        return len(shape) == len(self.shape) and all(
            declared in (None, size) for declared, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.dtype.lower()}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Constant:
    """A value in the package, read when it is used and not kept: a model's weights are never in memory all at once."""

    type: TensorType
    read: Callable[[], Value]


@dataclass(frozen=True)
class Result:
    """A value that an operation makes: its name and what the package declares it to be."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Operation:
    """One step. An argument is one value or several, each by name or a constant written at the spot."""

    type: str
    arguments: Mapping[str, tuple[str | Constant, ...]]
    results: tuple[Result, ...]
    blocks: tuple[Block, ...] = ()

    @property
    def name(self) -> str:
        """The first result's name, by which tools show an operation."""
        return self.results[0].name if self.results else "(without a result)"

    def names(self) -> set[str]:
        """Every value that it needs, those of its blocks included."""
        own = {item for items in self.arguments.values() for item in items if isinstance(item, str)}
        return own.union(*(block.names() for block in self.blocks))


@dataclass(frozen=True)
class Block:
    """Steps in order, with what goes in and out. `compressed` holds the operations that unpack weights, by the names of
    their results: each is run when, and as often as, a step asks for it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]
    compressed: Mapping[str, Operation]
    operations: tuple[Operation, ...]

    def names(self) -> set[str]:
        """Every value that its steps and outputs mention."""
        return set(self.outputs).union(*(operation.names() for operation in self.operations))

    def last_uses(self) -> list[list[str]]:
        """For each step, the values that nothing after it needs, its own results included."""
        needed = set(self.outputs)
        uses = []
        for operation in reversed(self.operations):
            touched = operation.names() | {result.name for result in operation.results}
            uses.append(sorted(touched - needed))
            needed |= touched
        return uses[::-1]

    def walk(self) -> list[Operation]:
        """Every operation in it and in the blocks inside, those that unpack weights first."""
        found = list({id(op): op for op in self.compressed.values()}.values())
        for operation in self.operations:
            found += [operation, *(inner for block in operation.blocks for inner in block.walk())]
        return found

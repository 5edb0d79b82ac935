"""What one training step asks of a computer: operations, bytes, and the blocks of K-FAC."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

__all__ = [
    "Block",
    "Operation",
    "Workload",
    "counted",
    "effective_size",
    "total_bytes",
    "total_flops",
]

#: What operations are, for which machines have rates.
KINDS = ("gemm", "memory", "inverse", "eigen")
#: Operations by n³: n³/3 of a Cholesky factorisation and 2n³/3 of the inverse that is made of it;
#: 9n³ of a symmetric eigendecomposition (Golub & Van Loan, Matrix Computations 8.3).
WORK = {"inverse": 1, "eigen": 9}
PHASES = ("forward", "backward", "factors", "inversion", "program", "apply", "update")


@dataclass(frozen=True)
class Operation:
    """One kernel of a step.

    Attributes
    ----------
    kind : "gemm", "memory", "inverse" or "eigen"
        A product of matrices, such as a convolution is too; what is limited by memory; the
        inverse, or the eigendecomposition, of a symmetric positive definite matrix.
    phase : str
        Of the step, one of `PHASES`; "program" is what the host does for a unit.
    m, k, n : int
        Of `blocks` independent products (m, k) x (k, n), or of matrices (n, n); 0 elsewhere.
    blocks : int
        1 but for what is batched.
    bytes : int
        Read and written.
    count : int
        How often it happens in a step.
    name : str
        Such as "aten.addmm".
    double : bool
        Whether it is done in float64.
    """

    kind: str
    phase: str
    m: int = 0
    k: int = 0
    n: int = 0
    blocks: int = 1
    bytes: int = 0
    count: int = 1
    name: str = ""
    double: bool = False

    def __post_init__(self) -> None:
        for field, legal in (("kind", KINDS), ("phase", PHASES)):
            if getattr(self, field) not in legal:
                raise ValueError(
                    f"{field} = {getattr(self, field)!r} is unknown; legal: {', '.join(legal)}"
                )

    @classmethod
    def product(
        cls,
        phase: str,
        m: int,
        k: int,
        n: int,
        blocks: int = 1,
        *,
        count: int = 1,
        name: str = "",
        element_bytes: int = 4,
    ) -> Operation:
        """`blocks` products (m, k) x (k, n), each matrix read or written once."""
        moved = element_bytes * blocks * (m * k + k * n + m * n)
        return cls("gemm", phase, m, k, n, blocks, moved, count, name)

    @property
    def flops(self) -> int:
        """Multiplications and additions of one such kernel, as LAPACK's users count them."""
        if self.kind in WORK:
            return WORK[self.kind] * self.blocks * self.n**3
        return 2 * self.blocks * self.m * self.k * self.n


@dataclass(frozen=True)
class Block:
    """The curvature A ⊗ G of one layer.

    Attributes
    ----------
    name : str
        Of the layer.
    inputs, outputs : int
        Rows of A, the bias's included, and of G.
    rows : int
        Vectors a step of which the moments are made: examples times positions.
    diagonal_inputs, diagonal_outputs : bool
        Whether the factor is a diagonal, which costs nothing to invert.
    blocks : int
        Independent pairs of factors of these sizes, such as a grouped convolution has.
    shared : str
        Layers with equal inputs, such as query, key and value, have the same name here; "" alone.
    patch : int
        Positions of a convolution's window, all of which are in one vector; 1 elsewhere.
    bias : bool
        Whether vectors are extended by a 1.
    """

    name: str
    inputs: int
    outputs: int
    rows: int
    diagonal_inputs: bool = False
    diagonal_outputs: bool = False
    blocks: int = 1
    shared: str = ""
    patch: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        for field in ("inputs", "outputs", "rows", "blocks", "patch"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} = {value!r} of block {self.name!r}; legal: 1 or more")

    @property
    def dense(self) -> tuple[tuple[int, int], ...]:
        """Rows of each dense factor, and how many columns the gradient has for it."""
        factors = []
        if not self.diagonal_outputs:
            factors.append((self.outputs, self.inputs))
        if not self.diagonal_inputs:
            factors.append((self.inputs, self.outputs))
        return tuple(factors)


@dataclass(frozen=True)
class Workload:
    """One training step of a network.

    Attributes
    ----------
    name : str
    batch : int
        Examples a step, on one machine.
    parameters : int
        Trained numbers.
    operations : tuple of Operation
        Forward and backward pass.
    blocks : tuple of Block
        What K-FAC covers by Kronecker factors.
    source : str
        Where shapes and batch come from.
    element_bytes : int
        Bytes of a number.
    uncovered : tuple of str
        Parameters that keep their plain gradients, and why.
    diagonal : int
        Outputs of layers with diagonal curvature, such as norms, in all examples.
    """

    name: str
    batch: int
    parameters: int
    operations: tuple[Operation, ...]
    blocks: tuple[Block, ...]
    source: str
    element_bytes: int = 4
    uncovered: tuple[str, ...] = ()
    diagonal: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch = {self.batch}; legal: 1 or more")
        if not self.blocks:
            raise ValueError(f"workload {self.name!r} has no block that K-FAC covers")

    @property
    def largest(self) -> int:
        """Rows of the largest dense factor."""
        return max((n for block in self.blocks for n, _ in block.dense), default=0)

    @property
    def flops(self) -> int:
        """Of forward and backward pass."""
        return sum(each.flops * each.count for each in self.operations)

    @cached_property
    def kinds(self) -> tuple[tuple[Block, int], ...]:
        """Blocks that are alike but for their names, and how many there are."""
        counts: dict[Block, int] = {}
        for block in self.blocks:
            alike = replace(block, name="", shared="")
            counts[alike] = counts.get(alike, 0) + 1
        return tuple(counts.items())

    def sizes(self) -> dict[int, int]:
        """Dense factors by their rows: how many there are."""
        found: dict[int, int] = {}
        for block in self.blocks:
            for rows, _ in block.dense:
                found[rows] = found.get(rows, 0) + block.blocks
        return dict(sorted(found.items()))

    def merged(self) -> Workload:
        """The same with equal operations counted together."""
        return replace(self, operations=counted(self.operations))


def counted(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """Equal operations counted together."""
    counts: dict[Operation, int] = {}
    for each in operations:
        alike = replace(each, count=1)
        counts[alike] = counts.get(alike, 0) + each.count
    return tuple(replace(each, count=count) for each, count in counts.items())


def effective_size(m: int, k: int, n: int) -> float:
    """Of a product: the side of the cube with as many multiplications."""
    return math.exp((math.log(m) + math.log(k) + math.log(n)) / 3.0)


def total_flops(operations: Iterable[Operation]) -> int:
    """Of all of them."""
    return sum(each.flops * each.count for each in operations)


def total_bytes(operations: Iterable[Operation]) -> int:
    """Read and written by all of them."""
    return sum(each.bytes * each.count for each in operations)

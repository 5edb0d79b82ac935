"""A digital computer, as rates that depend on size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from thermokron.host.predict.quantity import Number, Quantity, Values
from thermokron.host.predict.workloads.workload import Operation, effective_size

__all__ = ["Curve", "Machine"]

#: GV100, 500 to 4000 rows: CuPy pull request 2495 has both precisions; CPUs take twice as long.
DOUBLE = Quantity(
    "inverses in float64 over float32", 1.06, 1.4, 2.2, "1", "CuPy pull request 2495, GV100"
)


@dataclass(frozen=True)
class Curve:
    """A rate by size: lines through points, in both logarithms; beyond the ends, as at the ends.

    Attributes
    ----------
    sizes : tuple of float
        Rising.
    rates : tuple of float
        In flop/s, or parts of another rate.
    source : str
        Where they come from.
    """

    sizes: tuple[float, ...]
    rates: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.rates) or not self.sizes:
            raise ValueError(
                f"a curve has {len(self.sizes)} sizes and {len(self.rates)} rates; legal: as many, "
                "one at least"
            )
        if list(self.sizes) != sorted(set(self.sizes)) or min((*self.sizes, *self.rates)) <= 0.0:
            raise ValueError(f"sizes = {self.sizes}, rates = {self.rates}; legal: rising, above 0")

    def __call__(self, size: float) -> float:
        """The rate at a size."""
        logs = np.interp(math.log(size), np.log(self.sizes), np.log(self.rates))
        return math.exp(float(logs))


@dataclass(frozen=True)
class Machine:
    """A digital computer.

    Attributes
    ----------
    name : str
    gemm : Curve
        Products of matrices, by the side of a cube with as many multiplications.
    inverse : Curve
        Inverses of symmetric positive definite matrices by Cholesky factorisation, n³ operations,
        by n.
    eigen : Curve
        Symmetric eigendecompositions, 9n³ operations, by n.
    gemm_trust, inverse_trust, eigen_trust : Quantity
        Factors on these rates, 1 nominal: how far they may be off.
    bandwidth : Quantity
        Of memory, byte/s.
    launch : Quantity
        Seconds that it takes to begin an operation.
    idle_power : Quantity
        W, whatever it does.
    flop_energy, byte_energy : Quantity
        J per operation and per byte of memory.
    source : str
    thin : Curve, optional
        Part of the rate of products that is left where their least side is so long.
    cached : Curve, optional
        Bandwidth over that of large tensors, by bytes read and written, where caches help.
    convolution : Curve, optional
        As `gemm`, of convolutions alone.
    moments : Curve, optional
        Rates of sums of x xᵀ over many vectors, by their length; the other products of K-FAC are
        made by the same code, and taken to be as fast, by the side of a cube.
    tall : Curve, optional
        Part of these rates that is left with so many vectors.
    slower : dict of str to float
        Byte/s at most by names of operations that compute more than they move, such as
        "aten.tanh".
    double : Quantity, optional
        How much longer inverses take in float64.
    asynchronous : bool
        Whether operations are begun while those before them run, as on a GPU: several take as
        long as their launches or their work, whichever is longer, and else both. Batched products
        are as fast as one with as many multiplications then, and else as one of them.
    """

    name: str
    gemm: Curve
    inverse: Curve
    eigen: Curve
    gemm_trust: Quantity
    inverse_trust: Quantity
    eigen_trust: Quantity
    bandwidth: Quantity
    launch: Quantity
    idle_power: Quantity
    flop_energy: Quantity
    byte_energy: Quantity
    source: str
    thin: Curve | None = None
    cached: Curve | None = None
    convolution: Curve | None = None
    moments: Curve | None = None
    tall: Curve | None = None
    slower: Mapping[str, float] = field(default_factory=dict, hash=False)
    double: Quantity = DOUBLE
    asynchronous: bool = False

    def inverse_seconds(
        self, n: int, values: Values, blocks: int = 1, *, double: bool = False
    ) -> Number:
        """Of inverses of `blocks` matrices (n, n), launches included."""
        single = blocks * n**3 / self.inverse(n) / values(self.inverse_trust)
        return single * values(self.double) if double else single

    def eigen_seconds(self, n: int, values: Values, blocks: int = 1) -> Number:
        """Of eigendecompositions of `blocks` matrices (n, n), launches included."""
        return 9.0 * blocks * n**3 / self.eigen(n) / values(self.eigen_trust)

    def seconds(self, operations: Iterable[Operation], values: Values) -> Number:
        """Of operations one after the other."""
        work: Number = 0.0
        launches = 0
        for each in operations:
            if each.kind == "inverse":
                one = self.inverse_seconds(each.n, values, each.blocks, double=each.double)
            elif each.kind == "eigen":
                one = self.eigen_seconds(each.n, values, each.blocks)
            else:
                launches += each.count
                if each.kind == "gemm":
                    shape = each.m, each.k, each.n
                    one = self._product_work(*shape, values, each.blocks, each.name)
                else:
                    one = self._memory_work(each.bytes, values, each.name)
            work = work + each.count * one
        return self._launched(launches, work, values)

    def joules(self, seconds: Number, flops: Number, moved: Number, values: Values) -> Number:
        """Of work that takes so long: idle power, operations, bytes of memory."""
        return (
            seconds * values(self.idle_power)
            + flops * values(self.flop_energy)
            + moved * values(self.byte_energy)
        )

    def _product_work(
        self, m: int, k: int, n: int, values: Values, blocks: int, name: str
    ) -> Number:
        """What there is to multiply, or what there is to move, whichever takes longer."""
        # what runs in parallel anyway does not mind whether it is one product or many
        many = blocks ** (1.0 / 3.0) if self.asynchronous else 1.0
        work = 2.0 * blocks * m * k * n / self._product_rate(m, k, n, name, many)
        moved = 4.0 * blocks * (m * k + k * n + m * n)
        slower: Number = np.maximum(
            work / values(self.gemm_trust), moved / self._bandwidth(moved, values)
        )
        return slower

    def _memory_work(self, moved: float, values: Values, name: str) -> Number:
        work = moved / self._bandwidth(moved, values)
        if name in self.slower:
            work = np.maximum(work, moved / self.slower[name])
        return work

    def _product_rate(self, m: int, k: int, n: int, name: str, many: float) -> float:
        if self.convolution is not None and "convolution" in name:
            return self.convolution(effective_size(m, k, n))
        thin = 1.0 if self.thin is None else self.thin(min(m, k, n))
        if self.moments is not None and name == "moments":
            return self.moments(m) * (1.0 if self.tall is None else self.tall(k))
        if self.moments is not None and name == "precondition":
            return self.moments(effective_size(m, k, n)) * thin
        return self.gemm(many * effective_size(m, k, n)) * thin

    def _launched(self, launches: int, work: Number, values: Values) -> Number:
        begin = launches * values(self.launch)
        return np.maximum(begin, work) if self.asynchronous else begin + work

    def _bandwidth(self, moved: float, values: Values) -> Number:
        return values(self.bandwidth) * (self.cached(moved) if self.cached and moved else 1.0)

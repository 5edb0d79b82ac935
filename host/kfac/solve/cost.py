"""What a step costs: the host's operations, counted where they happen, and the unit's time."""

from __future__ import annotations

from dataclasses import dataclass

from thermokron.host.linalg import Account

__all__ = ["Cost"]


@dataclass
class Cost(Account):
    """The account of one step.

    Attributes
    ----------
    inversions : int
        Factors inverted, decomposed, or solved with.

    The others are those of `thermokron.host.linalg.Result`; operations are counted as there:
    additions, multiplications, divisions and square roots, 1 each.
    """

    inversions: int = 0

    def product(self, left: int, inner: int, right: int, blocks: int = 1) -> None:
        """Enter a product (left, inner) x (inner, right), or several."""
        self.flops(2 * blocks * left * inner * right)

    def cholesky(self, size: int, blocks: int = 1, *, inverse: bool = False) -> None:
        """Enter a Cholesky factorisation, n³/3, and the inverse that is made of it, 2n³/3 more."""
        self.flops(blocks * size**3 * (1.0 if inverse else 1.0 / 3.0))

    def eigen(self, size: int, blocks: int = 1) -> None:
        """Enter a symmetric eigendecomposition, 9n³ (Golub & Van Loan, Matrix Computations 8.3)."""
        self.flops(9 * blocks * size**3)

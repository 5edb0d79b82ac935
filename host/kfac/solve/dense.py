"""Cholesky factors and inverses on the host, in the precision that they need.

Factors of float32 networks are averages of float32 products, so that their own rounding is of the
order of ε‖M‖ already. An inversion in float32 is the exact inverse of a matrix that differs from
M by no more than that, and costs half of one in float64. What it does to the inverse depends on
the condition number, of which damping gives a bound before anything is factorised: the least
eigenvalue is at least the damping's share, the largest at most the Frobenius norm. Where that
bound times ε is below `TOLERANCE`, float32 is used; elsewhere float64.

The inverse's relative error in the spectral norm is then below `TOLERANCE` by experience, not by
proof: the bound on the error of a Cholesky factorisation grows with the size (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, theorem 10.3), while rounding errors do not all point the
same way. Measured up to size 1024, at κ ε = 1e-3, it is about a quarter of κ ε or less for moments
of random rows, and two thirds for a single row of nearly equal entries; see the tests.
"""

from __future__ import annotations

import torch

__all__ = [
    "TOLERANCE",
    "cholesky",
    "definite_cholesky",
    "float32_suffices",
    "solved",
]

EPS = torch.finfo(torch.float32).eps

#: κ ε up to which an inverse is made in float32; its relative error stayed below, see above.
TOLERANCE = 1e-3


def float32_suffices(kappa: float) -> bool:
    """Whether a float32 matrix of condition number `kappa` at most is inverted in float32."""
    return kappa * EPS <= TOLERANCE


def cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """L of M = L Lᵀ, of which the lower triangle is read.

    Columns whose distance in memory is a large power of two fall on the same lines of the cache,
    which costs LAPACK up to half of its speed: such a matrix is factorised with one more row.

    Raises
    ------
    torch.linalg.LinAlgError
        If the matrix is not positive definite.
    """
    size = matrix.shape[-1]
    if matrix.ndim == 2 and size % 128 == 0 and matrix.device.type == "cpu":
        wider = torch.nn.functional.pad(matrix, (0, 1, 0, 1))
        wider[size, size] = 1.0
        return cholesky(wider)[:size, :size]
    factor: torch.Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    # a plain number is looked at faster than torch's own check looks at its tensor
    if (info if info.ndim == 0 else info.any()).item():
        raise torch.linalg.LinAlgError("the matrix is not positive definite")  # type: ignore[attr-defined]
    return factor


def definite_cholesky(
    matrix: torch.Tensor, least: torch.Tensor | float
) -> tuple[torch.Tensor, int]:
    """L of M = L Lᵀ, and how many matrices had lost their definiteness to rounding.

    Second moments in float32 are semidefinite up to ε‖M‖. Where that is more than the damping, as
    for inputs of very different scales, eigenvalues below what the damping makes their least are
    raised to it, in float64; L is then the triangle of a QR factorisation, which stands any
    condition number.

    Parameters
    ----------
    matrix : (n, n) or (blocks, n, n) tensor
        Symmetric.
    least : float or (blocks,) tensor
        What the least eigenvalue is in exact arithmetic, above 0.
    """
    try:
        return cholesky(matrix), 0
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if matrix.ndim == 2:
            return _lifted(matrix, float(least)), 1
    bounds = torch.as_tensor(least).expand(len(matrix)).tolist()
    found = [definite_cholesky(m, low) for m, low in zip(matrix, bounds, strict=True)]
    return torch.stack([factor.double() for factor, _ in found]), sum(n for _, n in found)


def _lifted(matrix: torch.Tensor, least: float) -> torch.Tensor:
    """L of the matrix with eigenvalues of at least `least`."""
    values, vectors = torch.linalg.eigh(matrix.double())
    triangle = torch.linalg.qr(values.clamp(min=least).sqrt()[:, None] * vectors.mT).R
    factor: torch.Tensor = triangle.mT * triangle.diagonal().sign()
    return factor


def solved(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """X of L Lᵀ X = B."""
    solution: torch.Tensor = torch.cholesky_solve(right, factor)
    return solution

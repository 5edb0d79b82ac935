"""Signed matrices on arrays whose couplings have one sign."""

from __future__ import annotations

from typing import Any

import numpy as np

from thermokron.host.linalg.arrays import symmetric_matrix

__all__ = ["positive"]


def positive(M: Any) -> Any:
    """A symmetric positive definite matrix of twice the size and no negative entry that acts as M.

    With M = P - N, where P and N hold the entries of either sign, it is

        [[P + D, N + D],
         [N + D, P + D]],    D = diag(N 1), the sums of N's rows.

    On pairs (x, -x) it is M: D falls out. On pairs (x, x) it is P + N + 2 D = M + 2 (N + D), and
    N + D is diagonally dominant, so it is no less than M: whatever M's smallest eigenvalue, that
    of the whole is the same, and so are its slowest mode, settling and interval.

    Right-hand sides are programmed as (b, -b). Of what comes back as (u, v), (u - v)/2 is the
    solution, with half the noise variance of an array that has M itself; of an inverse in blocks
    Z_ij, (Z_11 - Z_12 - Z_21 + Z_22)/2 is M's.

    It costs twice the cells and four times the couplings, and range: the diagonal has grown by the
    sums of N's rows. Couplings that differ between twins mix the pairs.

    Parameters
    ----------
    M : (n, n) array or tensor
        Symmetric, positive definite.

    Returns
    -------
    (2n, 2n), of M's kind
        For `program`, on a unit of 2n cells.

    Raises
    ------
    ValueError
        If M is not square or not symmetric, or holds NaN or inf.
    """
    matrix, restore = symmetric_matrix(M)
    negative = np.maximum(-matrix, 0.0)
    diagonal = np.diag(negative.sum(axis=1))
    own, other = np.maximum(matrix, 0.0) + diagonal, negative + diagonal
    return restore(np.block([[own, other], [other, own]]))

"""The border: NumPy arrays and torch tensors in, the same kind out, wrong input named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.refusals import NotPositiveDefinite
from thermokron.model import UnitSpec
from thermokron.model.checks import check_integer, check_real
from thermokron.model.memory import transposed

__all__ = [
    "Floats",
    "Kind",
    "Restore",
    "RightHandSides",
    "check_lambda_min",
    "check_reading",
    "check_second_moments",
    "entries",
    "floats",
    "library",
    "right_hand_sides",
    "symmetric_matrix",
    "unchecked",
    "vector",
]

#: Asymmetry that is forgiven in any dtype: a double may have been computed in single precision.
ROUNDING = 1e-5

#: Of powers of two that neither overflow nor are denormal.
MOST_POWER = 1000

Floats = NDArray[np.float64]
Restore = Callable[[Floats], Any]


class _LikeNumpy:
    """Gives results the dtype of the input. (Classes, not closures, so that results pickle.)"""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def __call__(self, array: Floats) -> Any:
        return array.astype(self.dtype, copy=False)


class _LikeTensor:
    """Gives results the dtype and device of the input tensor."""

    def __init__(self, dtype: Any, device: Any) -> None:
        self.dtype, self.device = dtype, device

    def __call__(self, array: Floats) -> Any:
        import torch

        return torch.from_numpy(array).to(self.device, self.dtype)


def floats(name: str, value: Any) -> tuple[Floats, Restore, float]:
    """`value` in float64, what turns a result into `value`'s kind, and `value`'s precision.

    The precision is the spacing of its dtype at 1. Integers are taken as float64.

    Raises
    ------
    ValueError
        If `value` is complex or not numeric, or holds NaN or inf.
    """
    # whoever passes a tensor has imported torch; nobody else should have to wait for it
    torch = sys.modules.get("torch")
    restore: Restore
    if torch is not None and isinstance(value, torch.Tensor):
        if value.is_complex():
            raise ValueError(f"{name} is complex ({value.dtype}); a real tensor is needed")
        dtype = value.dtype if value.dtype.is_floating_point else torch.float64
        restore = _LikeTensor(dtype, value.device)
        precision = float(torch.finfo(dtype).eps)
        array = value.detach().to("cpu", torch.float64, copy=True).numpy()
    else:
        given = np.asarray(value)
        if given.dtype.kind not in "fiu":
            raise ValueError(f"{name} has dtype {given.dtype}; real numbers are needed")
        kind = given.dtype if given.dtype.kind == "f" else np.dtype(np.float64)
        restore = _LikeNumpy(kind)
        precision = float(np.finfo(kind).eps)
        array = given.astype(np.float64)
    if not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "inf"
        raise ValueError(f"{name} holds {bad}; every entry must be finite")
    return array, restore, precision


def unchecked(value: Any, dtype: np.dtype[Any] | None = None) -> tuple[Floats, Restore]:
    """`value` as it is, or in `dtype`, not copied if that can be helped, and what restores it.

    In single or double precision; anything else becomes double.
    """
    torch = sys.modules.get("torch")
    restore: Restore
    if torch is not None and isinstance(value, torch.Tensor):
        restore = _LikeTensor(value.dtype, value.device)
        plain = value.detach().cpu()
        if plain.dtype not in (torch.float32, torch.float64):
            plain = plain.to(torch.float32)
        array = plain.numpy()
    else:
        array = np.asarray(value)
        restore = _LikeNumpy(array.dtype if array.dtype.kind == "f" else np.dtype(np.float64))
    if dtype is None:
        dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    return array.astype(dtype, copy=False), restore


def library(value: Any) -> Any:
    """The module that `value` is an array of: torch or NumPy."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(value, torch.Tensor) else np


def entries(matrix: Any) -> Any:
    """A SciPy sparse array or `LinearOperator` as an array, n products of the latter; else as is.

    An array's couplings are entries: there is no way to program one by products alone.
    """
    if hasattr(matrix, "toarray"):
        return matrix.toarray()
    if hasattr(matrix, "matmat"):
        return matrix.matmat(np.eye(matrix.shape[1]))
    return matrix


def symmetric_matrix(value: Any) -> tuple[Floats, Restore]:
    """M as (n, n) float64, exactly symmetric, and what turns a result into M's kind.

    Refuses what can be seen in O(n²) not to be symmetric positive definite. Asymmetry below the
    square root of the dtype's precision, or `ROUNDING`, relative to √(M_ii M_jj), is taken for
    rounding.

    Raises
    ------
    ValueError
        If M is not square, not symmetric, or not finite.
    NotPositiveDefinite
        If it is not positive definite.
    """
    matrix, restore, precision = floats("M", value)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"M has shape {matrix.shape}; it must be square, (n, n)")
    diagonal = matrix.diagonal()
    if not (diagonal > 0.0).all():
        i = int(np.argmin(diagonal))
        raise NotPositiveDefinite(f"M is not positive definite: M[{i}, {i}] = {diagonal[i]:g}")
    scale = np.sqrt(diagonal)
    limit = scale[:, None] * scale
    skew = np.abs(matrix - matrix.T)
    if (skew > max(np.sqrt(precision), ROUNDING) * limit).any():
        i, j = divmod(int(np.argmax(skew / limit)), len(matrix))
        raise ValueError(
            f"M is not symmetric: M[{i}, {j}] = {matrix[i, j]:g}, M[{j}, {i}] = {matrix[j, i]:g}"
        )
    matrix = 0.5 * (matrix + matrix.T)
    beyond = np.abs(matrix) >= limit
    if np.count_nonzero(beyond) > np.count_nonzero(beyond.diagonal()):
        np.fill_diagonal(beyond, False)
        i, j = divmod(int(np.argmax(beyond)), len(matrix))
        raise NotPositiveDefinite(
            f"M is not positive definite: |M[{i}, {j}]| = {abs(matrix[i, j]):g} is not below "
            f"sqrt(M[{i}, {i}] M[{j}, {j}]) = {limit[i, j]:g}"
        )
    return matrix, restore


def check_lambda_min(lambda_min: Any, diagonal: Floats) -> float | None:
    """`lambda_min` as a float; `ValueError` unless within (0, min M_ii], where λ_min must lie."""
    if lambda_min is None:
        return None
    largest = float(diagonal.min())
    value = float(lambda_min)
    # damping is often added in single precision, so the bound may round above the diagonal
    if not 0.0 < value <= largest * (1 + 1e-5):
        raise ValueError(
            f"lambda_min = {value:g} is out of range; legal: above 0 to M's smallest diagonal "
            f"entry, {largest:g}, below which its smallest eigenvalue lies"
        )
    return min(value, largest)


@dataclass(frozen=True)
class RightHandSides:
    """Right-hand sides of linear systems, as they were given and as they are worked with.

    Attributes
    ----------
    columns : (n, k) float
        B.
    sizes : (k, 1) float
        A power of two for each, so that squares of what is divided by it are numbers.
    shape : tuple of int
        Of B.
    restore : callable
        What turns a result into B's kind.
    """

    columns: Floats
    sizes: Floats
    shape: tuple[int, ...]
    restore: Restore

    def like_given(self, columns: Floats) -> Floats:
        """Columns (n, k) in the shape of B."""
        *batch, n, k = self.shape if len(self.shape) > 1 else (*self.shape, 1)
        whole: Floats = np.moveaxis(columns.reshape(n, *batch, k), 0, -2)
        return whole.reshape(self.shape)

    def rows(self, scale: Floats) -> Floats:
        """A copy as rows (k, n), over their sizes, entries times their `scale` (n,)."""
        torch = sys.modules.get("torch")
        if torch is None or not self.columns.flags.writeable:
            rows = transposed(self.columns)
        else:  # torch's copy goes by blocks, which takes two thirds of the time
            turned = torch.from_numpy(self.columns).t()
            rows = turned.clone(memory_format=torch.contiguous_format).numpy()
        if self.sizes.size > 1 or self.sizes[0] != 1.0:
            rows /= self.sizes
        rows *= scale
        return rows


def right_hand_sides(value: Any, n: int, check: bool, like: Floats) -> RightHandSides:
    """B, (n,) or (..., n, k), in the dtype of `like`, the scale (n,) that it is divided by.

    Without `check` entries are not looked at, sizes are 1, and columns may be the caller's own
    memory.

    Raises
    ------
    ValueError
        If the shape does not fit n, or an entry is not finite or not real.
    """
    array, restore = _checked("B", value, like.dtype) if check else unchecked(value, like.dtype)
    if array.ndim == 0 or array.shape[-2:][0] != n or array.size == 0:
        raise ValueError(
            f"B has shape {array.shape}; M, {(n, n)}, wants ({n},), ({n}, k) or (..., {n}, k)"
        )
    columns = array if array.ndim == 1 else np.moveaxis(array, -2, 0)
    columns = columns.reshape(n, -1)
    sizes = np.ones((1, 1), like.dtype)
    if check:
        # what is worked with is B over the scale, of which either may be near the end of numbers
        whole = np.frexp(like.max())[1]
        largest = np.abs(columns).max(axis=0)[:, None]
        power = np.frexp(np.where(largest > 0.0, largest, 1.0))[1] - 1.0
        sizes = np.exp2(np.clip(power - whole, -MOST_POWER, MOST_POWER))
    return RightHandSides(columns, sizes, array.shape, restore)


def vector(value: Any, n: int, check: bool) -> Floats:
    """b as float64 (n,); errors as of `right_hand_sides`."""
    double = np.dtype(np.float64)
    array, _ = _checked("b", value, double) if check else unchecked(value, double)
    if array.shape != (n,):
        raise ValueError(f"b has shape {array.shape}; legal: ({n},)")
    return array


def _checked(name: str, value: Any, dtype: np.dtype[Any]) -> tuple[Floats, Restore]:
    array, restore, _ = floats(name, value)
    return array.astype(dtype, copy=False), restore


@dataclass(frozen=True)
class Kind:
    """What a matrix was given as: how its results are returned, and whether input is looked at."""

    restore: Restore
    check: bool


def check_reading(samples: Any, interval: Any, least: int, most: int = 2**40) -> None:
    """Refuse what no run can be asked for; beyond `MAX_SAMPLES`, several runs of a covariance."""
    check_integer("samples", samples, least, most)
    check_real("interval", interval, 1e-3, 1e3)


def check_second_moments(spec: UnitSpec, given: str) -> None:
    """Refuse what needs a covariance, here called `given`, on a unit that reads means alone."""
    if not spec.second_moments:
        raise ValueError(
            f"second_moments = False in the unit's spec, so it cannot make {given}; legal: a unit "
            "with product accumulators, or solving"
        )

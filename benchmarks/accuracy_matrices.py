"""The matrices of accuracy.py: random ones, hard ones with names, and a training's factors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

__all__ = ["MATRICES", "spd"]


def spd(n: int, kappa: float, seed: int) -> np.ndarray:
    """A random matrix with eigenvalues from 1/κ to 1."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def laplacian(n: int, shift: float) -> np.ndarray:
    """Of a path, second differences, with something on the diagonal."""
    return scipy.linalg.toeplitz([2.0 + shift, -1.0, *[0.0] * (n - 2)])


def hilbert(n: int, shift: float) -> np.ndarray:
    """1/(i + j - 1), with something on the diagonal."""
    return scipy.linalg.hilbert(n) + shift * np.eye(n)


def covariance(n: int, vectors: int) -> np.ndarray:
    """Of hardly more vectors than entries, so that it is nearly singular."""
    rows = np.random.default_rng(0).standard_normal((vectors, n))
    return rows.T @ rows / vectors


def factor(index: int) -> np.ndarray:
    """A damped Kronecker factor of a 64-32-10 network after fifty steps of K-FAC.

    Even indices are those of inputs, odd ones those of gradients, layer by layer.
    """
    import torch

    from thermokron.host.kfac import KFAC, Inverse

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    x, y = torch.randn(512, 64) @ torch.randn(64, 64) / 8.0, torch.randint(10, (512,))
    seen: list[torch.Tensor] = []

    def inverse(matrix: torch.Tensor, lambda_min: float) -> Inverse:
        seen.append(matrix.clone())
        return Inverse(torch.linalg.inv(matrix))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with KFAC(model, lr=optimizer, inverse=inverse, damping=0.03) as kfac:
        for _ in range(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            kfac.step()
            optimizer.step()
    return seen[-4:][index].double().numpy()


#: By name, what makes them.
MATRICES: dict[str, Callable[[], np.ndarray]] = {
    "Laplacian of a path, shift 0.1": lambda: laplacian(64, 0.1),
    "Laplacian of a path, shift 0.01": lambda: laplacian(64, 0.01),
    "Hilbert's, shift 0.01": lambda: hilbert(16, 0.01),
    "covariance of 64 rows, 70 vectors": lambda: covariance(64, 70),
    "K-FAC, inputs of a layer": lambda: factor(0),
    "K-FAC, gradients of a layer": lambda: factor(1),
}

"""K-FAC whose inverses come from a unit, against the same with exact inverses."""

from __future__ import annotations

import math

import pytest
import torch

from thermokron.host.kfac import KFAC, Thermodynamic, exact
from thermokron.model import NumericUnit, UnitSpec


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))


def preconditioned(unit: NumericUnit | None, samples: int = 1000):
    """All preconditioned gradients after one step, in one vector, and the step's metrics."""
    model = network()
    kfac = KFAC(model, unit, lr=0.1, damping=0.05, method="inverse", samples=samples, kl_clip=None)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 9, generator=generator), torch.arange(64) % 4
    torch.nn.functional.cross_entropy(model(x), y).backward()
    metrics = kfac.step()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]), metrics


@pytest.mark.parametrize("samples", [1000, 100_000])
def test_a_step_on_the_unit_is_the_exact_step_within_its_error(samples: int) -> None:
    """The error of G⁻¹ V A⁻¹ is at most the sum of the inverses' relative errors, or nearly.

    A covariance from N samples has a relative spectral error of about 2√(n/N) + n/N; two of
    them with n ≤ 10 bound the step's, and the couplings' rounding adds a little. The bound is
    several times the typical error, so that a false alarm is out of the question.
    """
    reference, _ = preconditioned(None)
    wide = UnitSpec(coupling_bits=12)
    update, _ = preconditioned(NumericUnit(wide, seed=3), samples)
    error = (update - reference).norm() / reference.norm()
    assert error < 2 * (2 * math.sqrt(10 / samples) + 10 / samples) + 0.005
    assert error > 0.0


def test_the_metrics_count_what_the_unit_did() -> None:
    spec = UnitSpec(cells=8)
    unit = NumericUnit(spec, seed=3)
    _, metrics = preconditioned(unit, samples=200)
    # factors of 10, 6, 7 and 4 on 8 cells: 2 + 1 + 1 + 1 runs
    assert (metrics.inversions, metrics.runs) == (4, 5)
    least = 5 * 199 * spec.shortest_interval() * spec.clock_s
    assert least < metrics.hardware_seconds < 2 * least
    assert metrics.digital_flops > 0
    _, none = preconditioned(None)
    assert (none.inversions, none.runs, none.hardware_seconds) == (4, 0, 0.0)


def test_the_same_seed_gives_the_same_step() -> None:
    first, _ = preconditioned(NumericUnit(UnitSpec(), seed=5))
    again, _ = preconditioned(NumericUnit(UnitSpec(), seed=5))
    other, _ = preconditioned(NumericUnit(UnitSpec(), seed=6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_failing_unit_leaves_the_gradients_as_they_were() -> None:
    class Dead(RuntimeError):
        pass

    def fail(matrix: torch.Tensor, lambda_min: float):
        if matrix.shape == (4, 4):  # the last of four
            raise Dead
        return exact(matrix, lambda_min)

    model = network()
    kfac = KFAC(model, lr=0.1, damping=0.05, inverse=fail)
    model(torch.randn(8, 9)).square().mean().backward()
    before = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(Dead):
        kfac.step()
    for p, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, gradient)


def test_unit_and_inverse_exclude_each_other_and_repr_names_the_unit() -> None:
    unit = NumericUnit(UnitSpec())
    with pytest.raises(ValueError, match="inverse and unit exclude each other"):
        KFAC(network(), unit, lr=0.1, damping=0.05, inverse=exact)
    text = repr(KFAC(network(), inverse=Thermodynamic(unit, samples=500), lr=0.1, damping=0.05))
    assert "thermodynamic(NumericUnit, 16 cells, 8-bit couplings, 500 samples)" in text

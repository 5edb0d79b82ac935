"""K-FAC whose inverses come from a unit, against the same with exact inverses."""

from __future__ import annotations

import math

import pytest
import torch

from thermokron.host.kfac import KFAC, Thermodynamic, diagonal, exact
from thermokron.host.linalg import inv
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


def test_a_unit_of_means_alone_solves_and_refuses_to_invert() -> None:
    unit = NumericUnit(UnitSpec(second_moments=False), seed=3)
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"second_moments = False in the unit's spec.*'inverse'"):
        KFAC(model, unit, lr=0.1, damping=0.1, method="inverse")
    assert unit.stream == 0
    kfac = KFAC(model, unit, lr=0.1, damping=0.1)
    model(torch.ones(4, 3)).square().mean().backward()
    assert kfac.step().runs > 0


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


def test_a_unit_solves_with_one_reading_if_nothing_else_is_said() -> None:
    unit = NumericUnit(UnitSpec(), seed=3)
    kfac = KFAC(network(), unit, lr=0.1)
    assert (kfac.choices["method"], kfac.inverse.samples, kfac.inverse.settle) == (
        "solve",
        None,
        0.1,
    )
    assert KFAC(network(), lr=0.1).choices["method"] == "inverse"
    assert KFAC(network(), inverse=Thermodynamic(unit), lr=0.1).choices["method"] == "solve"
    assert KFAC(network(), inverse=diagonal, lr=0.1).choices["method"] == "inverse"
    jobs = []
    run = unit.run
    unit.run = lambda job, **options: jobs.append(job) or run(job, **options)
    model = network()
    kfac = KFAC(model, unit, lr=0.1)
    model(torch.randn(8, 9)).square().mean().backward()
    kfac.step()
    assert {(job.samples, job.second_moments) for job in jobs} == {(1, False)}


def test_settling_may_follow_a_schedule_and_is_checked() -> None:
    """Longer settling takes the unit longer; what is illegal is named when it is used."""
    model = network()
    unit = NumericUnit(UnitSpec(tau_s=1e-6), seed=3)
    kfac = KFAC(model, unit, lr=0.1, settle=lambda step: (0.5, 1e-4, "90tau", 3.0)[step])
    seconds = []
    for _ in range(3):
        model(torch.randn(64, 9)).square().mean().backward()
        seconds.append(kfac.step().settle_seconds / kfac.metrics.runs)
    assert seconds[0] < 0.3 * seconds[1]
    with pytest.raises(ValueError, match=r"settle = 3.0 is out of range; legal: between 0 and 1"):
        kfac.step()
    with pytest.raises(ValueError, match="settle = 'long' is no time"):
        KFAC(network(), unit, lr=0.1, settle="long")
    with pytest.raises(ValueError, match="samples = 0 is out of range; legal: 1 or more"):
        KFAC(network(), unit, lr=0.1, samples=0)
    with pytest.raises(ValueError, match="samples = 1 is out of range; legal with method = 'inv"):
        KFAC(network(), unit, lr=0.1, method="inverse", samples=1)


def test_a_column_of_zeros_and_a_layer_without_gradient_are_nothing_to_solve() -> None:
    """Such as behind dead units: the update is zero there, and the others are as they should be."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 5)
    kfac = KFAC(model, NumericUnit(UnitSpec(), seed=3), lr=0.1, damping=0.1, kl_clip=None)
    x = torch.randn(32, 6)
    x[:, 2] = 0.0
    model(x).square().mean().backward()
    kfac.step()
    assert torch.isfinite(model.weight.grad).all()
    model.weight.grad.zero_()
    model.bias.grad.zero_()
    model(torch.zeros(4, 6)).mul(0.0).sum().backward()
    kfac.step()
    assert torch.isfinite(model.weight.grad).all()
    assert not model.weight.grad.any()


def test_sampled_inverses_are_shortened_by_what_sampling_lengthens_a_step() -> None:
    """N/(N+n+1) of `linalg.inv`, for the same noise."""
    matrix = torch.eye(10, dtype=torch.float64) + 0.3
    for samples in (30, 300):
        found = Thermodynamic(NumericUnit(UnitSpec(), seed=5), samples)(matrix, 0.9).value
        plain = inv(NumericUnit(UnitSpec(), seed=5), matrix, samples=samples, lambda_min=0.9).value
        ratio = (found / plain).mean().item()
        assert ratio == pytest.approx(samples / (samples + 11), rel=0.02)
        assert torch.allclose(found, plain * ratio)

"""`inv`: what it returns, how far that is off, and whether it knows."""

import pickle
import re

import numpy as np
import pytest

from thermokron.host.linalg import Clipping, NotPositiveDefinite, covariance, inv, program, solve
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec


def spd(n, kappa, seed=0):
    """A random SPD matrix with eigenvalues from 1 down to 1/kappa, evenly in the logarithm."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def unit(seed=0, physics=None, **fields):
    # 16 coupling bits, so that rounding, which no standard error knows, does not show
    return NumericUnit(UnitSpec(**{"coupling_bits": 16} | fields), physics, seed=seed)


def relative_error(result, M):
    exact = np.linalg.inv(M)
    return np.linalg.norm(result.value - exact) / np.linalg.norm(exact)


def scores(result, M):
    return (result.value - np.linalg.inv(M)) / result.standard_error


def squared_z(result, M):
    return float((scores(result, M) ** 2).mean())


# ---- the value ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 10, 16, 17, 64])
def test_every_size_is_inverted_within_its_standard_error(n):
    # 6.5 sigma: a false alarm in 64² entries has a probability below 1e-6
    M = np.diag(np.linspace(0.01, 3.0, n)) ** 0.5
    M = M @ spd(n, 8) @ M  # badly scaled too
    result = inv(unit(seed=1), M)
    assert result.value.shape == result.standard_error.shape == (n, n)
    assert np.array_equal(result.value, result.value.T)
    assert np.all(np.abs(result.value - np.linalg.inv(M)) < 6.5 * result.standard_error)


def test_a_small_matrix_on_a_large_array_costs_one_run():
    result = inv(unit(cells=32), spd(5, 10))
    assert result.runs == 1
    # 0.062, its logarithm scattered by 0.26 over 200 seeds: 5.3 standard deviations
    assert relative_error(result, spd(5, 10)) < 0.25


def test_error_falls_as_one_over_the_root_of_samples():
    # a squared error is a sum over pairs of modes with variances v = s_k s_l: its relative
    # standard deviation is √(2 Σv²)/Σv = 0.21 here, that of the ratio's logarithm
    # 0.21 √(2/32)/2 = 0.027. A ratio off by 15 % is 5 of these, a false alarm in less than 1e-6
    M = spd(16, 20)
    few, many = (
        np.sqrt(
            np.mean([relative_error(inv(unit(seed=s), M, samples=n), M) ** 2 for s in range(32)])
        )
        for n in (300, 4800)
    )
    assert few / many == pytest.approx(4.0, rel=0.15)


def test_samples_beyond_one_job_are_merged():
    result = inv(unit(cells=2), np.eye(2), samples=2**20 + 1000)
    assert (result.runs, result.samples) == (2, 2**20 + 1000)
    assert relative_error(result, np.eye(2)) < 0.01


def test_schur_blocks_keep_their_accuracy_at_any_condition():
    # full array: √((n+1)/N)·tr/‖·‖_F, 0.16 to 0.22; 16 cells by means: 0.11 at every condition, its
    # logarithm scattered by 6 % at most. A median of three is beyond 0.135, 3.6 of these, if two
    # are: 3p², a false alarm in 1e-7
    for kappa in (30, 100, 300):
        errors = [
            relative_error(inv(unit(seed=s), spd(64, kappa, s)), spd(64, kappa, s))
            for s in range(3)
        ]
        assert np.median(errors) < 0.135
    # by covariance the error of a complement grows with the condition number. Of 500 seeds at
    # most one fell beyond each bound; three of five do in 10p³, a false alarm in 1e-7
    for kappa, low, high in ((10, 0.15, 0.22), (30, 0.2, 0.5), (100, 0.4, np.inf)):
        errors = [
            relative_error(
                inv(unit(seed=s), spd(64, kappa, s), complements="covariance"), spd(64, kappa, s)
            )
            for s in range(5)
        ]
        assert low < np.median(errors) < high


def test_indefinite_complements_are_repaired_and_reported():
    results = [
        inv(unit(seed=s), spd(64, 1000, s), complements="covariance", lambda_min=0.9e-3)
        for s in range(3)
    ]
    assert sum(r.repairs for r in results) > 0
    assert all(np.isfinite(r.value).all() for r in results)


# ---- its standard error -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "kappa", "options"),
    [
        (16, 20, {}),
        (16, 20, {"interval": 0.25}),
        (16, 100, {"samples": 100}),
        (10, 5, {}),
        (40, 5, {"complements": "covariance"}),
        (40, 50, {"complements": "means"}),
    ],
)
def test_standard_error_is_calibrated(n, kappa, options):
    # z² over entries has mean 1, and over the diagonal alone, whose entries vary twice as much;
    # over 40 repetitions its mean is known to `spread`. 5 of these are a false alarm in 1e-6;
    # the rest is for the bounds on correlation, and what is second order
    M = spd(n, kappa, 3)
    # τ so long that the interval, not the accumulator, sets the pace
    z = [scores(inv(unit(seed=s, tau_s=1e-6), M, **options), M) ** 2 for s in range(40)]
    for each, slack in ((np.array([a.mean() for a in z]), 0.12),
                        (np.array([a.diagonal().mean() for a in z]), 0.2)):  # fmt: skip
        spread = each.std() / np.sqrt(len(z))
        assert spread < 0.16  # of 40 among 240 seeds it is from 0.03 to 0.16
        assert abs(each.mean() - 1.0) < slack + 5 * spread


def test_quantisation_of_a_coarse_adc_is_corrected_and_known():
    # 5 bits: q = 1/16, σ from 0.1 to 0.28 of full scale; without Sheppard's correction variances
    # would be 1.3 % too large, 1.3 standard errors. The mean score of a diagonal scatters by 0.27
    # from run to run, so 0.45 for 10 of them, 5 standard deviations, is a false alarm in 1e-6
    M = spd(16, 5, 2)
    results = [inv(unit(seed=s, adc_bits=5), M, samples=20_000) for s in range(10)]
    assert abs(np.mean([scores(r, M).diagonal() for r in results])) < 0.45
    z = np.array([squared_z(r, M) for r in results])
    assert z.mean() < 1.5
    assert np.median([relative_error(r, M) for r in results]) < 0.04


def test_three_bits_are_enough_for_cells_of_like_loudness():
    # q = 1/4, σ from 0.18 to 0.25; scores as above
    M = spd(16, 10, 2)
    results = [inv(unit(seed=s, adc_bits=3), M, samples=5000) for s in range(10)]
    assert abs(np.mean([scores(r, M).diagonal() for r in results])) < 0.45
    assert 0.7 < np.mean([squared_z(r, M) for r in results]) < 1.3
    assert np.median([relative_error(r, M) for r in results]) < 0.08
    assert max(r.reruns for r in results) == 0  # the outermost codes are not all clipped


def test_cells_that_three_bits_do_not_hear_are_no_quieter_than_they_can_be():
    # two coupled cells fluctuate √20 times as far as the others, whose σ is a fifth of a step
    M = np.eye(8)
    M[0, 1] = M[1, 0] = np.sqrt(1 - 1 / 20)
    M[2, 3] = M[3, 2] = 0.5
    results = [inv(unit(seed=s, adc_bits=3), M, samples=5000) for s in range(5)]
    mean = np.mean([r.value for r in results], axis=0)
    assert mean[0, 0] == pytest.approx(20.0, rel=0.05)
    assert mean[4, 4] == pytest.approx(1.0, abs=1e-9)
    assert 1.0 <= mean[2, 2] < 1.05  # 4/3 in truth, and the standard error says so
    assert all(r.standard_error[2, 2] > 1 / 3 for r in results)
    assert np.isfinite(results[0].standard_error).all()


def test_standard_error_knows_what_a_coarse_adc_takes_from_covariances():
    # pairs of cells from loud to quiet; the σ of the quietest is 0.4 ADC steps, and its covariance
    # 20% too small, which would be 12 standard errors if that were not known
    M = np.eye(8)
    for pair, gain in enumerate((24, 4, 2, 1.3)):
        i, j = 2 * pair, 2 * pair + 1
        M[i, j] = M[j, i] = np.sqrt(1 - 1 / gain)
    z = [scores(inv(unit(seed=s, adc_bits=4), M, samples=20_000), M) for s in range(10)]
    # 6 sigma: a false alarm in 640 entries has a probability below 2e-6
    assert np.abs(z).max() < 6.0


def test_offsets_do_no_harm():
    physics = ArrayPhysics(cell_offset=0.05, adc_offset=0.05)
    M = spd(16, 10)
    errors = [relative_error(inv(unit(seed=s, physics=physics), M), M) for s in range(5)]
    # 0.109 ± 0.009: three of five are beyond in 10p³, far below 1e-6
    assert np.median(errors) < 0.15


# ---- kinds, determinism, cost -------------------------------------------------------------


@pytest.mark.parametrize("n", [12, 40])
def test_torch_and_numpy_agree(n):
    torch = pytest.importorskip("torch")
    M = spd(n, 10).astype(np.float32)
    array = inv(unit(), M)
    tensor = inv(unit(), torch.tensor(M, requires_grad=True))
    assert tensor.value.dtype == torch.float32
    assert array.value.dtype == array.standard_error.dtype == np.float32
    assert not tensor.value.requires_grad
    assert np.array_equal(tensor.value.numpy(), array.value)
    assert np.array_equal(tensor.standard_error.numpy(), array.standard_error)
    half = inv(unit(), torch.tensor(M, dtype=torch.bfloat16))
    assert half.value.dtype == torch.bfloat16


def test_the_same_seed_gives_the_same_numbers():
    M = spd(40, 30)
    first, again, other = (inv(unit(seed=s), M) for s in (5, 5, 6))
    assert np.array_equal(first.value, again.value)
    assert (first.runs, first.hardware_seconds) == (again.runs, again.hardware_seconds)
    assert not np.array_equal(first.value, other.value)


def test_the_account():
    u = unit()
    result = inv(u, spd(16, 3), lambda_min=0.3)
    assert (result.runs, result.samples, result.reruns, result.repairs) == (1, 1000, 0, 0)
    job_cycles = 1000 * u.spec.shortest_interval()
    assert result.hardware_seconds == pytest.approx(job_cycles * u.spec.clock_s, rel=0.1)
    # a bound that decides everything leaves O(n²): less than 30 n² here, below the n³ of a
    # digital inverse from some tens of cells
    assert 0 < result.digital_flops < 30 * 16**2
    assert "1 runs of 1000 samples" in repr(result)
    copy = pickle.loads(pickle.dumps(result))
    assert np.array_equal(copy.standard_error, result.standard_error)


def test_a_unit_of_means_alone_solves_and_refuses_inverses_before_it_runs():
    M, means = spd(16, 3), unit(second_moments=False)
    for refused in (
        lambda: inv(means, M),
        lambda: program(means, M).inv(),
        lambda: program(means, M, complements="covariance"),
    ):
        with pytest.raises(ValueError, match="second_moments = False"):
            refused()
        assert means.stream == 0
    solved = solve(means, M, np.eye(16), samples=100)
    exact = np.linalg.inv(M)
    assert np.linalg.norm(solved.value - exact) < 0.05 * np.linalg.norm(exact)


def test_a_known_lambda_min_saves_flops_and_an_estimate_saves_hardware_time():
    M = spd(16, 3)
    assert inv(unit(), M, lambda_min=0.3).digital_flops < inv(unit(), M).digital_flops
    slow = unit(tau_s=1e-6)
    timid = inv(slow, M, lambda_min=1e-3)
    assert timid.hardware_seconds < 1.5 * inv(slow, M).hardware_seconds


# ---- reruns and guards --------------------------------------------------------------------


def test_clipping_makes_it_run_again_colder(monkeypatch):
    monkeypatch.setattr(covariance, "HEADROOM", 1.0)
    M = spd(16, 10)
    result = inv(unit(tau_s=1e-6), M)
    assert 1 <= result.reruns <= 3
    assert result.runs == 1 + result.reruns
    assert relative_error(result, M) < 0.2


def test_a_lambda_min_that_is_too_high_is_found_out():
    # decided by the bound alone, so nothing but the run itself can show it
    M = spd(16, 300)
    bound = 0.8 * M.diagonal().min()
    assert bound > 10 * np.linalg.eigvalsh(M)[0] / 2
    result = inv(unit(), M, lambda_min=bound, interval=0.5)
    assert result.reruns > 0
    assert relative_error(result, M) < 0.3


def test_an_indefinite_program_shows_by_clipping():
    # 3 bits round 0.85 to 1: λ_min falls from 0.126 to -0.054
    M = np.array([[1, -0.3, -0.85], [-0.3, 1, 0.1], [-0.85, 0.1, 1]])
    assert np.linalg.eigvalsh(M)[0] > 0
    spec = UnitSpec(coupling_bits=3)
    assert np.linalg.eigvalsh(np.rint(M * 3) / 3)[0] < 0
    trusting = inv(NumericUnit(spec, seed=0), M, guard="clipping")
    assert trusting.reruns > 0
    assert trusting.shrinkage > 0
    with pytest.raises(NotPositiveDefinite, match="as far as the unit can tell: 1000 of 1000"):
        inv(NumericUnit(spec, seed=0), M, guard="none")
    guarded = inv(NumericUnit(spec, seed=0), M)
    assert (guarded.runs, guarded.reruns) == (1, 0)
    assert guarded.shrinkage > 0


@pytest.mark.parametrize("guard", ["norm", "cholesky", "clipping", "none"])
def test_other_guards_invert_too(guard):
    M = spd(16, 10)
    assert relative_error(inv(unit(coupling_bits=8), M, guard=guard), M) < 0.5


# ---- wrong input --------------------------------------------------------------------------


def tridiagonal(n, off):
    return np.eye(n) + off * (np.eye(n, k=1) + np.eye(n, k=-1))


@pytest.mark.parametrize(
    ("M", "message"),
    [
        (np.ones((3, 4)), "M has shape (3, 4); it must be square"),
        (np.ones(4), "M has shape (4,)"),
        (np.ones((0, 0)), "M has shape (0, 0)"),
        (np.array([[1, 0.5], [0.2, 1]]), "M is not symmetric: M[0, 1] = 0.5, M[1, 0] = 0.2"),
        (np.diag([1.0, -1.0]), "M is not positive definite: M[1, 1] = -1"),
        (np.diag([0.0, 1.0]), "M is not positive definite: M[0, 0] = 0"),
        (np.array([[1, 3], [3, 4.0]]), "M is not positive definite: |M[0, 1]| = 3 is not below"),
        (tridiagonal(16, 0.9), "M is not positive definite: scaled to unit diagonal"),
        (tridiagonal(40, 0.9), "M is not positive definite: scaled to unit diagonal"),
        (np.array([[1, np.nan], [np.nan, 1]]), "M holds NaN"),
        (np.array([[1, np.inf], [np.inf, 1]]), "M holds inf"),
        (np.eye(2) * 1j, "M has dtype complex128"),
        (np.array([["a"]]), "M has dtype"),
    ],
)
def test_wrong_matrices_are_named(M, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        inv(unit(), M)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 1}, ValueError, "samples = 1 is out of range"),
        ({"samples": 10.0}, TypeError, "samples = 10.0 is not an integer"),
        ({"interval": 0.0}, ValueError, "interval = 0.0 is out of range"),
        ({"guard": "luck"}, ValueError, "guard = 'luck' is unknown; legal: lanczos"),
        ({"complements": "x"}, ValueError, "complements = 'x' is unknown"),
        ({"lambda_min": 0.0}, ValueError, "lambda_min = 0 is out of range"),
        ({"lambda_min": np.nan}, ValueError, "lambda_min = nan is out of range"),
        ({"lambda_min": 2.0}, ValueError, "lambda_min = 2 is out of range"),
        ({"lambda_min": 0.09}, ValueError, "lambda_min is not a lower bound"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    M = spd(16, 200, 1)
    with pytest.raises(error, match=re.escape(message)):
        inv(unit(coupling_bits=6), M, **options)


@pytest.mark.parametrize("ask", ["inv", "solve", "sample"])
def test_a_matrix_is_not_blamed_for_the_unit(ask):
    """Couplings off by 5% make an indefinite array of what a guard has found definite."""
    M, physics = spd(16, 1000, 1), ArrayPhysics(coupling_mismatch=0.05)
    for guard, refusal, message in (
        ("lanczos", Clipping, r"clip.*, though M, scaled to unit diagonal and rounded to coup"),
        ("none", NotPositiveDefinite, r"M is not positive definite as far as the unit can tell"),
    ):
        on_array = program(unit(physics=physics), M, guard=guard)
        asked = {
            "inv": on_array.inv,
            "solve": lambda on=on_array: on.solve(np.ones(16), settle=1e-4),
            "sample": lambda on=on_array: on.sample(50),
        }[ask]
        with pytest.raises(NotPositiveDefinite, match=message) as caught:
            asked()
        assert type(caught.value) is refusal
        for cause in ("couplings are off by", "temperature is too hot", "offsets and noise"):
            assert cause in str(caught.value)


def test_a_temperature_that_is_too_hot_is_named():
    M = spd(16, 100)
    hot = unit(temperature_full_scale=1.0, temperature_bits=6)
    with pytest.raises(Clipping, match="down to temperature code 1") as caught:
        inv(hot, M)
    spread = re.search(r"standard deviation of ([0-9.]+) full scales", str(caught.value))
    # √(T/λ_min) of the scaled matrix, of whose λ_min the guard has a lower bound
    A = M / np.sqrt(np.outer(M.diagonal(), M.diagonal()))
    assert float(spread[1]) == pytest.approx(np.sqrt(1 / 63 / np.linalg.eigvalsh(A)[0]), rel=0.3)


@pytest.mark.parametrize("n", [16, 40])
def test_an_indefinite_matrix_behind_a_wrong_bound_is_refused(n):
    with pytest.raises(NotPositiveDefinite):
        inv(unit(), tridiagonal(n, 0.9), lambda_min=0.5)


# ---- without equilibration ------------------------------------------------------------------


def test_without_equilibration_the_inverse_is_the_same_where_codes_are_fine():
    M = np.diag([0.25, 0.5, 1.0, 2.0]) @ spd(4, 3.0) @ np.diag([0.25, 0.5, 1.0, 2.0])
    M = 0.5 * (M + M.T)
    result = inv(unit(), M, samples=20_000, equilibrate=False)
    assert np.abs((result.value - np.linalg.inv(M)) / result.standard_error).max() < 6.0


def test_equilibration_saves_coupling_bits_on_an_unequal_diagonal():
    scale = np.diag(np.geomspace(0.1, 1.0, 8))
    M = scale @ spd(8, 5.0) @ scale
    M = 0.5 * (M + M.T)
    errors = {
        equilibrate: relative_error(
            inv(unit(coupling_bits=6), M, samples=20_000, equilibrate=equilibrate), M
        )
        for equilibrate in (True, False)
    }
    assert errors[True] < 0.2 < errors[False]


def test_without_equilibration_the_matrix_must_fit_the_array():
    with pytest.raises(ValueError, match="17 rows; legal: up to the unit's 16 cells"):
        inv(unit(), np.eye(17), equilibrate=False)


@pytest.mark.parametrize("nothing", [None, "numeric"])
def test_what_is_no_unit(nothing):
    with pytest.raises(TypeError, match=re.escape(f"unit = {nothing!r} is not a unit")):
        inv(nothing, np.eye(2))

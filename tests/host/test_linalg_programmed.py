"""A matrix on the array: programmed once, then solved with, inverted and sampled."""

import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from thermokron.host.linalg import Eliminated, NotPositiveDefinite, Programmed, load, program, solve
from thermokron.model import NumericUnit, UnitSpec

#: Fine codes, 25 clock cycles to a time constant.
FINE = {"coupling_bits": 16, "bias_bits": 16, "adc_bits": 16, "tau_s": 1e-6, "rhs_depth": 256}


def spd(n, kappa, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T


def columns(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k))


def unit(seed=0, **fields):
    return NumericUnit(UnitSpec(**fields), seed=seed)


def scaled(M):
    """A of unit diagonal, and D^-½."""
    inverse = 1.0 / np.sqrt(M.diagonal())
    return inverse[:, None] * M * inverse, inverse


# ---- settling --------------------------------------------------------------------------------


@pytest.mark.parametrize("settle", [0.6, 0.1, "0.2tau", "2 τ"])
@pytest.mark.parametrize("n", [6, 20])
def test_the_mean_is_filtered_as_the_result_says(settle, n):
    """E x = D^-½ Q (1 - e^(-λt))/λ Qᵀ D^-½ b, mode by mode; larger matrices pivot by pivot.

    4,000 readings of one column; each entry within 6 standard errors of the formula, a false alarm
    in 1e-7. The unfiltered solution is far outside.
    """
    M, b = spd(n, 30), columns(n, 1)
    on_array = program(unit(cells=n, **FINE), M)
    result = on_array.solve(np.repeat(b, 4000, axis=1), settle=settle)
    A, inverse = scaled(M)
    rates, modes = np.linalg.eigh(A)
    passed = result.settling.filter(rates)
    expected = inverse * (modes @ (passed / rates * (modes.T @ (inverse * b[:, 0]))))
    error = result.value.std(axis=1) / math.sqrt(4000)
    assert np.all(np.abs(result.value.mean(axis=1) - expected) < 6 * error + 2e-4 * abs(expected))
    assert np.abs(result.value.mean(axis=1) - np.linalg.solve(M, b[:, 0])).max() > 20 * error.max()


@pytest.mark.parametrize("samples", [2, 10])
@pytest.mark.parametrize("interval", [0.2, 2.0])
def test_several_readings_are_filtered_by_the_mean_of_theirs(samples, interval):
    """The array goes on settling between them; bounds as of one reading."""
    M, b = spd(6, 30), columns(6, 1)
    on_array = program(unit(cells=6, **FINE), M)
    result = on_array.solve(
        np.repeat(b, 3000, axis=1), settle=0.6, samples=samples, interval=interval
    )
    A, inverse = scaled(M)
    rates, modes = np.linalg.eigh(A)
    times = result.settling.time + result.settling.interval * np.arange(samples)
    passed = (1 - np.exp(-rates[:, None] * times)).mean(axis=1)
    np.testing.assert_allclose(result.settling.filter(rates), passed, rtol=1e-12)
    expected = inverse * (modes @ (passed / rates * (modes.T @ (inverse * b[:, 0]))))
    error = result.value.std(axis=1) / math.sqrt(3000)
    assert np.all(np.abs(result.value.mean(axis=1) - expected) < 6 * error + 2e-4 * abs(expected))
    assert result.settling.bias < 0.6


def test_the_result_says_how_it_settled():
    M = spd(10, 20)
    spec = UnitSpec(cells=10, **FINE)
    on_array = program(NumericUnit(spec), M)
    by_bias = on_array.solve(np.ones(10), settle=0.1).settling
    assert by_bias.bias == pytest.approx(0.1, rel=0.05)
    assert by_bias.bias <= 0.1  # whole cycles, rounded up
    assert by_bias.rate == on_array.plan.rate <= np.linalg.eigvalsh(scaled(M)[0])[0] * 1.01
    assert by_bias.filter(by_bias.rate) == pytest.approx(1.0 - by_bias.bias)
    by_time = on_array.solve(np.ones(10), settle="3tau")
    assert by_time.settling.time == pytest.approx(3.0, abs=0.04)
    assert "settled for 3 τ" in repr(by_time)
    expected = math.ceil(3.0 * spec.tau_s * spec.clock_hz) * spec.clock_s * by_time.runs
    assert by_time.seconds["settle"] == pytest.approx(expected, rel=0.02)
    assert on_array.inv(samples=10).settling is None


def test_a_short_time_makes_a_scaled_gradient_step_of_it():
    M, b = spd(8, 10), columns(8, 1)[:, 0]
    result = program(unit(cells=8, **FINE), M).solve(np.repeat(b[:, None], 2000, 1), settle="0.04τ")
    _, inverse = scaled(M)
    step = 0.04 * inverse**2 * b
    # (1 - e^(-λt))/λ is t within λt/2, at most 8% here
    mean = result.value.mean(axis=1)
    assert np.linalg.norm(mean - step) < 0.1 * np.linalg.norm(step)


@pytest.mark.parametrize(
    ("settle", "error", "message"),
    [
        (0.0, ValueError, "settle = 0.0 is out of range; legal: between 0 and 1"),
        (1.0, ValueError, "settle = 1.0 is out of range"),
        (float("nan"), ValueError, "settle = nan is out of range"),
        (3, ValueError, 'settle = 3 is out of range; legal: .* or a time .* such as "5tau"'),
        ("5", ValueError, "settle = '5' is no time; legal"),
        ("-1tau", ValueError, "settle = '-1tau' is no time"),
        ("1e99tau", ValueError, "settle = '1e99tau' is no time; legal: .* from 1e-6 to 1e9"),
        (None, TypeError, "settle = None is neither number nor text"),
        (True, TypeError, "settle = True is neither"),
    ],
)
def test_wrong_settling_is_named(settle, error, message):
    on_array = program(unit(), np.eye(4))
    with pytest.raises(error, match=message):
        on_array.solve(np.ones(4), settle=settle)
    with pytest.raises(error, match=message):
        on_array.sample(3, settle=settle)
    with pytest.raises(error, match=message):
        solve(unit(), np.eye(4), np.ones(4), settle=settle)


# ---- solving ---------------------------------------------------------------------------------


def test_columns_cost_a_few_operations_a_number():
    """O(nk) for k columns of n entries, whatever n: no product with a matrix is made."""
    counts = {}
    for n in (32, 128):
        on_array = program(unit(cells=n, adc_bits=8, rhs_depth=64), spd(n, 10))
        on_array.solve(columns(n, 40, 1))  # finds how strongly to drive such columns
        counts[n] = on_array.solve(columns(n, 40, 2)).digital_flops / (n * 40)
    assert counts[32] < 12
    assert counts[128] < 12


def test_what_is_programmed_once_is_not_programmed_again():
    M, B = spd(40, 10), columns(40, 3)
    on_array = program(unit(cells=40), M, lambda_min=0.09)
    spent = on_array.cost.digital_flops
    assert spent > 5 * 40**2
    first = on_array.solve(B)
    again = on_array.solve(B)
    assert first.digital_flops < 0.1 * spent
    assert on_array.cost.digital_flops == spent
    assert again.runs == 1  # it is known by now how strongly to drive them
    assert solve(unit(cells=40), M, B, lambda_min=0.09).digital_flops > spent


@pytest.mark.parametrize("n", [12, 40])
def test_one_reading_is_within_a_few_percent(n):
    """Of 16 cells, 8 bits: noise of a reading, rounded couplings, and a tenth left unsettled."""
    M, B = spd(n, 10), columns(n, 30)
    result = program(unit(adc_bits=8, rhs_depth=64), M).solve(B)
    exact = np.linalg.solve(M, B)
    assert 0.01 < np.linalg.norm(result.value - exact) / np.linalg.norm(exact) < 0.2


def test_only_columns_that_leave_the_range_or_hardly_use_it_run_again():
    M = spd(16, 100)
    _, modes = np.linalg.eigh(scaled(M)[0])
    scale = np.sqrt(M.diagonal())
    fast, slow = (scale * modes[:, place] for place in (-1, 0))
    on_array = program(unit(rhs_depth=64), M)
    on_array.solve(np.stack([fast] * 20, axis=1))
    # as if all columns swung as little as those: five leave the range and are driven less
    mixed = np.stack([fast] * 15 + [slow] * 5, axis=1)
    result = on_array.solve(mixed, settle=1e-3)
    assert 1 <= result.reruns <= 8
    columns_run = sum(1 for _ in range(result.runs))
    assert columns_run == result.runs
    exact = np.linalg.solve(M, mixed)
    error = np.linalg.norm(result.value - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert error.max() < 0.25
    # and those whose swing shrinks are driven more, for the sake of the ADC's steps
    back = on_array.solve(np.stack([fast] * 20, axis=1), settle=1e-3)
    assert back.reruns >= 1
    quiet = np.linalg.solve(M, np.stack([fast] * 20, axis=1))
    assert np.linalg.norm(back.value - quiet) < 0.25 * np.linalg.norm(quiet)
    assert on_array.solve(np.stack([fast] * 20, axis=1)).reruns == 0


@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize("n", [12, 20], ids=["on the array", "in blocks"])
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300])
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-30, 1.0, 1e160, 1e300])
def test_right_hand_sides_and_matrices_of_any_size_are_solved_for(scale, size, n, refine):
    """Powers of two are exact: but for what M's square roots round, it is the same everywhere."""
    if not 1e-301 < scale / size < 1e301:
        return  # the solution is no number
    M, B = spd(n, 5), columns(n, 3)
    plain = solve(unit(), M, B, refine=refine, samples=100)
    result = solve(unit(), size * M, scale * B, refine=refine, samples=100)
    ratio = scale / size
    np.testing.assert_allclose(result.value / ratio, plain.value, rtol=0.05, atol=0.01)
    np.testing.assert_allclose(result.standard_error / ratio, plain.standard_error, rtol=0.7)
    assert result.residual == pytest.approx(plain.residual, rel=0.5)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"settle": 0.1}, {}),
        ({"settle": 0.6}, {"coupling_bits": 16}),
        ({"settle": 1e-4, "samples": 5}, {"coupling_bits": 16}),
        ({"settle": 1e-4, "samples": 20, "interval": 0.25}, {"coupling_bits": 16}),
        ({"settle": 0.1, "samples": 2}, {"adc_bits": 6}),
        ({"settle": 0.5, "samples": 10, "interval": 0.25}, {"coupling_bits": 16}),
    ],
)
def test_standard_errors_of_few_readings_are_calibrated(options, fields):
    """Noise, ADC, correlated readings, the rounding of couplings, and what is unsettled.

    The rms of z over 8 matrices with 12 columns each. Rounding and settling are no noise: what is
    known of them is their size, so that z is 1 within a factor of 1.4 only.
    """
    z = []
    for seed in range(8):
        M, B = spd(16, 20, seed), columns(16, 12, seed)
        on_array = program(unit(seed, tau_s=1e-6, **fields), M)
        result = on_array.solve(B, **options)
        z.append((result.value - np.linalg.solve(M, B)) / result.standard_error)
    assert 1 / 1.4 < np.sqrt(np.mean(np.square(z))) < 1.4


def test_residual_and_error_are_worked_out_when_asked_for():
    M, B = spd(16, 20), columns(16, 4)
    u = unit()
    result = program(u, M).solve(B)
    stream, flops = u.stream, result.digital_flops
    left = np.linalg.norm(B - M @ result.value, axis=0) / np.linalg.norm(B, axis=0)
    assert result.residual == pytest.approx(left.max(), rel=1e-6)
    assert result.standard_error.shape == (16, 4)
    assert (u.stream, result.digital_flops) == (stream, flops)  # neither unit nor account
    copy = pickle.loads(pickle.dumps(program(u, M).solve(B)))
    assert copy.standard_error.shape == (16, 4)
    assert copy.residual > 0.0


def test_refining_one_reading_comes_to_the_solution():
    M, B = spd(16, 20), columns(16, 4)
    on_array = program(unit(), M)
    exact = np.linalg.solve(M, B)
    errors = [
        np.linalg.norm(on_array.solve(B, refine=refine).value - exact) / np.linalg.norm(exact)
        for refine in (0, 2, 5)
    ]
    assert errors[2] < 0.02 * errors[0]
    assert errors[1] < errors[0]


# ---- sequences of matrices -------------------------------------------------------------------


def damped_factor(n, step, bits=8):
    rng = np.random.default_rng(0)
    tall = rng.standard_normal((n, 2 * n))
    drift = np.random.default_rng(step + 1).standard_normal((n, 2 * n))
    moved = tall + 0.03 * drift
    return moved @ moved.T / (2 * n) + 0.3 * np.eye(n)


def test_what_was_found_of_a_matrix_serves_those_that_follow():
    u = unit(cells=64, coupling_bits=12, rhs_depth=64)
    first = program(u, damped_factor(64, 0), lambda_min=0.3)
    B = columns(64, 10)
    first.solve(B)
    before, looked = first, 0
    for step in range(1, 34):
        M = damped_factor(64, step)
        follower = program(u, M, lambda_min=0.3, like=before)
        lowest = np.linalg.eigvalsh(follower.plan.codes / u.spec.coupling_max)[0]
        assert 0.5 < lowest / follower.plan.rate < 2.0
        looked += follower.plan.age == 0
        assert follower.solve(B).reruns == 0  # it is known how strongly to drive such columns
        before = follower
    assert looked == 2
    fresh = program(u, M, lambda_min=0.3)
    assert before.plan.age > 0
    assert before.cost.digital_flops < fresh.cost.digital_flops


def test_a_bound_that_falls_step_by_step_is_looked_at_again():
    """Each is alike the one before, but not the one that was looked at."""
    u, before = unit(cells=64, coupling_bits=12), None
    ages = []
    for step in range(5):
        before = program(u, damped_factor(64, 0), lambda_min=0.3 / 1.15**step, like=before)
        ages.append(before.plan.age)
    assert ages == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("change", ["bound", "rounding", "size", "shrunk", "coarse"])
def test_a_guard_looks_where_matrices_are_not_alike(change):
    u = unit(cells=64, coupling_bits=4 if change == "shrunk" else 12)
    low = 0.02 if change == "shrunk" else 0.3
    M = damped_factor(64, 0)
    if change == "shrunk":
        M = spd(64, 30)
    first = program(u, M, lambda_min=low)
    assert (first.plan.shrinkage > 0) == (change == "shrunk")
    follower, bound = M, low
    if change == "bound":
        bound = 0.2
    elif change == "rounding":  # codes fit the first matrix exactly, and not the second
        diagonal = np.eye(64)
        first, follower = program(u, diagonal, lambda_min=0.3), M
    elif change == "size":
        follower = damped_factor(40, 0)
    elif change == "coarse":  # a rounding that is large beside λ_min
        first.plan = replace(first.plan, rate=1e-3)
    assert program(u, follower, lambda_min=bound, like=first).plan.age == 0


def test_a_matrix_that_clips_is_looked_at_again():
    """What follows a harmless matrix is taken for harmless; its readings show that it is not."""
    harmless = np.eye(3) + 0.02 * (1 - np.eye(3))
    # 3 bits round 0.85 to 1: λ_min falls from 0.126 to -0.054
    M = np.array([[1, -0.3, -0.85], [-0.3, 1, 0.1], [-0.85, 0.1, 1]])
    u = unit(coupling_bits=3)
    trusting = program(u, M, guard="clipping")
    assert not trusting.plan.checked
    B = columns(3, 5)
    result = trusting.solve(B, settle="200tau", samples=20)
    assert trusting.plan.checked
    assert trusting.plan.shrinkage > 0
    assert result.shrinkage > 0
    with pytest.raises(NotPositiveDefinite, match=r"readings of \d right-hand sides clip"):
        program(u, M, guard="none").solve(B, settle="200tau", samples=20)
    assert program(u, harmless).plan.checked


def test_unlike_predecessors_are_named():
    with pytest.raises(TypeError, match="like = 3 is no programmed matrix"):
        program(unit(), np.eye(3), like=3)


# ---- inverses --------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "interval"), [(100, 2.0), (400, 2.0), (200, 0.3)])
@pytest.mark.parametrize("n", [16, 40])
def test_the_quadratic_estimator_is_right_about_the_curvature_along_its_step(samples, interval, n):
    """gᵀX M X g / gᵀX g is 1 + (n+1)/N for the unbiased X, and 1 for N/(N+n+1) of it.

    Quotients of means over 30 seeds with 20 steps each, known to about 1%; for 40 rows in blocks n
    is that of a block. How many of correlated samples are independent is an estimate.
    """
    M = spd(n, 10, 1)
    curvatures = {}
    for estimator in ("unbiased", "quadratic"):
        true = assumed = 0.0
        for seed in range(30):
            u = unit(seed, coupling_bits=14, tau_s=1e-5)
            on_array = program(u, M, samples=2000, interval=interval)
            X = on_array.inv(samples=samples, interval=interval, estimator=estimator).value
            steps = X @ (gradients := columns(n, 20, seed))
            true += (steps * (M @ steps)).sum()
            assumed += (steps * gradients).sum()
        curvatures[estimator] = true / assumed - 1.0
    rows = 16 if n == 16 else 13.3
    assert curvatures["unbiased"] > 0.8 * (rows + 1) / samples
    assert abs(curvatures["quadratic"]) < max(0.35 * curvatures["unbiased"], 0.02)


def test_the_quadratic_estimator_has_the_smaller_loss():
    M = spd(16, 10)
    errors = {}
    for estimator in ("unbiased", "quadratic"):
        errors[estimator] = np.mean(
            [
                np.linalg.norm(
                    program(unit(s), M).inv(samples=60, estimator=estimator).value @ M - np.eye(16)
                )
                ** 2
                for s in range(20)
            ]
        )
    assert errors["quadratic"] < 0.9 * errors["unbiased"]
    with pytest.raises(ValueError, match="estimator = 'best' is unknown; legal: unbiased, quad"):
        program(unit(), M).inv(estimator="best")


# ---- samples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 20], ids=["on the array", "in blocks"])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_draws_have_the_mean_and_covariance_of_the_matrix(n, shift):
    """x ~ N(M⁻¹b, M⁻¹): whitened by M, 20,000 draws have mean 0 and covariance 1.

    Scores are standard normal; the largest of some 230 is below 6 but for a probability of 1e-6;
    fine codes leave a bias of less than one of them. By blocks, the solutions for W, with 2,000
    samples a column, have an error of their own, of a few scores.
    """
    M = spd(n, 8)
    b = shift * columns(n, 1)[:, 0]
    cells = 8
    on_array = program(unit(3, cells=cells, **FINE), M, samples=40_000)
    assert isinstance(on_array, Programmed if n <= cells else Eliminated)
    count = 20_000
    result = on_array.sample(count, b if shift else None)
    assert result.value.shape == result.standard_error.shape == (count, n)
    white = np.linalg.cholesky(M).T @ (result.value - np.linalg.solve(M, b)).T
    limit = 6.0 if n <= cells else 9.0
    assert np.abs(white.mean(axis=1)).max() * math.sqrt(count) < limit
    scores = (white @ white.T / count - np.eye(n)) * np.sqrt(count / (1 + np.eye(n)))
    assert np.abs(scores).max() < limit
    # each from its own discharge: independent
    following = (white[:, 1:] * white[:, :-1]).mean(axis=1) * math.sqrt(count)
    assert np.abs(following).max() < 6.0


def test_draws_keep_kind_and_refuse_what_does_not_fit():
    torch = pytest.importorskip("torch")
    on_array = program(unit(), torch.eye(5))
    assert on_array.sample(7).value.dtype == torch.float32
    with pytest.raises(ValueError, match="count = 0 is out of range"):
        on_array.sample(0)
    with pytest.raises(ValueError, match=re.escape("b has shape (4,); legal: (5,)")):
        on_array.sample(2, torch.ones(4))
    with pytest.raises(ValueError, match=re.escape("b has shape (5, 1); legal: (5,)")):
        on_array.sample(2, torch.ones(5, 1))
    with pytest.raises(ValueError, match="b holds NaN"):
        on_array.sample(2, torch.full((5,), float("nan")))
    with pytest.raises(ValueError, match=r"b of length .* is too long: at the lowest temperature"):
        on_array.sample(2, torch.full((5,), 1e6))


# ---- kinds, state ----------------------------------------------------------------------------


def test_single_precision_stays_single():
    torch = pytest.importorskip("torch")
    M, B = spd(40, 10).astype(np.float32), columns(40, 3).astype(np.float32)
    results = []
    for matrix, right in ((M, B), (torch.tensor(M), torch.tensor(B))):
        on_array = program(unit(cells=40), matrix, lambda_min=0.09, check=False)
        assert on_array.matrix.dtype == np.float32
        result = on_array.solve(right)
        assert result.value.dtype == right.dtype
        results.append(np.asarray(result.value))
    assert np.array_equal(*results)
    exact = np.linalg.solve(M, B)
    assert np.linalg.norm(results[0] - exact) < 0.2 * np.linalg.norm(exact)
    assert np.array_equal(B, columns(40, 3).astype(np.float32))  # the caller's own memory


def test_halves_that_round_differently_are_made_alike():
    M = np.eye(4)
    step = 1 / 127
    M[0, 1], M[1, 0] = 10.5 * step * (1 + 1e-9), 10.5 * step * (1 - 1e-9)
    on_array = program(unit(), M, check=False)
    codes = on_array.job.couplings
    assert np.array_equal(codes, codes.T)
    assert codes[0, 1] in (10, 11)


@pytest.mark.parametrize("n", [12, 40])
def test_a_state_goes_on_as_if_nothing_had_happened(n):
    M, B = spd(n, 20), columns(n, 5)
    one = unit(seed=4)
    on_array = program(one, M)
    on_array.solve(B)
    state = pickle.loads(pickle.dumps(on_array.state_dict()))
    other = unit(seed=4)
    other.stream = one.stream
    again = load(other, state)
    for B in (columns(n, 5, 1), columns(n, 2)):
        first, second = on_array.solve(B), again.solve(B)
        assert np.array_equal(first.value, second.value)
        assert (first.runs, first.settling) == (second.runs, second.settling)
    assert np.array_equal(on_array.inv(samples=50).value, again.inv(samples=50).value)


def test_repr_says_what_it_is():
    assert "<Programmed 12x12 on 16 cells, 8-bit couplings, slowest rate " in repr(
        program(unit(), spd(12, 5))
    )
    assert "<Eliminated 40x40 in 3 blocks on 16 cells>" in repr(program(unit(), spd(40, 5)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guard": "luck"}, "guard = 'luck' is unknown; legal: lanczos"),
        ({"complements": "x"}, "complements = 'x' is unknown"),
        ({"samples": 0}, "samples = 0 is out of range"),
        ({"settle": 2.0}, "settle = 2.0 is out of range"),
        ({"lambda_min": 2.0}, "lambda_min = 2 is out of range"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        program(unit(), np.eye(3), **options)
    with pytest.raises(ValueError, match="samples = 0 is out of range; legal: 1 to"):
        program(unit(), np.eye(3)).solve(np.ones(3), samples=0)
    with pytest.raises(ValueError, match="samples = 2097152 is out of range; legal: 1 to 1048576"):
        program(unit(), np.eye(3)).solve(np.ones(3), samples=2**21)
    with pytest.raises(ValueError, match="samples = 1 is out of range; legal: 2 to"):
        program(unit(), np.eye(3)).inv(samples=1)


def test_codes_of_other_bits_are_not_taken_for_these():
    state = program(unit(coupling_bits=8), spd(12, 5)).state_dict()
    with pytest.raises(ValueError, match="saved with coupling_bits = 8, this unit has 10"):
        load(unit(coupling_bits=10), state)


def test_costs_are_copies_and_what_is_no_number_stays_none():
    on_array = program(unit(), spd(12, 5), check=False)
    result = on_array.solve(columns(12, 2))
    before = result.hardware_seconds
    result.cost.add(result.cost)
    assert result.hardware_seconds == before
    B = columns(12, 3)
    B[4, 1] = np.nan
    found = on_array.solve(B).value
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(found[:, [0, 2]]).all()


def test_half_precision_is_worked_on_in_single():
    torch = pytest.importorskip("torch")
    on_array = program(unit(), torch.eye(6, dtype=torch.bfloat16), check=False)
    solved = on_array.solve(torch.ones(6, 2, dtype=torch.bfloat16)).value
    assert solved.dtype == torch.bfloat16
    assert (solved - 1.0).abs().max() < 0.2

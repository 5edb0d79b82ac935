"""Coupling dither: rounded at random several times, merged; and the guard where bits are few."""

import copy
import itertools

import numpy as np
import pytest
import torch

from thermokron.host.kfac import KFAC, Thermodynamic
from thermokron.host.linalg import Dithered, Eliminated, Programmed, inv, load, program, solve
from thermokron.host.linalg.codes import codes_of, drawn
from thermokron.host.linalg.result import Account
from thermokron.host.linalg.rounding import rounded
from thermokron.model import NumericUnit, UnitSpec


def spd(n, kappa, seed=0):
    """Random, with a geometric spectrum, scaled to unit diagonal."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    M = (q * np.geomspace(1.0, 1.0 / kappa, n)) @ q.T
    scale = np.sqrt(M.diagonal())
    A = M / (scale[:, None] * scale)
    return 0.5 * (A + A.T)


def unit(cells=16, seed=0, **fields):
    return NumericUnit(UnitSpec(cells=cells, **fields), seed=seed)


# ---- codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_codes_have_the_mean_and_the_variance_of_stochastic_rounding(dtype):
    """28 entries, each a mean of 4,000 draws: beyond 5 sigma one in 60,000 times."""
    spec, A = UnitSpec(coupling_bits=4), spd(8, 5.0).astype(dtype)
    top, upper = spec.coupling_max, np.triu_indices(8, 1)
    wanted = (A * top)[upper].astype(float)
    part = wanted - np.floor(wanted)
    total, square, count = 0.0, 0.0, 4000
    for draw in range(count):
        codes, added = codes_of(spec, A, False, None, drawn(8, draw))
        assert (codes == codes.T).all()
        assert (codes.diagonal() == top).all()
        assert np.abs(added).max() < 1.0 + 1e-6
        total = total + codes[upper]
        square = square + added[upper] ** 2
    error = np.sqrt(part * (1.0 - part) / count)
    assert (np.abs(total / count - wanted) < 5.0 * error + 1e-6).all()
    # Var (code - value)² = p(1-p)(1-2p)² of a draw
    spread = np.sqrt(part * (1.0 - part) * (1.0 - 2.0 * part) ** 2 / count)
    assert (np.abs(square / count - part * (1.0 - part)) < 5.0 * spread + 1e-6).all()


def test_members_are_definite_and_follow_from_the_seed():
    A = spd(16, 20.0)
    wide = unit(coupling_bits=4)
    made = program(wide, A, lambda_min=np.linalg.eigvalsh(A)[0], dither=12, seed=5)
    assert isinstance(made, Dithered)
    codes = [member.plan.codes for member in made.members]
    for each, member in zip(codes, made.members, strict=True):
        assert (each == each.T).all()
        least = np.linalg.eigvalsh(wide.spec.coupling_values(each))[0]
        assert least >= 0.99 * member.plan.rate > 0.0
    assert not any((a == b).all() for a, b in itertools.combinations(codes, 2))
    again, other = (program(wide, A, dither=12, seed=seed) for seed in (5, 6))
    assert all((m.plan.codes == c).all() for m, c in zip(again.members, codes, strict=True))
    assert not any((m.plan.codes == c).all() for m, c in zip(other.members, codes, strict=True))
    assert "Dithered 12 times" in repr(made)
    assert made.shrinkage == max(member.plan.shrinkage for member in made.members)


def test_one_member_is_a_matrix_rounded_at_random_also_in_blocks():
    A = spd(24, 5.0)
    one = program(unit(24), A, dither=1, seed=3)
    assert type(one) is Programmed
    assert (one.plan.codes != program(unit(24), A).plan.codes).any()
    blocks = [program(unit(8), A, dither=1, seed=seed) for seed in (3, 3, 4)]
    first, same, other = ([p.array.plan.codes for p in b.pivots] for b in blocks)
    assert type(blocks[0]) is Eliminated
    assert (first[0] == same[0]).all()
    assert all((a != b).any() for a, b in zip(first, other, strict=True))
    B = np.random.default_rng(0).standard_normal((24, 2))
    found = blocks[0].solve(B, samples=200, refine=2).value
    assert np.linalg.norm(found - np.linalg.solve(A, B)) < 0.02 * np.linalg.norm(found)


def test_matrices_of_a_stack_have_draws_of_their_own():
    stack = program(unit(), np.stack([spd(16, 5.0)] * 2), dither=2, seed=1)
    first, second = (matrix.members[0].plan.codes for matrix in stack.matrices)
    assert (first != second).any()


# ---- what merging does ---------------------------------------------------------------------------


def orders(A, spec):
    """Squares of what rounding at random does to A⁻¹, by order: E‖XEX‖² and ‖X E[EXE] X‖².

    E_ij = E_ji are independent, of mean zero and variance p(1-p) steps².
    """
    top = spec.coupling_max
    part = A * top - np.floor(A * top)
    variance = part * (1.0 - part) / top**2
    np.fill_diagonal(variance, 0.0)
    X = np.linalg.inv(A)
    square = X @ X  # ‖X(e_i e_jᵀ + e_j e_iᵀ)X‖² = 2 (X²)_ii (X²)_jj + 2 (X²)_ij²
    outer = np.outer(square.diagonal(), square.diagonal())
    first = 0.5 * (variance * (2.0 * outer + 2.0 * square**2)).sum()
    twice = variance * X + np.diag(variance @ X.diagonal())
    return float(first), float(((X @ twice @ X) ** 2).sum())


@pytest.mark.parametrize("members", [1, 4, 16, 64])
def test_the_error_falls_from_first_order_to_second(members):
    """Mean squares over 30 ensembles, where the third order is small, against theory.

    A square's scatter is about √(2/ν) with ν of the order of n = 16 directions; 30 of them are
    within 25% but for one in a thousand times.
    """
    A, wide = spd(16, 10.0), unit(coupling_bits=7)
    first, second = orders(A, wide.spec)
    X, errors = np.linalg.inv(A), []
    for seed in range(30):
        made = program(wide, A, dither=members, seed=seed)
        each = made.members if members > 1 else (made,)
        assert not any(one.plan.shrinkage for one in each)
        mean = np.mean([np.linalg.inv(one.equation.effective) for one in each], axis=0)
        errors.append(((mean - X) ** 2).sum())
    wanted = first / members + second
    assert np.mean(errors) == pytest.approx(wanted, rel=0.25)
    assert second < first / 200  # so that 64 still gain from their number


@pytest.mark.parametrize("bits", [5, 8])
def test_answers_are_those_of_the_mean_of_inverses(bits):
    """What is read beside what is known of the members: 256 and 128 numbers within 5 sigma."""
    A, wide = spd(16, 10.0), unit(coupling_bits=bits)
    made = program(wide, A, dither=6, seed=2)
    mean = np.mean([np.linalg.inv(m.equation.effective) for m in made.members], axis=0)
    value = made.inv(samples=4000).value
    spread = np.sqrt((np.outer(mean.diagonal(), mean.diagonal()) + mean**2) / 24_000)
    assert (np.abs(value - mean) < 5.5 * spread).all()
    B = np.random.default_rng(3).standard_normal((16, 8))
    found = made.solve(B, samples=400, settle=1e-4).value
    assert np.linalg.norm(found - mean @ B) < 0.01 * np.linalg.norm(mean @ B)
    draws = made.sample(12_000).value
    assert draws.shape == (12_000, 16)
    empirical = draws.T @ draws / 12_000
    assert (np.abs(empirical - mean) < 5.5 * spread * np.sqrt(2.0)).all()
    assert made.sample(3, np.ones(16)).value.shape == (3, 16)  # fewer than members


def test_the_hardware_is_paid_for_every_member():
    A, B = spd(16, 5.0), np.ones((16, 3))
    one, four = (program(unit(), A, dither=members).solve(B) for members in (1, 4))
    assert four.runs - four.reruns == 4 * (one.runs - one.reruns)
    one, four = (inv(unit(), A, samples=100, dither=members) for members in (1, 4))
    assert four.runs - four.reruns == 4 * (one.runs - one.reruns)
    assert four.hardware_seconds > 3.5 * one.hardware_seconds


@pytest.mark.parametrize("correct", [None, "rounding"])
@pytest.mark.parametrize(("bits", "members"), [(4, 8), (6, 8), (8, 3)])
def test_error_bars_of_inverses_cover(bits, members, correct):
    """12 problems of 136 numbers; with 4 bits errors are of few directions, which scatter."""
    within, twice = [], []
    for seed in range(12):
        A = spd(16, 10.0, seed)
        wide = unit(coupling_bits=bits, seed=seed)
        found = inv(wide, A, samples=1000, dither=members, seed=seed, correct=correct)
        ratio = (np.abs(found.value - np.linalg.inv(A)) / found.standard_error)[np.triu_indices(16)]
        within.append((ratio < 1.0).mean())
        twice.append((ratio < 2.0).mean())
    assert 0.60 < np.mean(within) < 0.76
    assert np.mean(twice) > 0.94


@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize(("bits", "members"), [(6, 8), (8, 3)])
def test_error_bars_of_solutions_cover(bits, members, refine):
    within, twice = [], []
    for seed in range(12):
        A, B = spd(16, 10.0, seed), np.random.default_rng(seed).standard_normal((16, 8))
        wide = unit(coupling_bits=bits, seed=seed)
        found = solve(wide, A, B, samples=10, refine=refine, dither=members, seed=seed)
        ratio = np.abs(found.value - np.linalg.solve(A, B)) / found.standard_error
        within.append((ratio < 1.0).mean())
        twice.append((ratio < 2.0).mean())
    assert 0.58 < np.mean(within) < 0.85
    assert np.mean(twice) > 0.94


def test_dither_and_refinement_multiply():
    A, B = spd(24, 10.0), np.random.default_rng(1).standard_normal((24, 4))
    exact = np.linalg.solve(A, B)

    def error(**options):
        found = solve(unit(24, coupling_bits=6), A, B, samples=100, **options).value
        return np.linalg.norm(found - exact) / np.linalg.norm(exact)

    plain, dithered = error(refine=0), error(refine=0, dither=32)
    refined, both = error(refine=1), error(refine=1, dither=32)
    assert dithered < 0.7 * plain
    assert both < 0.5 * refined < 0.1 * plain


# ---- state and wrong input -----------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "members"), [(16, 3), (16, 1), (8, 1)])
def test_a_saved_state_goes_on_bit_for_bit(cells, members):
    A, B = spd(16, 5.0), np.random.default_rng(1).standard_normal((16, 2))
    one, other = unit(cells, seed=4), unit(cells, seed=4)
    made = program(one, A, dither=members, seed=7)
    made.solve(B)
    again = load(other, copy.deepcopy(made.state_dict()))
    other.stream = one.stream
    assert type(again) is type(made)
    for _ in range(2):
        assert (made.solve(B, samples=5).value == again.solve(B, samples=5).value).all()


def test_a_matrix_like_the_one_before_takes_its_members_over():
    A = spd(16, 5.0)
    before = program(unit(), A, lambda_min=0.1, dither=3)
    after = program(unit(), A * 1.01, lambda_min=0.101, dither=3, like=before, seed=1)
    assert [member.plan.age for member in after.members] == [1, 1, 1]
    assert program(unit(), A, dither=4, like=before).solve(np.ones(16)).value.shape == (16,)
    assert type(program(unit(), A, like=before)) is Programmed


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"dither": 0}, ValueError, r"dither = 0 is out of range; legal: 1 to 1024"),
        ({"dither": -3}, ValueError, r"dither = -3 is out of range"),
        ({"dither": 2.5}, TypeError, r"dither = 2.5 is not an integer"),
        ({"dither": True}, TypeError, r"dither = True is not an integer"),
        ({"dither": 2, "seed": -1}, ValueError, r"seed = -1 is out of range"),
        ({"dither": 2, "seed": "x"}, TypeError, r"seed = 'x' is not an integer"),
        ({"dither": 2, "guard": "none"}, ValueError, r"guard = 'none' does not go with dither = 2"),
        ({"dither": 1, "guard": "clipping"}, ValueError, r"legal: 'lanczos', 'norm', 'cholesky'"),
    ],
)
@pytest.mark.parametrize("function", [program, inv])
def test_wrong_input_is_named(function, options, kind, message):
    with pytest.raises(kind, match=message):
        function(unit(), spd(8, 5.0), **options)


def test_several_members_need_a_matrix_that_fits():
    with pytest.raises(ValueError, match=r"dither = 2, but M has 24 rows; legal: 1, or a matrix"):
        solve(unit(16), spd(24, 5.0), np.ones(24), dither=2)


# ---- the guard -----------------------------------------------------------------------------------


def correlated(n, seed):
    """Like a factor of activations: a few strong directions on top of damping."""
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((4 * n, 6)) @ rng.standard_normal((6, n))
    data += 0.7 * rng.standard_normal((4 * n, n))
    M = data.T @ data / len(data)
    scale = np.sqrt(M.diagonal())
    return 0.9 * M / (scale[:, None] * scale) + 0.1 * np.eye(n)


def least_part(spec, A, wanted):
    """The least of 100 parts, by eigenvalues."""
    for part in np.linspace(0.0, 0.99, 100):
        shrunk = A * (1.0 - part)
        np.fill_diagonal(shrunk, 1.0)
        codes, _ = codes_of(spec, shrunk, True, None)
        if np.linalg.eigvalsh(spec.coupling_values(codes))[0] >= wanted:
            return part
    return 1.0


@pytest.mark.parametrize("bits", [3, 4])
def test_couplings_are_shrunk_by_little_more_than_is_needed(bits):
    spec, found, needed = UnitSpec(cells=48, coupling_bits=bits), [], []
    for seed in range(6):
        A = correlated(48, seed)
        bound = float(np.linalg.eigvalsh(A)[0])
        plan = rounded(spec, A, bound, "lanczos", Account())
        assert np.linalg.eigvalsh(spec.coupling_values(plan.codes))[0] >= 0.45 * bound
        found.append(plan.shrinkage)
        needed.append(least_part(spec, A, 0.5 * bound))
    assert min(needed) > 0.0
    assert np.mean(found) < 1.25 * np.mean(needed)


# ---- K-FAC ---------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.Tanh(), torch.nn.Linear(16, 6))


def data(step):
    generator = torch.Generator().manual_seed(step)
    basis = torch.randn(4, 24, generator=torch.Generator().manual_seed(99))
    x = torch.randn(96, 4, generator=generator) @ basis
    return x + 0.3 * torch.randn(96, 24, generator=generator), torch.arange(96) % 6


@pytest.mark.parametrize(("bits", "refined"), [(4, 3), (8, 0)])
def test_what_had_to_be_shrunk_is_refined(bits, refined):
    A = torch.from_numpy(correlated(24, 0))
    right = torch.randn(24, 5, generator=torch.Generator().manual_seed(1), dtype=A.dtype)
    exact = torch.linalg.solve(A, right)
    found = {}
    for refine in (None, refined, 0):
        engine = Thermodynamic(unit(24, coupling_bits=bits, seed=3), refine=refine)
        made = engine.program(A, 0.1)
        assert (made.shrinkage > 0.0) == bool(refined)
        found[refine] = engine.solve(made, right)
    assert torch.equal(found[None][0], found[refined][0])
    assert found[None][1].digital_flops == found[refined][1].digital_flops
    if refined:
        errors = {
            refine: float((x - exact).norm() / exact.norm()) for refine, (x, _) in found.items()
        }
        assert errors[None] < 0.5 * errors[0]
        assert found[0][1].runs < found[None][1].runs


def test_what_is_shrunk_and_not_refined_solves_with_more_damping():
    A = torch.from_numpy(correlated(24, 0))
    engine = Thermodynamic(unit(24, coupling_bits=4), refine=0, samples=400, settle=1e-4)
    made = engine.program(A, float(torch.linalg.eigvalsh(A)[0]))
    s = made.shrinkage
    assert s > 0.1
    stiff = torch.linalg.eigh(A)[1][:, -1:]
    found, cost = engine.solve(made, stiff.clone())
    assert cost.digital_flops > 0
    largest = float(torch.linalg.eigvalsh(A)[-1])
    along = float((stiff.T @ found).item())
    assert along == pytest.approx(1.0 / (largest + s / (1.0 - s)), rel=0.1)


def test_dither_draws_anew_for_every_factor_and_again_from_the_same_seed():
    A = torch.from_numpy(spd(16, 5.0))
    engines = [Thermodynamic(unit(seed=seed), dither=True) for seed in (1, 1, 2)]
    first, same, other = (engine.program(A, 0.1).plan.codes for engine in engines)
    assert (first == same).all()
    assert (first != other).any()
    nearby = engines[0].program(A * (1.0 + 1e-12), 0.1).plan.codes
    assert (first != nearby).any()
    mean = np.mean(
        [engines[0].program(A * (1.0 + 1e-12 * k), 0.1).plan.codes for k in range(400)], axis=0
    )
    assert np.abs(mean - A.numpy() * 127).max() < 5.0 * 0.5 / 20  # 120 entries, 1 in 14,000
    assert Thermodynamic(unit(), 100, dither=True)(A, 0.1).value.isfinite().all()


def test_dithered_training_goes_on_from_its_state_bit_for_bit():
    def begun():
        model = network()
        make = Thermodynamic(unit(16, coupling_bits=4, seed=3), dither=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return model, optimizer, KFAC(model, inverse=make, lr=optimizer, damping=0.05)

    def go(model, optimizer, kfac, steps):
        for step in steps:
            optimizer.zero_grad()
            x, y = data(step)
            torch.nn.functional.cross_entropy(model(x), y).backward()
            kfac.step()
            optimizer.step()

    whole, half = begun(), begun()
    go(*whole, range(4))
    go(*half, range(2))
    again = begun()
    again[0].load_state_dict(copy.deepcopy(half[0].state_dict()))
    again[2].load_state_dict(copy.deepcopy(half[2].state_dict()))
    go(*again, range(2, 4))
    for one, other in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine": -1}, r"refine = -1 is out of range; legal: 0 to 100"),
        ({"refine": 0.5}, r"refine = 0.5 is not an integer"),
        ({"dither": True, "guard": "none"}, r"guard = 'none' does not go with dither"),
    ],
)
def test_wrong_options_of_the_engine_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Thermodynamic(unit(), **options)

"""The asymptotic table: against exponents that were derived, and against what steps are counted to
take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from thermokron.host import open_unit
from thermokron.host.kfac import KFAC, Relative
from thermokron.host.predict.asymptotics import (
    METHODS,
    RESOURCES,
    TABLE,
    Expression,
    Setting,
    exponent,
    unit_seconds,
    value,
)
from thermokron.host.predict.readings import READINGS
from thermokron.model import UnitSpec

#: Exponents in n, b, κ, N, r and c, all others fixed; of what is not here there is nothing.
CLAIMED = {
    ("sgd", "passes"): (2, 1, 0, 0, 0, 0),
    ("adam", "passes"): (2, 1, 0, 0, 0, 0),
    ("sgd", "step"): (2, 0, 0, 0, 0, 0),
    ("adam", "step"): (2, 0, 0, 0, 0, 0),
    ("sgd", "host memory"): (2, 0, 0, 0, 0, 0),
    ("adam", "host memory"): (2, 0, 0, 0, 0, 0),
    ("exact", "passes"): (2, 1, 0, 0, 0, 0),
    ("exact", "step"): (3, 0, 0, 0, 0, 0),
    ("exact", "host memory"): (2, 0, 0, 0, 0, 0),
    ("solve", "passes"): (2, 1, 0, 0, 0, 0),
    ("solve", "step"): (2, 0, 0, 0, 0, 0),
    ("solve", "bytes"): (2, 0, 0, 0, 0, 0),
    ("solve", "load"): (3, 0, 0, 0, 0, 0),  # every start loads the couplings
    ("solve", "settle"): (1, 0, 1, 0, 0, 0),
    ("solve", "sample"): (1, 0, 1, 1, 0, 0),  # of a thousand readings
    ("solve", "host memory"): (2, 0, 0, 0, 0, 0),
    ("solve", "unit memory"): (2, 0, 0, 0, 0, 0),
    ("inverse", "passes"): (2, 1, 0, 0, 0, 0),
    ("inverse", "step"): (3, 0, 0, 0, 0, 0),
    ("inverse", "bytes"): (2, 0, 0, 0, -1, 0),
    ("inverse", "load"): (2, 0, 0, 0, -1, 0),
    ("inverse", "settle"): (0, 0, 1, 0, -1, 0),
    ("inverse", "sample"): (1, 0, 1, 1, -1, 0),
    ("inverse", "products"): (2, 0, 0, 1, -1, 0),
    ("inverse", "host memory"): (2, 0, 0, 0, 0, 0),
    ("inverse", "unit memory"): (2, 0, 0, 0, 0, 0),
    ("solve in blocks", "passes"): (2, 1, 0, 0, 0, 0),
    ("solve in blocks", "step"): (3, 0, 0, 0, 0, 0),
    ("solve in blocks", "bytes"): (2, 0, 0, 0, 0, 0),
    ("solve in blocks", "load"): (2, 0, 0, 0, 0, 1),
    ("solve in blocks", "settle"): (2, 0, 1, 0, 0, -1),
    ("solve in blocks", "sample"): (2, 0, 1, 1, 0, -1),
    ("solve in blocks", "host memory"): (2, 0, 0, 0, 0, 0),
    ("solve in blocks", "unit memory"): (0, 0, 0, 0, 0, 2),
    ("inverse in blocks", "passes"): (2, 1, 0, 0, 0, 0),
    ("inverse in blocks", "step"): (3, 0, 0, 0, 0, 0),
    ("inverse in blocks", "bytes"): (2, 0, 0, 0, -1, 0),
    ("inverse in blocks", "load"): (2, 0, 0, 0, -1, 1),
    ("inverse in blocks", "settle"): (2, 0, 1, 0, -1, -1),
    ("inverse in blocks", "sample"): (2, 0, 1, 1, -1, -1),
    ("inverse in blocks", "products"): (1, 0, 0, 1, -1, 1),
    ("inverse in blocks", "host memory"): (2, 0, 0, 0, 0, 0),
    ("inverse in blocks", "unit memory"): (0, 0, 0, 0, 0, 2),
}
VARIABLES = ("n", "b", "kappa", "samples", "refresh", "cells")
ARRAY = ("settle", "sample")
ENTRIES = [(method, resource) for method in METHODS for resource in RESOURCES]


@pytest.mark.parametrize(("method", "resource"), ENTRIES)
def test_exponents_are_those_that_were_derived(method, resource) -> None:
    implied = [exponent(method, resource, variable) for variable in VARIABLES]
    assert implied == pytest.approx(CLAIMED.get((method, resource), [0] * 6), abs=0.01)
    assert (TABLE[method][resource].text == "0") == ((method, resource) not in CLAIMED)


def test_an_expression_is_what_it_says() -> None:
    letters = {"n": 3.0, "κ": 2.0, "r": 4.0}
    assert Expression("2n³κ/3r + 5n² | −n + 7")(letters) == 2 * 27 * 2 / 12 + 45 - 3 + 7
    assert Expression("n² − 4n/r | 2")(letters) == 9 - 3 + 2
    assert Expression("4n³ + n² | 2n").leading == "4n³ + n²"
    with pytest.raises(ValueError, match="'b' in '2bn' has no value"):
        Expression("2bn")(letters)


@pytest.mark.parametrize("method", METHODS)
def test_more_of_anything_never_costs_less(method) -> None:
    at = Setting(n=512, samples=1000, refresh=10)
    for resource in RESOURCES:
        for variable, more in (("n", 1024), ("kappa", 30.0), ("samples", 3000), ("b", 4096)):
            grown = value(method, resource, replace(at, **{variable: more}))
            if resource == "load":  # it hides behind an array that takes longer
                grown += sum(value(method, r, replace(at, **{variable: more})) for r in ARRAY)
                assert grown >= sum(value(method, r, at) for r in ("load", *ARRAY))
            else:
                assert grown >= value(method, resource, at)
        seldom = value(method, resource, replace(at, refresh=100))
        assert seldom <= value(method, resource, at)
    if METHODS[method].startswith("K-FAC, unit"):
        assert unit_seconds(method, replace(at, n=1024)) > unit_seconds(method, at) > 0.0
    else:
        assert unit_seconds(method, at) == 0.0


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"method = 'lbfgs' is unknown; legal: sgd, adam"):
        value("lbfgs", "step", Setting())
    with pytest.raises(ValueError, match="resource = 'joules' is unknown; legal: passes"):
        value("sgd", "joules", Setting())
    with pytest.raises(ValueError, match="variable = 'm' is unknown; legal: n, b"):
        exponent("sgd", "step", "m")
    for name, bad in (("n", 0), ("kappa", 0.5), ("samples", 0), ("refresh", 0), ("settle", 2.0)):
        with pytest.raises(ValueError, match=name):
            Setting(**{name: bad})


# ---- against counters ----------------------------------------------------------------------------

SPEC = UnitSpec(coupling_bits=10, rhs_depth=64, stream_bits=None)


def stepped(width, method, *, cells=None, steps=3, samples=None, refresh=1):
    """K-FAC after steps on one square layer, always with the same batch, and the last metrics."""
    torch.manual_seed(0)
    model = torch.nn.Linear(width, width, bias=False)
    inputs, unit = torch.randn(2 * width, width), None
    if cells is not None:
        unit = open_unit("statistical", replace(SPEC, cells=cells, lanes=None), seed=1)
    kfac = KFAC(
        model,
        unit,
        lr=0.1,
        damping=Relative(1 / 49),
        method=method,
        samples=samples,
        inverse_interval=refresh,
        kl_clip=None,
    )
    flops = []
    for _ in range(steps):
        model.zero_grad()
        model(inputs).square().mean().backward()
        flops.append(kfac.step().digital_flops)
    return kfac, kfac.metrics, flops


@pytest.mark.parametrize("refresh", [1, 4])
def test_an_exact_step_takes_what_the_table_says(refresh) -> None:
    for width in (32, 128):
        _, _, flops = stepped(width, "inverse", steps=4, refresh=refresh)
        expected = value("exact", "step", Setting(n=width, refresh=refresh))
        assert sum(flops) / 4 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("width", [32, 128])
def test_a_solve_takes_what_the_table_says(width) -> None:
    """Bytes and cycles of loading, settling and sampling are exact; 64 bias vectors a start."""
    kfac, metrics, flops = stepped(width, "solve", cells=width, steps=18)
    (block,) = kfac.training.blocks.prepared.values()
    each = [
        Setting(n=width, kappa=1.0 / one.plan.rate, spec=SPEC) for one in (block.a[0], block.g[0])
    ]

    def expected(resource: str) -> float:
        return float(np.mean([value("solve", resource, setting) for setting in each]))

    assert metrics.bytes_to_unit + metrics.bytes_from_unit == expected("bytes")
    assert metrics.load_seconds * SPEC.clock_hz == pytest.approx(expected("load"))
    settled = metrics.settle_seconds + metrics.discharge_seconds
    assert settled * SPEC.clock_hz == pytest.approx(expected("settle"))
    assert metrics.sample_seconds * SPEC.clock_hz == pytest.approx(expected("sample"))
    taken = sum(flops[2:]) / 16
    assert taken < 1.15 * expected("step")
    if width > 32:  # small roundings are certain, and no guard looks
        assert taken == pytest.approx(expected("step"), rel=0.25)


@pytest.mark.parametrize("samples", [100, 4000])
def test_an_inverse_takes_what_the_table_says(samples) -> None:
    width = 128
    _, metrics, _ = stepped(width, "inverse", cells=width, samples=samples)
    at = Setting(n=width, kappa=8.0, samples=samples, spec=SPEC)
    assert metrics.bytes_to_unit + metrics.bytes_from_unit == value("inverse", "bytes", at)
    for resource in ("load", "sample"):
        cycles = getattr(metrics, f"{resource}_seconds") * SPEC.clock_hz
        assert cycles == pytest.approx(value("inverse", resource, at))
    assert metrics.digital_flops == pytest.approx(value("inverse", "step", at), rel=0.15)
    # n lanes, which work all the time, make all products and half a diagonal more
    made = metrics.sample_seconds * SPEC.clock_hz * width
    assert made == pytest.approx(value("inverse", "products", at), rel=0.15)


@pytest.mark.parametrize(("method", "samples"), [("solve", 1), ("inverse", 1000)])
def test_blocks_take_what_the_table_says(method, samples) -> None:
    """How often elimination solves for a column, P, is seen from the bytes."""
    _, metrics, _ = stepped(256, method, cells=64)
    name = f"{method} in blocks"
    at = Setting(n=256, samples=samples, cells=64, passes=1, spec=SPEC)
    moved = metrics.bytes_to_unit + metrics.bytes_from_unit
    once, twice = (value(name, "bytes", replace(at, passes=p)) for p in (1, 2))
    passes = 1.0 + (moved - once) / (twice - once)
    assert 0.9 < passes < 2.5
    at = replace(at, passes=max(passes, 1.0))
    assert metrics.digital_flops == pytest.approx(value(name, "step", at), rel=0.15)
    # what of a load hides behind settling depends on how long that took
    settled = (metrics.settle_seconds + metrics.discharge_seconds) * SPEC.clock_hz
    at = min(
        (replace(at, kappa=float(kappa)) for kappa in np.linspace(1.0, 16.0, 301)),
        key=lambda setting: abs(value(name, "settle", setting) - settled),
    )
    loaded = metrics.load_seconds * SPEC.clock_hz
    # what runs again is in no entry, and loads its couplings again
    known, passes = at.letters(blocks=True), at.passes
    if method == "solve":
        starts = 2 * (known["S"] * 256 / 64 + passes * known["E"])
    else:
        starts = 2 * (256 / 64 + (1 + passes) * known["E"])
    loaded -= (metrics.runs - starts) * (64 * 65 / 2 + 3)
    assert loaded == pytest.approx(value(name, "load", at), rel=0.3)
    # no less than exact K-FAC takes, and so no relief
    assert metrics.digital_flops > 0.9 * value("exact", "step", at)


@pytest.mark.parametrize(
    ("method", "cells", "name"),
    [(None, None, "exact"), ("solve", 128, "solve"), ("solve", 32, "solve in blocks")],
)
def test_what_is_kept_is_what_the_table_says(method, cells, name) -> None:
    kfac, _, _ = stepped(128, method, cells=cells)

    def size(state) -> int:
        if isinstance(state, torch.Tensor):
            return state.numel() * state.element_size()
        state = list(state.values()) if isinstance(state, dict) else state
        return sum(map(size, state)) if isinstance(state, list | tuple) else 0

    momentum = 4 * 128**2
    expected = value(name, "host memory", Setting(n=128, cells=cells or 32))
    assert size(kfac.state_dict()) + momentum == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("method", ["sgd", "solve"])
def test_passes_are_those_that_torch_counts(method) -> None:
    layer = torch.nn.Linear(48, 48, bias=False)
    inputs = torch.randn(80, 48, requires_grad=True)
    kfac = KFAC(layer, lr=0.1) if method != "sgd" else None
    with FlopCounterMode(display=False) as counted:
        layer(inputs).square().mean().backward()
    assert counted.get_total_flops() == value(method, "passes", Setting(n=48, b=80))
    if kfac is not None:
        kfac.close()


# ---- readings of O(n²κ²) -------------------------------------------------------------------------


def test_where_the_papers_exponents_come_out() -> None:
    relative, product, absolute, averaged, once = READINGS
    assert relative.exponents("time") == pytest.approx((1, 1))
    assert relative.exponents("products") == pytest.approx((3, 0))
    n, kappa = product.exponents("time")
    assert (n + 1, kappa) == pytest.approx((2, 2))  # n cells for so long
    assert absolute.exponents("samples") == pytest.approx((2, 2))
    assert averaged.exponents("time") == pytest.approx((2, 2))
    assert once.exponents("time") == pytest.approx((1, 1))
    assert [bool(each.found) for each in READINGS] == [False, True, True, True, False]


def test_bounds_of_samples_hold_and_are_not_loose() -> None:
    """Of independent samples, half of the modes slow; for an error of 0.1 each."""
    n, kappa, count = 24, 20.0, 4000
    rng = np.random.default_rng(0)
    rates = np.repeat([1 / kappa, 2 - 1 / kappa], n // 2)
    turned, _ = np.linalg.qr(rng.standard_normal((n, n)))
    matrix, inverse = (turned * rates) @ turned.T, (turned / rates) @ turned.T
    root = (turned / np.sqrt(rates)) @ turned.T
    errors = []
    for _ in range(20):
        drawn = rng.standard_normal((count, n)) @ root
        off = drawn.T @ drawn / count - inverse
        whole = np.sum(off**2)
        errors.append([whole / np.sum(inverse**2), np.sum((off @ matrix) ** 2) / n, whole])
    needed = count * np.mean(errors, axis=0) / 0.1**2
    letters = {"n": float(n), "κ": kappa, "ε": 0.1}
    bounds = [each.samples(letters) for each in READINGS[:3]]
    assert (needed < bounds).all()
    assert (needed > 0.2 * np.array(bounds)).all()

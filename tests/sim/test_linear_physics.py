"""Arrays with more states than cells: the compiled RTL returns the numeric integers."""

from __future__ import annotations

import numpy as np
import pytest

from thermokron.host import CompiledUnit
from thermokron.model import ArrayPhysics, Job, NumericUnit, UnitSpec

SPEC = UnitSpec(
    cells=6, lanes=3, rhs_depth=4, discharge_cycles=3, dac_lanes=4, stream_bits=128
)  # "two folds" of test_identity
ALL = ArrayPhysics(
    coupling_mismatch=0.03,
    coupling_asymmetry=0.05,
    cell_offset=0.02,
    noise_mismatch=0.2,
    tau_mismatch=0.2,
    noise_bandwidth_hz=20e6,
    coupling_bandwidth_hz=50e6,
    adc_gain_error=0.02,
    adc_offset=0.01,
    adc_noise=0.003,
    adc_inl_lsb=0.7,
    adc_dnl_lsb=0.6,
    adc_rate_hz=1e6,
    adc_bandwidth_hz=30e6,
    device_seed=5,
)


@pytest.mark.filterwarnings("ignore:cells of tau_s", "ignore:the unit may sample")
def test_the_compiled_engine_returns_the_numeric_integers() -> None:
    """Sums, products, clip counts and cycles; several vectors, many samples, clipping."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((6, 12))
    matrix = factor @ factor.T / 12
    couplings = SPEC.coupling_codes(matrix / np.abs(matrix).max())
    with CompiledUnit(SPEC, ALL, seed=9) as unit:
        numeric = NumericUnit(SPEC, ALL, seed=9)
        assert numeric.physics.beyond_modes
        for vectors, samples, second, code in (
            (1, 1500, True, 300),
            (4, 1, False, 300),
            (3, 40, False, 1023),
            (1, 200, True, 0),
        ):
            job = Job(
                couplings=couplings,
                biases=rng.integers(-900, 900, (vectors, 6)),
                temperature=code,
                settle_cycles=7,
                interval_cycles=SPEC.shortest_interval(second) + 1,
                samples=samples,
                second_moments=second,
            )
            assert unit.run(job) == numeric.run(job)
        assert numeric.stream == unit.stream == 9

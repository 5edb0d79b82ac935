"""Jobs and read-outs: validation, immutability, equality, JSON; the stream count of a unit."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from thermokron.model import PHASES, BaseUnit, Job, Readout, Unit, UnitFault, UnitSpec

CYCLES = dict.fromkeys(PHASES, 3)


def make_job(**changes) -> Job:
    values = {
        "couplings": [[5, 1, 0], [1, 5, 1], [0, 1, 5]],
        "biases": [[1, 2, 3]],
        "temperature": 7,
        "settle_cycles": 10,
        "interval_cycles": 12,
        "samples": 5,
    }
    return Job(**(values | changes))


def make_readout(**changes) -> Readout:
    values = {
        "sums": [[1, -(2**35)]],
        "products": [[1, 2**51], [2**51, 3]],
        "clipped": [[0, 4]],
        "cycles": CYCLES,
    }
    return Readout(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"couplings": [[1, 2], [3, 1]]}, ValueError, r"entry \(0, 1\) is 2, \(1, 0\) is 3"),
        ({"couplings": [[1, 2, 3]]}, ValueError, r"couplings have shape \(1, 3\)"),
        ({"couplings": [1, 2, 3]}, ValueError, "couplings must be .*2-dimensional"),
        ({"couplings": np.eye(3)}, ValueError, "couplings must be .*integers, got float64"),
        ({"couplings": np.eye(3, dtype=bool)}, ValueError, "couplings must be .*integers"),
        ({"couplings": np.zeros((0, 0), int)}, ValueError, "couplings must be a non-empty"),
        ({"biases": [1, 2, 3]}, ValueError, "biases must be .*2-dimensional"),
        ({"biases": [[1, 2]]}, ValueError, r"biases have shape \(1, 2\)"),
        ({"biases": [[1.0, 2.0, 3.0]]}, ValueError, "biases must be .*integers"),
        (
            {"biases": np.full((1, 3), 2**63, np.uint64)},
            ValueError,
            "biases hold 92233720368547758",
        ),
        ({"biases": [[1, 2, 3]] * 2}, ValueError, "biases hold 2 vectors"),
        ({"second_moments": 1}, TypeError, "second_moments = 1 is not a bool"),
        ({"temperature": -1}, ValueError, "temperature = -1 "),
        ({"temperature": 1.0}, TypeError, "temperature = 1.0 is not an integer"),
        ({"settle_cycles": -1}, ValueError, "settle_cycles = -1 "),
        ({"interval_cycles": 2**32}, ValueError, "interval_cycles = 4294967296 "),
        ({"samples": "5"}, TypeError, "samples = '5' is not an integer"),
    ],
)
def test_a_malformed_job_is_refused_by_name(changes, error, message):
    make_job()
    with pytest.raises(error, match=message):
        make_job(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sums": [[1.5, 2.0]]}, "sums must be .*integers"),
        ({"products": [1, 2]}, "products must be .*2-dimensional"),
        ({"products": [[1, 2]]}, r"products have shape \(1, 2\)"),
        ({"clipped": [[0, 0, 0]]}, r"clipped have shape \(1, 3\)"),
        ({"cycles": {"load": 3}}, "cycles has the phases"),
        ({"cycles": CYCLES | {"wait": 1}}, "cycles has the phases"),
    ],
)
def test_a_malformed_readout_is_refused_by_name(changes, message):
    make_readout()
    with pytest.raises(ValueError, match=message):
        make_readout(**changes)


def test_a_job_does_not_change_under_its_owner():
    couplings = np.eye(3, dtype=np.int32)
    job = make_job(couplings=couplings)
    couplings[0, 0] = 9
    assert job.couplings[0, 0] == 1
    assert job.couplings.dtype == np.int32  # as it was given
    view = np.zeros((1, 4), np.int16)
    view[:, :3] = 4
    biases = view[:, :3]
    biases.setflags(write=False)  # but what it looks at may still change
    job = make_job(biases=biases)
    view[0, 0] = 9
    assert job.biases[0, 0] == 4
    with pytest.raises(ValueError, match="read-only"):
        job.couplings[0, 0] = 2
    with pytest.raises(FrozenInstanceError):
        job.samples = 6


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
def test_codes_keep_their_type_and_are_equal_across_types(kind):
    couplings = np.array([[-128, 1, 0], [1, 5, 1], [0, 1, 5]])
    job = make_job(couplings=couplings.astype(kind), biases=np.array([[1, -2, 3]], kind))
    assert job.couplings.dtype == job.biases.dtype == kind
    assert (job.largest_coupling, job.largest_bias) == (128, 3)
    wide = make_job(couplings=couplings, biases=[[1, -2, 3]])
    assert job == wide == Job.from_json(job.to_json())
    assert job.to_json() == wide.to_json()
    other = job.with_biases(np.array([[0, 0, 7]], np.int16))
    assert (other.couplings.dtype, other.biases.dtype) == (kind, np.int16)
    assert job != other == wide.with_biases([[0, 0, 7]])


def test_unsigned_codes_become_signed_ones():
    job = make_job(couplings=np.eye(3, dtype=np.uint8) * 200)
    assert job.couplings.dtype == np.int64
    assert job.largest_coupling == 200


@pytest.mark.parametrize(
    "thing",
    [
        make_job(),
        make_job(second_moments=False, biases=[[1, 2, 3], [-4, 0, 0]]),
        make_readout(),
        make_readout(products=None),
    ],
)
def test_json_round_trip(thing):
    again = type(thing).from_json(thing.to_json())
    assert again == thing
    assert again.to_json() == thing.to_json()
    for text in ("{}", "[]", thing.to_json().replace('"clipped"', '"x"').replace("samples", "y")):
        with pytest.raises(ValueError, match=f"not a {type(thing).__name__}: "):
            type(thing).from_json(text)


def test_equality_sees_every_field():
    job = make_job()
    assert job == make_job()
    assert job != make_job(samples=6)
    assert job != make_job(biases=[[1, 2, 4]])
    readout = make_readout()
    assert readout != make_readout(products=None)
    assert make_readout(products=None) != readout
    assert readout != make_readout(cycles=CYCLES | {"load": 4})
    assert readout != job
    assert readout.total_cycles == 3 * len(PHASES)


class Recorder(BaseUnit):
    """A unit that notes the streams it is given, and fails on demand."""

    def __init__(self) -> None:
        super().__init__(UnitSpec(cells=3), seed=4)
        self.streams: list[int] = []
        self.faulty = False
        self.closed = 0

    def _execute(self, job, stream):
        if self.faulty:
            raise UnitFault("adc_timeout")
        self.streams.append(stream)
        zeros = np.zeros(job.biases.shape, int)
        return Readout(sums=zeros, products=None, clipped=zeros, cycles=CYCLES)

    def close(self):
        self.closed += 1


def test_streams_count_discharges_that_ended_well():
    two = make_job(biases=[[0, 0, 0]] * 2, second_moments=False)
    with Recorder() as unit:
        assert isinstance(unit, Unit)
        list(unit.run_many([two, make_job(), make_job()]))
        assert unit.streams == [0, 2, 3]
        unit.run(two, stream=100)
        assert unit.stream == 4  # a given stream leaves the count alone
        unit.faulty = True
        with pytest.raises(UnitFault, match="adc_timeout"):
            unit.run(two)
        assert unit.stream == 4
        unit.faulty = False
        unit.run(two)
        assert unit.streams == [0, 2, 3, 100, 4]
    assert unit.closed == 1


def test_the_border_checks_job_stream_and_seed():
    unit = Recorder()
    with pytest.raises(ValueError, match="samples = 0"):
        unit.run(make_job(samples=0))
    with pytest.raises(ValueError, match="stream = -1"):
        unit.run(make_job(), stream=-1)
    with pytest.raises(TypeError, match=r"stream = 1\.0"):
        unit.run(make_job(), stream=1.0)
    with pytest.raises(ValueError, match="seed = -1"):
        BaseUnit(UnitSpec(), -1)
    assert unit.streams == []


# ---- the same couplings again ----------------------------------------------------------------


def test_a_job_with_other_biases_shares_its_couplings():
    job = make_job(couplings=np.eye(3, dtype=np.int16))
    other = job.with_biases([[4, 5, 6], [7, 8, 9]], second_moments=False, samples=2)
    assert other.couplings is job.couplings
    assert (other.biases.tolist(), other.samples) == ([[4, 5, 6], [7, 8, 9]], 2)
    assert (job.biases.tolist(), job.samples) == ([[1, 2, 3]], 5)
    assert (other.temperature, other.settle_cycles) == (job.temperature, job.settle_cycles)
    assert other.largest_bias == 9
    assert job.largest_coupling == other.largest_coupling == 1
    assert Job.from_json(other.to_json()) == other


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"biases": [[1, 2]]}, ValueError, r"biases have shape \(1, 2\)"),
        ({"biases": [[1, 2, 3]] * 2}, ValueError, "biases hold 2 vectors"),
        ({"biases": [[0.5, 2, 3]]}, ValueError, "biases must be .*integers"),
        ({"biases": [[1, 2, 3]], "samples": -1}, ValueError, "samples = -1 "),
        ({"biases": [[1, 2, 3]], "second_moments": 0}, TypeError, "second_moments = 0 is not"),
        ({"biases": [[1, 2, 3]], "couplings": 3}, TypeError, "has no use for couplings"),
        ({"biases": [[1, 2, 3]], "sample": 3}, TypeError, "has no use for sample"),
    ],
)
def test_other_biases_are_looked_at(changes, error, message):
    with pytest.raises(error, match=message):
        make_job().with_biases(**changes)


def test_symmetric_couplings_may_be_handed_over():
    couplings = np.eye(3, dtype=np.int16)
    others = {name: getattr(make_job(), name) for name in vars(make_job()) if name != "couplings"}
    job = Job.symmetric(couplings, **others)
    assert job.couplings is couplings
    assert not couplings.flags.writeable
    assert job == make_job(couplings=np.eye(3, dtype=int))
    with pytest.raises(TypeError, match="takes every field of Job"):
        Job.symmetric(couplings, biases=[[1, 2, 3]])
    with pytest.raises(ValueError, match="biases have shape"):
        Job.symmetric(couplings, **(others | {"biases": np.ones((1, 2), int)}))


@pytest.mark.parametrize("size", [3, 64, 100, 128])
def test_asymmetry_anywhere_is_found(size):
    rng = np.random.default_rng(size)
    codes = rng.integers(-100, 100, (size, size))
    codes = np.tril(codes) + np.tril(codes, -1).T
    biases = np.zeros((1, size), int)
    assert make_job(couplings=codes, biases=biases).couplings.shape == (size, size)
    i, j = sorted(rng.choice(size, 2, replace=False))
    codes[i, j] += 1
    with pytest.raises(ValueError, match=rf"not symmetric: entry \({i}, {j}\)"):
        make_job(couplings=codes, biases=biases)


def test_a_readout_takes_its_arrays_over():
    sums = np.array([[1, 2]])
    readout = make_readout(sums=sums)
    assert readout.sums.base is sums
    with pytest.raises(ValueError, match="read-only"):
        readout.sums[0, 0] = 3
    assert make_readout(sums=np.array([[1, 2]], np.int32)).sums.dtype == np.int64

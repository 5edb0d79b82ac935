"""What the solvers return, and the account they keep while they work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermokron.host.linalg.activity import Activity
from thermokron.host.linalg.arrays import Floats, Restore, library
from thermokron.host.linalg.definite import Definiteness, Several
from thermokron.host.linalg.refusals import NotConverged
from thermokron.host.linalg.settling import Settling
from thermokron.model import PHASES, Job, Readout, UnitSpec
from thermokron.model.checks import check_real

__all__ = ["LEAST_RTOL", "Account", "Result"]

#: The smallest residual that may be asked for.
LEAST_RTOL = 1e-15


@dataclass
class Account:
    """Costs and incidents of one call, added up over its runs; attributes as of `Result`."""

    samples: int = 0
    runs: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    port_seconds: float = 0.0
    bytes_to_unit: int = 0
    bytes_from_unit: int = 0
    activity: Activity = field(default_factory=Activity)
    digital_flops: int = 0
    reruns: int = 0
    repairs: int = 0
    shrinkage: float = 0.0
    clipped: int = 0
    _couplings: NDArray[np.signedinteger] | None = None

    def enter(self, spec: UnitSpec, job: Job, readout: Readout) -> None:
        """Enter one run of the unit."""
        self.runs += 1
        for phase, cycles in readout.cycles.items():
            self.seconds[phase] += cycles * spec.clock_s
        couplings, biases, results = spec.port_bytes(job)
        ports = spec.port_cycles(job)
        moved = job.couplings is not self._couplings  # else a bank of the unit has them
        self._couplings = job.couplings
        self.activity += Activity.of(spec, job, moved=moved)
        ports["couplings"] *= moved
        self.port_seconds += sum(ports.values()) * spec.clock_s
        self.bytes_to_unit += couplings * moved
        self.bytes_to_unit += biases
        self.bytes_from_unit += results

    def flops(self, count: float) -> None:
        """Enter additions, multiplications, divisions and square roots, one each."""
        self.digital_flops += round(count)

    def known(self) -> dict[str, Any]:
        """All of it, by name."""
        known = {name: held for name, held in vars(self).items() if not name.startswith("_")}
        return known | {"seconds": dict(self.seconds)}

    def add(self, other: Account) -> None:
        """Enter all that another account holds."""
        self.runs += other.runs
        for phase, seconds in other.seconds.items():
            self.seconds[phase] += seconds
        self.port_seconds += other.port_seconds
        self.bytes_to_unit += other.bytes_to_unit
        self.bytes_from_unit += other.bytes_from_unit
        self.activity += other.activity
        self.digital_flops += other.digital_flops
        self.reruns += other.reruns
        self.repairs += other.repairs
        self.shrinkage = max(self.shrinkage, other.shrinkage)
        self.clipped += other.clipped


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A value that the unit sampled, with its uncertainty and its cost.

    Attributes
    ----------
    value : array or tensor
        The result, of the input's kind, dtype and device.
    samples : int
        Samples per run, as asked for.
    runs : int
        Runs of the unit, those that had to be repeated included.
    seconds : dict of str to float
        Simulated or real time of these runs by phase: "load", of couplings and biases into the
        DACs, "discharge", "settle", "sample", and "results" that leave while the array waits.
    port_seconds : float
        For how long what they moved takes the unit's ports, at the unit's clock, see
        `UnitSpec.port_cycles`. Beside the runs' time, not in it: on streams much of it passes while
        the array is at work.
    bytes_to_unit, bytes_from_unit : int
        What passed the unit's port for them, see `UnitSpec.port_bytes`.
    activity : Activity
        Codes, conversions and products: what the energy of these runs depends on.
    digital_flops : int
        Floating-point operations of the host: additions, multiplications, divisions and square
        roots count 1 each, so a product (m, k) x (k, n) counts 2mkn; rounding, comparing and
        copying are free. What is worked out on demand is left out.
    reruns : int
        Runs repeated because samples clipped, used too little of the ADC's range, or showed a mode
        slower than assumed.
    repairs : int
        Blocks that had become indefinite, or nearly: Schur complements, which were mended, and an
        inverse itself, where it was looked at, which is left to `nearest_definite`.
    shrinkage : float
        Largest part, 0 to 1, by which off-diagonal couplings of a block were shrunk to keep the
        programmed matrix positive definite.
    clipped : int
        Clipped codes in the runs that made the value.
    settling : Settling or None
        How long the array settled before it was read, and the filter that this is; of the slowest
        block, where there are several. None where nothing was solved for.
    """

    value: Any
    samples: int
    runs: int
    seconds: Mapping[str, float]
    port_seconds: float
    bytes_to_unit: int
    bytes_from_unit: int
    activity: Activity
    digital_flops: int
    reruns: int
    repairs: int
    shrinkage: float
    clipped: int
    settling: Settling | None = None
    _error: Callable[[], Floats] = field(repr=False)
    _definiteness: Definiteness | Several | None = field(default=None, repr=False)
    _residual: Callable[[], float] | None = field(default=None, repr=False)
    _restore: Restore = field(repr=False)

    @classmethod
    def of(
        cls,
        value: Floats,
        error: Callable[[], Floats],
        restore: Restore,
        account: Account,
        *,
        residual: Callable[[], float] | None = None,
        definiteness: Definiteness | Several | None = None,
        settling: Settling | None = None,
    ) -> Result:
        """The result that an account closes with; the callables are for those who ask."""
        return cls(
            value=restore(value),
            _error=error,
            _residual=residual,
            _definiteness=definiteness,
            _restore=restore,
            settling=settling,
            **account.known(),
        )

    @classmethod
    def stacked(cls, batch: tuple[int, ...], results: Sequence[Result]) -> Result:
        """One of several of the same shape, in the order of their indices in the `batch`."""
        account = Account(samples=results[0].samples)
        for each in results:
            account.add(each.cost)
        settled = [each.settling for each in results if each.settling is not None]
        parts = [each._definiteness for each in results if each._definiteness is not None]
        return replace(
            results[0],
            value=_joined(batch, [each.value for each in results]),
            settling=min(settled, key=lambda settling: settling.rate, default=None),
            _error=partial(_errors, batch, results),
            _definiteness=Several(batch, parts) if parts else None,
            _residual=None if results[0]._residual is None else partial(_residual, results),
            **account.known(),
        )

    def with_cost_of(self, before: Account) -> Result:
        """The same result, with what was spent before it."""
        total = Account(samples=self.samples)
        total.add(before)
        total.add(self.cost)
        return replace(self, **total.known())

    @property
    def cost(self) -> Account:
        """The account that it was closed with."""
        names = [f.name for f in fields(Account) if not f.name.startswith("_")]
        known = {name: getattr(self, name) for name in names}
        return Account(**known | {"seconds": dict(self.seconds)})

    @property
    def hardware_seconds(self) -> float:
        """Time of the runs, load to done; `port_seconds` is beside it."""
        return sum(self.seconds.values())

    @cached_property
    def standard_error(self) -> Any:
        """One standard deviation per entry of `value`, of the same kind and shape.

        Worked out when first asked for. Of an inverse, O(n³): sampling, ADC quantisation, the
        rounding of the couplings, and as much of a unit's flaws as the residual 1 - XM shows, but
        of one in blocks. From 50 samples on, errors lie within one of it for 66% to 76% and within
        two for 94% to 99%; of fewer, or with 4 bits and less, it is too large rather than small.

        Of a solution, O(n³ + n²k), two eigendecompositions: sampling, ADC and bias quantisation,
        what settling left undone and rounded couplings did, and as much of a unit's flaws as the
        residual, worked out exactly, shows (`thermokron.host.linalg.spread`). Errors lie within one
        of it for 65% to 74%, within two for 95% or more, on ideal and on flawed arrays, refined or
        not.
        """
        return self._restore(self._error())

    @cached_property
    def residual(self) -> float | None:
        """`solve` only, and `newton_schulz`: the worst column's ‖b - M x‖ / ‖b‖.

        Worked out when first asked for, 2n² operations a column, unless refinement has done so.
        """
        return None if self._residual is None else self._residual()

    @cached_property
    def indefinite(self) -> bool | None:
        """`inv` only: whether the value is not positive definite, as its noise may make it.

        Found when first asked for, by what costs less of Cholesky's factorisation, n³/3 operations,
        and 32 steps of Lanczos, which beyond 192 rows may miss it.
        """
        return None if self._definiteness is None else self._definiteness.indefinite()[0]

    def looked_at(self) -> Result:
        """The same, of an inverse, with what it costs to find out whether it is `indefinite`.

        If it is, that counts among `repairs`.
        """
        if self._definiteness is None:
            return self
        indefinite, flops = self._definiteness.indefinite()
        seen = replace(
            self, repairs=self.repairs + indefinite, digital_flops=self.digital_flops + flops
        )
        vars(seen)["indefinite"] = indefinite
        return seen

    def nearest_definite(self) -> Result:
        """`inv` only: the nearest positive definite value; the same if it is definite.

        Nearest in Frobenius norm, of M scaled to unit diagonal, with no eigenvalue below 1/‖M‖:
        one of 11n³ operations, counted in `digital_flops`. Closer to the inverse than the value is,
        so that the error bars hold; but no longer unbiased.

        Raises
        ------
        ValueError
            Of what is no inverse.
        """
        if self._definiteness is None:
            raise ValueError("this result is no inverse, which alone may be definite")
        if not self.indefinite:
            return self
        nearest, flops = self._definiteness.nearest()
        return replace(
            self,
            value=self._restore(nearest.value * nearest.outer),
            digital_flops=self.digital_flops + flops,
            _definiteness=nearest,
        )

    def newton_schulz(self, rtol: float = 1e-12) -> Result:
        """`inv` only: the inverse to working precision, by products on the host.

        Newton and Schulz's iteration, X ← X (2 - AX) of A, M scaled to unit diagonal, until
        ‖1 - AX‖/√n is `rtol`: 4n³ operations a step, each of which squares that. An indefinite
        value is made definite first, and one that is too large scaled, so that it converges. A
        factorisation takes n³ operations in all: this is for machines whose products are that much
        faster. `residual` is what is left, and the error bar what that does.

        Warns
        -----
        NotConverged
            If that was not reached, as in the precision of M.

        Raises
        ------
        TypeError, ValueError
            Of what is no inverse, or if `rtol` is not from 1e-15 to 1.
        """
        if self._definiteness is None:
            raise ValueError("this result is no inverse, which alone can be iterated on")
        rtol = check_real("rtol", rtol, LEAST_RTOL, 1.0)
        better, found = self._definiteness.polished(rtol)
        residual = max(each.residual for each in found)
        if residual > rtol:
            warnings.warn(
                f"rtol = {rtol:g} was not reached: a residual of {residual:.2g} is left after "
                f"{max(each.steps for each in found)} steps",
                NotConverged,
                stacklevel=2,
            )
        errors = np.stack([np.abs(each.error) for each in found]).reshape(np.shape(self.value))
        return replace(
            self,
            value=self._restore(better.value * better.outer),
            digital_flops=self.digital_flops + sum(each.flops for each in found),
            _definiteness=better,
            _error=partial(np.copy, errors),
            _residual=partial(float, residual),
        )

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.value.shape)
        incidents = [
            f"{self.reruns} reruns" * bool(self.reruns),
            f"{self.repairs} repairs" * bool(self.repairs),
            "indefinite" * bool(self.indefinite),
            f"couplings shrunk by {self.shrinkage:.1%}" * bool(self.shrinkage),
            f"{self.clipped} clipped codes" * bool(self.clipped),
            "" if self.settling is None else str(self.settling),
        ]
        costs = [
            f"{self.runs} runs of {self.samples} samples",
            f"{self.hardware_seconds:.3g} s of hardware",
            f"{self.port_seconds:.3g} s on its ports",
            f"{self.digital_flops:.3g} digital flops",
        ]
        return f"<Result {shape}: {', '.join(costs + [i for i in incidents if i])}>"


def _joined(batch: tuple[int, ...], values: Sequence[Any]) -> Any:
    whole = library(values[0]).stack(list(values))
    return whole.reshape((*batch, *whole.shape[1:]))


def _errors(batch: tuple[int, ...], results: Sequence[Result]) -> Floats:
    errors: Floats = _joined(batch, [each._error() for each in results])
    return errors


def _residual(results: Sequence[Result]) -> float:
    return max(each.residual or 0.0 for each in results)

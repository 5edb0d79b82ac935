"""What the solvers return, and the account they keep while they work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from thermokron.host.linalg.arrays import Floats, Restore
from thermokron.model import Readout, UnitSpec

__all__ = ["Account", "Result"]


@dataclass
class Account:
    """Costs and incidents of one call, added up over its runs."""

    samples: int
    runs: int = 0
    hardware_seconds: float = 0.0
    digital_flops: int = 0
    reruns: int = 0
    repairs: int = 0
    shrinkage: float = 0.0
    clipped: int = 0

    def enter(self, spec: UnitSpec, readout: Readout) -> None:
        """Enter one run of the unit."""
        self.runs += 1
        self.hardware_seconds += readout.total_cycles * spec.clock_s

    def flops(self, count: float) -> None:
        """Enter additions, multiplications, divisions and square roots, one each."""
        self.digital_flops += round(count)


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A value that the unit sampled, with its uncertainty and its cost.

    Attributes
    ----------
    value : array or tensor
        The result, of the input's kind, dtype and device.
    standard_error : array or tensor
        One standard deviation per entry of `value`, of the same kind and shape: sampling and ADC
        quantisation, not the rounding of the couplings. Worked out when first asked for.
    samples : int
        Samples per run, as asked for.
    runs : int
        Runs of the unit, those that had to be repeated included.
    hardware_seconds : float
        Simulated or real time of these runs, load to done, in seconds; no bus traffic.
    digital_flops : int
        Floating-point operations of the host: additions, multiplications, divisions and square
        roots count 1 each, so a product (m, k) x (k, n) counts 2mkn; rounding, comparing and
        copying are free. What only the standard error needs is left out.
    reruns : int
        Runs repeated because samples clipped or a mode was slower than assumed.
    repairs : int
        Blocks whose Schur complement had become indefinite, or nearly, and was repaired.
    shrinkage : float
        Largest part, 0 to 1, by which off-diagonal couplings of a block were shrunk to keep the
        programmed matrix positive definite.
    clipped : int
        Clipped codes in the runs that made the value.
    residual : float or None
        `solve` only: the worst column's ‖b - M x‖ / ‖b‖ as measured, which costs 2n² per column.
    """

    value: Any
    samples: int
    runs: int
    hardware_seconds: float
    digital_flops: int
    reruns: int
    repairs: int
    shrinkage: float
    clipped: int
    residual: float | None = None
    _error: Callable[[], Floats] = field(repr=False)
    _restore: Restore = field(repr=False)

    @classmethod
    def of(
        cls,
        value: Floats,
        error: Callable[[], Floats],
        restore: Restore,
        account: Account,
        residual: float | None = None,
    ) -> Result:
        """The result that an account closes with; `error` makes the standard error on demand."""
        return cls(
            value=restore(value), _error=error, _restore=restore, residual=residual, **vars(account)
        )

    @cached_property
    def standard_error(self) -> Any:
        """One standard deviation per entry of `value`."""
        return self._restore(self._error())

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.value.shape)
        incidents = [
            f"{self.reruns} reruns" * bool(self.reruns),
            f"{self.repairs} repairs" * bool(self.repairs),
            f"couplings shrunk by {self.shrinkage:.1%}" * bool(self.shrinkage),
            f"{self.clipped} clipped codes" * bool(self.clipped),
            "" if self.residual is None else f"relative residual {self.residual:.1e}",
        ]
        costs = [
            f"{self.runs} runs of {self.samples} samples",
            f"{self.hardware_seconds:.3g} s of hardware",
            f"{self.digital_flops:.3g} digital flops",
        ]
        return f"<Result {shape}: {', '.join(costs + [i for i in incidents if i])}>"

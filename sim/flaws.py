"""How a simulated unit's surroundings may misbehave, for benches and tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from thermokron.model.checks import check_integer, check_real

__all__ = ["FrontEndFlaws"]

#: How large probabilities may be. A stream that stalls for ever would never be flushed.
PROBABILITIES = {"glitch": 1.0, "stall": 1.0, "stream_stall": 0.95}


@dataclass(frozen=True, kw_only=True)
class FrontEndFlaws:
    """How converters and streams misbehave at a unit's pins. All off by default.

    Attributes
    ----------
    silent_from, stuck_from : int or None
        From this sample of a discharge on (0 is the first) DRDY does not rise, or does not fall.
    latency_cycles : int or None
        DRDY comes that many clock cycles late at most, uniformly drawn, in steps of a cycle.
    early_cycles : int or None
        DRDY rises that many clock cycles before CONVST does, with nothing to say.
    glitch : float or None
        Probability, 0 to 1, that in a clock cycle DRDY is the opposite of what it is to be;
        independent draws.
    stall : float or None
        Probability, 0 to 1, that a DAC is not ready in a clock cycle; independent draws.
    stream_stall : float or None
        Probability, 0 to 0.95, that in a clock cycle a stream into the unit has no data, or that of
        the results is not taken; independent draws.
    seed : int
        Seed of those draws.
    """

    silent_from: int | None = None
    stuck_from: int | None = None
    latency_cycles: int | None = None
    early_cycles: int | None = None
    glitch: float | None = None
    stall: float | None = None
    stream_stall: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in PROBABILITIES:
                if value is not None:
                    check_real(f.name, value, 0.0, PROBABILITIES[f.name])
            elif value is not None:
                check_integer(f.name, value, 0, 2**32 - 1)

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, JSON-able; `FrontEndFlaws(**flaws.to_dict()) == flaws`."""
        return asdict(self)

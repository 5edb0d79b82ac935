"""What a plan says should come out."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Claim"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that should hold on every network it names.

    Attributes
    ----------
    contender, against : str
        Who is compared with whom, by name.
    measure : "epochs" or "accuracy"
        The quotient of median epochs to the last target, or how many percentage points the
        contender's median test accuracy is lower.
    at_most : float
        What that should not exceed.
    networks : list of str
        By name.
    """

    contender: str
    against: str
    at_most: float
    networks: list[str]
    measure: str = "epochs"

    def __post_init__(self) -> None:
        if self.measure not in ("epochs", "accuracy"):
            raise ValueError(f"measure = {self.measure!r} is unknown; legal: epochs, accuracy")
        if not self.networks:
            raise ValueError("networks needs one entry at least")

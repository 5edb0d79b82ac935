"""Who trains: optimisers as predictions know them, by names such as "kfac-solve@10".

Of K-FAC with "@", the steps between renewals of what is made of the factors, and with another
number after "/" those between updates of the factors: "kfac-exact@100/10".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from thermokron.host.linalg import check_settle
from thermokron.model.checks import check_integer

__all__ = ["OPTIMIZERS", "Optimizer", "optimizer"]

KINDS = ("sgd", "adam", "kfac-exact", "kfac-solve", "kfac-inverse")
#: What is compared where nothing else is asked for.
OPTIMIZERS = (
    "sgd",
    "adam",
    *(f"{kind}@{often}" for kind in KINDS[2:] for often in ("1", "10", "10/10", "100")),
)

_NAME = re.compile(r"([a-z-]+)(?:@([0-9]+)(?:/([0-9]+))?)?")


@dataclass(frozen=True)
class Optimizer:
    """An optimiser.

    Attributes
    ----------
    kind : str
        "sgd", "adam", "kfac-exact" (both factors inverted on the host), "kfac-solve" (the unit
        solves with both factors, Method 2) or "kfac-inverse" (it samples both inverses, Method 1,
        and the host applies them).
    refresh : int
        Steps between renewals of what is made of the factors, `inverse_interval` of `KFAC`.
    factor_interval : int
        Steps between updates of the factors.
    samples : int or None
        Readings of a solution, 1 if not given, or samples of an inverse, so many per row.
    settle : float or str
        Of solutions, see `thermokron.host.kfac.KFAC`.
    """

    kind: str
    refresh: int = 1
    factor_interval: int = 1
    samples: int | None = None
    settle: float | str = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"optimizer = {self.kind!r} is unknown; legal: {', '.join(KINDS)}")
        check_integer("refresh", self.refresh, 1, 10**6)
        check_integer("factor_interval", self.factor_interval, 1, 10**6)
        if self.samples is not None:
            check_integer("samples", self.samples, 1, 2**40)
        check_settle(self.settle)

    @property
    def kfac(self) -> bool:
        """Whether it is second-order."""
        return self.kind.startswith("kfac")

    @property
    def on_unit(self) -> bool:
        """Whether it needs a unit."""
        return self.kind in ("kfac-solve", "kfac-inverse")

    @property
    def name(self) -> str:
        """By which it is asked for."""
        if not self.kfac:
            return self.kind
        factors = "" if self.factor_interval == 1 else f"/{self.factor_interval}"
        return f"{self.kind}@{self.refresh}{factors}"

    def __str__(self) -> str:
        titles = {
            "sgd": "SGD",
            "adam": "Adam",
            "kfac-exact": "K-FAC, exact",
            "kfac-solve": "K-FAC, unit solves",
            "kfac-inverse": "K-FAC, unit inverts",
        }
        if not self.kfac:
            return titles[self.kind]
        told = f"{titles[self.kind]}, {_every(self.refresh)}"
        if self.factor_interval > 1:
            told += f", factors {_every(self.factor_interval)}"
        return told


def _every(steps: int) -> str:
    return "every step" if steps == 1 else f"every {steps} steps"


def optimizer(name: str, **options: object) -> Optimizer:
    """An optimiser by name, see above.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists the kinds.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in KINDS or (match[2] and not match[1].startswith("kfac")):
        raise ValueError(
            f"optimizer = {name!r} is unknown; legal: {', '.join(KINDS)}, those of K-FAC with "
            "@STEPS between renewals, such as kfac-solve@10, or kfac-exact@100/10 with factors "
            "every ten"
        )
    often = {"refresh": int(match[2] or 1), "factor_interval": int(match[3] or 1)}
    return Optimizer(match[1], **often, **options)  # type: ignore[arg-type]

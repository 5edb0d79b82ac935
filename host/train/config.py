"""What to train, and how: every choice of a run, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from thermokron.host import engines
from thermokron.host.kfac import diagonal, exact
from thermokron.host.kfac.choices import check_choices
from thermokron.host.kfac.hyperparameters import Hyperparameters, check_count
from thermokron.host.kfac.solve.inverses import INVERSE_SAMPLES, SOLVE_SAMPLES
from thermokron.host.linalg import GUARDS, Guard, Settle, check_settle
from thermokron.host.train.defaults import suits_of
from thermokron.host.train.options import KFAC_OPTIONS
from thermokron.host.train.schedules import SCHEDULES
from thermokron.model.checks import check_integer, check_real

__all__ = ["ENGINES", "INVERTERS", "OPTIMIZERS", "UNIT_ENGINES", "TrainConfig"]

OPTIMIZERS = ("kfac", "adam", "sgd")
#: Engines that are thermodynamic units.
UNIT_ENGINES = engines.ENGINES
#: Ways to invert that need none.
INVERTERS = {"exact": exact, "diagonal": diagonal}
#: Options of `KFAC` that are one of a few words.
KFAC_CHOICES = ("fisher", "sharing", "damping_mode", "method")
#: What may invert K-FAC's factors.
ENGINES = (*UNIT_ENGINES, *INVERTERS)


def _suited() -> Any:
    """A field that is None until `TrainConfig` has looked up what suits the network."""
    return field(default=None)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train, and how.

    Attributes
    ----------
    network : str
        "mlp", "cnn" or "vit" on handwritten digits, "graph" on molecules, or "module:function"
        for a function that returns a task, see `thermokron.host.train.tasks`.
    hidden : tuple of int, optional
        Widths of the network's hidden layers, see `thermokron.host.train.networks`; if not
        given, widths that suit it.
    optimizer : "kfac", "adam" or "sgd"
        K-FAC preconditions plain SGD with momentum.
    engine : "numeric", "compiled", "cosim", "exact" or "diagonal"; None for Adam and SGD
        What inverts the factors: a thermodynamic unit on an engine of that name, Cholesky
        factorisation on the host, or the inverse of the diagonal alone.
    epochs, batch_size : int
        Passes over the training examples, and examples per step; the last batch may be smaller.
    lr : float
        Learning rate.
    schedule : str
        How the learning rate changes, one of `schedules.SCHEDULES`.
    warmup : int
        Steps over which it rises linearly first.
    momentum : float
        Momentum of SGD and K-FAC.
    weight_decay : float
        The optimiser's own: decoupled (AdamW) with Adam, added to the gradient with SGD, and
        added to the preconditioned gradient with K-FAC.
    damping : float
        Tikhonov damping of K-FAC.
    adapt_damping : bool
        Adapt the damping from there by the rule of Levenberg and Marquardt.
    samples : int, optional
        Samples per run of the unit: of an inverse 1,000, of a solution one reading, if not given.
    settle : float or str
        Of solutions on the unit: the part of a factor's slowest mode that may be left undone before
        they are read, or a time such as "5tau".
    equilibrate : bool
        Whether factors are scaled to unit diagonal before the unit inverts them.
    guard : str
        How rounding to coupling codes is kept from leaving a factor indefinite, one of
        `thermokron.host.linalg.GUARDS`; see `thermokron.host.linalg.inv`.
    seed : int
        Decides split, initial weights, order of the examples and the unit's noise.

    The others are options of `thermokron.host.kfac.KFAC`. Where `epochs`, `batch_size`, `lr`,
    `damping` and `fisher` are not given, they are what suits network and optimiser. What does not
    apply to the optimiser or the engine is ignored, so that one set of options serves them all.

    Raises
    ------
    ValueError, TypeError
        If a value is illegal; the message names it and the legal range.
    """

    network: str = "mlp"
    hidden: tuple[int, ...] | None = None
    optimizer: str = "kfac"
    engine: str | None = "numeric"
    epochs: int = _suited()
    batch_size: int = _suited()
    lr: float = _suited()
    schedule: str = "constant"
    warmup: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0
    damping: float = _suited()
    adapt_damping: bool = False
    samples: int | None = None
    settle: Settle = 0.1
    equilibrate: bool = True
    guard: Guard = "lanczos"
    fisher: str = _suited()
    mc_samples: int = 1
    sharing: str = "expand"
    damping_mode: str = "factored"
    method: str | None = None
    decay: float = 0.95
    factor_interval: int = 1
    inverse_interval: int = 1
    refresh_threshold: float | None = None
    kl_clip: float | None = 1e-2
    norm_constraint: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.network, str):
            raise TypeError(f"network = {self.network!r} is not a string")
        self._check_choices()
        suits = suits_of(self.network, self.hidden)
        for name, value in (vars(suits) | {"lr": suits.lr[self.optimizer]}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_integer("epochs", self.epochs, 1, 10**6)
        check_integer("batch_size", self.batch_size, 1, 10**6)
        check_integer("warmup", self.warmup, 0, 10**9)
        check_integer("seed", self.seed, 0, 2**32 - 1)
        check_real("momentum", self.momentum, 0.0, 0.9999)
        check_real("weight_decay", self.weight_decay, 0.0, 1e6)
        check_real("damping", self.damping, 1e-12, 1e12)
        self._check_hidden()
        check_real("lr", self.lr, 1e-30, 1e37)
        self._check_kfac()

    def _check_choices(self) -> None:
        for name, legal in (
            ("optimizer", OPTIMIZERS),
            ("guard", GUARDS),
            ("schedule", tuple(SCHEDULES)),
        ):
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} = {getattr(self, name)!r} is unknown; legal: {legal}")
        if self.optimizer == "kfac" and self.engine not in ENGINES:
            raise ValueError(
                f"engine = {self.engine!r} does not go with optimizer = 'kfac'; legal: {ENGINES}"
            )
        if self.optimizer != "kfac" and self.engine is not None:
            raise ValueError(
                f"engine = {self.engine!r} does not go with optimizer = {self.optimizer!r}, which "
                "inverts nothing; legal: None; on the command line, no --engine"
            )
        for name in ("adapt_damping", "equilibrate"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} = {getattr(self, name)!r}; legal: True, False")

    def _check_hidden(self) -> None:
        if self.hidden is None:
            return
        if not isinstance(self.hidden, Sequence) or isinstance(self.hidden, str):
            raise TypeError(f"hidden = {self.hidden!r} is no sequence of integers; legal: (32,)")
        for width in self.hidden:
            check_integer("hidden", width, 1, 10**5)

    def _check_kfac(self) -> None:
        """What `KFAC` would refuse, before a unit is opened and a network is made."""
        if self.samples is not None:
            least = 1 if self.method_used == "solve" else 2
            check_integer("samples", self.samples, least, 2**20)
        check_settle(self.settle)
        options = self.kfac_options
        choices = {name: options.pop(name) for name in KFAC_CHOICES}
        check_choices(choices)
        check_count("mc_samples", options.pop("mc_samples"))
        for name, value in options.items():
            Hyperparameters(**{name: value}).at(name, 0)
        if self.optimizer != "kfac":
            return
        if choices["damping_mode"] == "exact" and self.engine != "exact":
            raise ValueError(
                f"damping_mode = 'exact' needs eigendecompositions, which engine = {self.engine!r} "
                "does not make; legal: engine = 'exact'"
            )
        if choices["method"] == "solve" and choices["damping_mode"] == "exact":
            raise ValueError("method = 'solve' needs damping_mode = 'factored'")
        if choices["method"] == "solve" and self.engine == "diagonal":
            raise ValueError("method = 'solve' cannot use engine = 'diagonal', which only inverts")

    @property
    def label(self) -> str:
        """Optimiser and engine in a few words."""
        return f"{self.optimizer} ({self.engine})" if self.engine else self.optimizer

    @property
    def method_used(self) -> str:
        """How K-FAC applies its blocks: if not said, units solve, and everything else inverts."""
        return self.method or ("solve" if self.engine in UNIT_ENGINES else "inverse")

    @property
    def samples_used(self) -> int:
        """Samples per run of a unit."""
        if self.samples is not None:
            return self.samples
        return SOLVE_SAMPLES if self.method_used == "solve" else INVERSE_SAMPLES

    @property
    def kfac_options(self) -> dict[str, Any]:
        """Keyword arguments of `KFAC`, but for learning rate, damping and what inverts."""
        return {name: getattr(self, name) for name in KFAC_OPTIONS}

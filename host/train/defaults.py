"""What suits each network that comes along, known without torch so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CAUTIOUS", "OWN", "SUITS", "Suits", "help_table", "page_table", "suits_of"]


@dataclass(frozen=True)
class Suits:
    """What suits a network: learning rates by optimiser, and the rest."""

    lr: dict[str, float]
    epochs: int = 10
    batch_size: int = 144
    damping: float = 0.03
    fisher: str = "empirical"


#: What tables call an MLP of other widths than the demo's, whose rate is too long for a large one.
RESIZED = "mlp, other widths"

#: Learning rates of the MLP are those that `make demo` found best on other seeds than it reports.
#: The others' K-FAC has a small damping and a small rate, which on seeds 10 to 12 was twice as fast
#: and steadier than ten times of both: their factors are small, and a damping that is not hides
#: the curvature.
SUITS = {
    "mlp": Suits({"kfac": 0.07, "adam": 0.04, "sgd": 0.5}),
    RESIZED: Suits({"kfac": 0.01, "adam": 0.02, "sgd": 0.2}, damping=0.003),
    "cnn": Suits({"kfac": 0.005, "adam": 0.02, "sgd": 0.1}, damping=0.001),
    "vit": Suits({"kfac": 0.001, "adam": 0.01, "sgd": 0.1}, damping=0.0003, fisher="mc"),
    "graph": Suits(
        {"kfac": 0.003, "adam": 0.01, "sgd": 0.05},
        epochs=30,
        batch_size=50,
        damping=0.0003,
        fisher="ggn",
    ),
}
#: The same for networks that are not known here.
CAUTIOUS = Suits({"kfac": 0.01, "adam": 0.001, "sgd": 0.05}, damping=0.01)

#: What tables call any network that is not known here.
OWN = "your own"


def suits_of(network: str, hidden: tuple[int, ...] | None) -> Suits:
    """What suits a network, by its name and the widths it was given."""
    if network == "mlp" and hidden not in (None, (32,), [32]):
        return SUITS[RESIZED]
    return SUITS.get(network, CAUTIOUS)


COLUMNS = ("K-FAC's lr", "Adam's", "SGD's", "epochs", "batch size", "damping", "fisher")


def _rows(networks: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for network in networks:
        suits = SUITS.get(network, CAUTIOUS)
        rates = [f"{suits.lr[optimizer]:g}" for optimizer in ("kfac", "adam", "sgd")]
        others = (str(suits.epochs), str(suits.batch_size), f"{suits.damping:g}", suits.fisher)
        rows.append((network, *rates, *others))
    return rows


def help_table(networks: Sequence[str]) -> str:
    """The defaults of some networks for a terminal, a row each under a heading."""
    table = [("", *COLUMNS), *_rows(networks)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    text = "defaults [*], which suit the network:\n"
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        text += "  " + "  ".join(cells).rstrip() + "\n"
    return text


def page_table() -> str:
    """The defaults of all networks in Markdown, as docs/training.md has them."""
    table = [("", *COLUMNS), ("---",) * (len(COLUMNS) + 1)]
    table += _rows([*SUITS, OWN])
    return "".join("| " + " | ".join(row).strip() + " |\n" for row in table).replace("|  |", "| |")

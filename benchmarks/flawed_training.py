"""What flaws of an array do to K-FAC: epochs to a training loss of 0.01, calibrated or not.

    python benchmarks/flawed_training.py [--seeds 5] [--epochs 16]

The MLP on handwritten digits with its defaults (64-32-10, one reading a column) on 16 numeric
cells with 8-bit couplings. Every seed is another device, another network and other noise. Medians,
the worst in brackets, beside the same on the ideal array; "-" where it was not reached.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from measured import table

from thermokron.host import calibrate
from thermokron.host.train import TrainConfig, train
from thermokron.model import ArrayPhysics, NumericUnit, UnitSpec, preset

SPEC, TARGET = UnitSpec(cells=16), 0.01
FLAWS = {
    "ideal": ArrayPhysics(),
    "couplings 5%": ArrayPhysics(coupling_mismatch=0.05),
    "couplings 20%": ArrayPhysics(coupling_mismatch=0.2),
    "one-way couplings 5%": ArrayPhysics(coupling_asymmetry=0.05),
    "gains 2%": ArrayPhysics(adc_gain_error=0.02),
    "cell offsets 1%": ArrayPhysics(cell_offset=0.01),
    "channel offsets 1%": ArrayPhysics(adc_offset=0.01),
    "cell offsets 5%": ArrayPhysics(cell_offset=0.05),
    "noise powers 50%": ArrayPhysics(noise_mismatch=0.5),
    "τ 20%": ArrayPhysics(tau_mismatch=0.2),
    "coupling amplifiers, 0.1 τ": ArrayPhysics(
        coupling_bandwidth_hz=1.0 / (2.0 * math.pi * 0.1 * SPEC.tau_s)
    ),
    "ADC noise 1%, INL 1 LSB": ArrayPhysics(adc_noise=0.01, adc_inl_lsb=1.0),
    "couplings 5%, gains 2%, offsets 1%, noise 5%, τ 5%": ArrayPhysics(
        coupling_mismatch=0.05,
        cell_offset=0.01,
        noise_mismatch=0.05,
        tau_mismatch=0.05,
        adc_gain_error=0.02,
        adc_offset=0.01,
    ),
}
PRESETS = ("discrete_board",)
#: Of these calibration knows nothing.
PASSED_OVER = {"ideal", "ADC noise 1%, INL 1 LSB"}


def epochs(spec: UnitSpec, physics: ArrayPhysics, seed: int, known: bool, most: int) -> float:
    """To a training loss of 0.01; infinite if not within `most`."""
    physics = replace(physics, device_seed=seed)
    config = TrainConfig(network="mlp", optimizer="kfac", engine="numeric", seed=seed, epochs=most)
    try:
        calibration = calibrate(NumericUnit(spec, physics)) if known else None
        run = train(config, spec=spec, physics=physics, calibration=calibration)
    except (FloatingPointError, ValueError):
        return math.inf
    losses = [run.initial_loss, *run.train_loss]
    for epoch, (before, loss) in enumerate(pairwise(losses)):
        if loss <= TARGET:  # between the ends of epochs by the logarithm
            return epoch + math.log(before / TARGET) / math.log(before / loss)
    return math.inf


def shown(found: Sequence[float]) -> str:
    """The median, and the worst."""
    middle, worst = statistics.median(found), max(found)
    return " ".join(
        "-" if each == math.inf else text
        for each, text in ((middle, f"{middle:.2f}"), (worst, f"({worst:.2f})"))
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=16, help="at most (default: 16)")
    args = parser.parse_args()
    cases = {name: (SPEC, physics) for name, physics in FLAWS.items()}
    for name in PRESETS:
        cases[f"preset {name}"] = preset(name, cells=16)
    rows: list[list[str]] = []
    ideal = 0.0
    for name, (spec, physics) in cases.items():
        row = [name]
        for known in (False, True):
            if known and name in PASSED_OVER:
                row += ["", ""]
                continue
            found = [epochs(spec, physics, s, known, args.epochs) for s in range(args.seeds)]
            ideal = ideal or statistics.median(found)
            row += [shown(found), f"{statistics.median(found) / ideal:.2f}"]
        rows.append(row)
        print("|", " | ".join(row), "|", flush=True)
    print(table(["", "epochs", "of ideal", "calibrated", "of ideal"], rows))


if __name__ == "__main__":
    main()

"""Saved and resumed equals uninterrupted, exactly, device noise included."""

from __future__ import annotations

import pytest
import torch
from kfac_cases import CASES, DTYPE
from torch import nn

from thermokron.host.kfac import KFAC, LevenbergMarquardt
from thermokron.model import NumericUnit, UnitSpec

STEPS, BREAK = 7, 3


class Training:
    """A model, its optimiser and K-FAC, all of which can be saved."""

    def __init__(self, case: str, seed: int = 4, **options) -> None:
        self.model, self.x = CASES[case].build(8)
        self.y = torch.ones_like(self.model(self.x)).detach()
        if "unit" in options:
            options["unit"] = NumericUnit(UnitSpec(cells=8, lanes=2), seed=seed)
        if options.get("damping") == "adapted":
            options["damping"] = LevenbergMarquardt(0.1, interval=2)
        self.criterion = nn.MSELoss()
        self.kfac = KFAC(
            self.model, **({"lr": 0.05, "damping": 0.1, "criterion": self.criterion} | options)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)

    def advance(self, first: int, last: int) -> None:
        for step in range(first, last):
            rows = torch.arange(8)[step % 3 :: 2]
            self.optimizer.zero_grad()
            self.criterion(self.model(self.x[rows]), self.y[rows]).backward()
            self.kfac.step()
            self.optimizer.step()
            if self.kfac.training.marquardt is not None:
                self.kfac.adapt(lambda r=rows: self.criterion(self.model(self.x[r]), self.y[r]))

    def parts(self):
        return {"model": self.model, "kfac": self.kfac, "optimizer": self.optimizer}


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("mlp", {}),
        ("mlp", {"unit": True, "samples": 50, "inverse_interval": 2}),
        ("mlp", {"unit": True, "samples": 20, "method": "solve"}),
        ("mlp", {"fisher": "mc", "decay": 0.5}),
        ("mlp", {"damping": "adapted", "fisher": "ggn"}),
        ("conv2d groups", {"damping_mode": "exact", "inverse_interval": 3}),
        ("embedding", {"inverse_interval": 5, "factor_interval": 2}),
        ("transformer", {"inverse_interval": 4, "refresh_threshold": 0.05}),
        ("batch norm 2d", {"inverse_interval": 4}),
    ],
    ids=str,
)
def test_resumed_equals_uninterrupted(case, options, tmp_path) -> None:
    whole = Training(case, **options)
    whole.advance(0, STEPS)
    begun = Training(case, **options)
    begun.advance(0, BREAK)
    path = tmp_path / "checkpoint.pt"
    torch.save({name: part.state_dict() for name, part in begun.parts().items()}, path)
    begun.advance(BREAK, STEPS)  # what is saved must not be changed by going on
    resumed = Training(case, **options)
    saved = torch.load(path, weights_only=True)
    for name, part in resumed.parts().items():
        part.load_state_dict(saved[name])
    resumed.advance(BREAK, STEPS)
    for other in (begun, resumed):
        assert other.kfac.metrics == whole.kfac.metrics
        for p, q in zip(whole.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(p, q)
    if whole.kfac.unit is not None:
        assert resumed.kfac.unit.stream == whole.kfac.unit.stream > 0


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        # the block is that of step 0 until its factors have moved by 60%
        ({"inverse_interval": 100, "refresh_threshold": 0.6, "decay": 0.8}, 1.0),
        # the factors of step 3 serve until step 6, and so do the inverses that were sampled of them
        ({"unit": True, "method": "inverse", "samples": 20, "factor_interval": 3}, 1.0),
    ],
    ids=["made of", "current"],
)
def test_what_decides_on_renewals_is_restored(options, rows) -> None:
    def counts(training: Training, first: int, last: int) -> list[int]:
        found = []
        for step in range(first, last):
            training.x = start * (1.0 + 0.1 * step)
            training.advance(step, step + 1)
            found.append(training.kfac.metrics.inversions)
        return found

    whole = Training("mlp", **options)
    start = whole.x
    expected = counts(whole, 0, STEPS)
    assert 0 in expected[BREAK + 1 :]
    begun = Training("mlp", **options)
    assert counts(begun, 0, BREAK + 2) == expected[: BREAK + 2]
    resumed = Training("mlp", **options)
    for name, part in resumed.parts().items():
        part.load_state_dict(begun.parts()[name].state_dict())
    assert counts(resumed, BREAK + 2, STEPS) == expected[BREAK + 2 :]
    assert resumed.kfac.metrics == whole.kfac.metrics


def test_a_state_in_memory_does_not_change_with_training() -> None:
    training = Training("mlp", unit=True, samples=20)
    training.advance(0, BREAK)
    state = training.kfac.state_dict()
    first = {
        name: layer["input_factor"]["moment"].clone() for name, layer in state["layers"].items()
    }
    training.advance(BREAK, STEPS)
    for name, moment in first.items():
        assert torch.equal(state["layers"][name]["input_factor"]["moment"], moment)


def test_states_that_do_not_fit_are_refused() -> None:
    training = Training("mlp", unit=True, method="inverse", samples=20)
    training.advance(0, 1)
    state = training.kfac.state_dict()
    with pytest.raises(ValueError, match="unit of seed 4, this unit has seed 5"):
        Training("mlp", seed=5, unit=True).kfac.load_state_dict(state)
    with pytest.raises(ValueError, match="saved with method = 'inverse', this KFAC has 'solve'"):
        Training("mlp", unit=True, method="solve").kfac.load_state_dict(state)
    with pytest.raises(ValueError, match="state holds the layers"):
        Training("linear").kfac.load_state_dict(state)


@pytest.mark.parametrize("missing", ["generator", "current", "layers"])
def test_a_damaged_state_changes_nothing(missing) -> None:
    training = Training("mlp", unit=True, samples=20)
    training.advance(0, 1)
    state = training.kfac.state_dict()
    if missing == "layers":
        del state["layers"]["b"]["output_factor"]
    else:
        del state[missing]
    training.advance(1, 2)
    kfac = training.kfac
    before = {layer: layer.input_factor.value for layer in kfac.layers}
    stream, block = kfac.unit.stream, kfac.training.blocks[kfac.layers[0]]
    with pytest.raises(ValueError, match="output_factor" if missing == "layers" else missing):
        kfac.load_state_dict(state)
    assert (kfac.steps, kfac.unit.stream) == (2, stream)
    assert kfac.training.blocks[kfac.layers[0]] is block
    for layer, value in before.items():
        assert torch.equal(layer.input_factor.value, value)


def test_a_state_saved_without_a_unit_goes_on_with_one() -> None:
    """A run begun on the host may be continued on hardware."""
    training = Training("mlp")
    training.advance(0, 2)
    other = Training("mlp", unit=True)
    other.kfac.load_state_dict(training.kfac.state_dict())
    other.advance(2, 3)
    assert other.kfac.metrics.step == 2
    assert other.kfac.metrics.runs > 0
    assert all(p.dtype == DTYPE for p in other.model.parameters())

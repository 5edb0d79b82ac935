"""Metrics as TensorBoard reads them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tensorboard", reason="needs the extra tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from thermokron.host.integrations.tensorboard import log_metrics
from thermokron.host.kfac import KFAC


@pytest.mark.parametrize(("steps", "prefix"), [(None, "kfac/"), ([5, 9], "a/b/")])
def test_every_number_of_every_step_is_there(steps, prefix, tmp_path) -> None:
    model, criterion = torch.nn.Linear(3, 2), torch.nn.MSELoss()
    kfac = KFAC(model, lr=0.1, criterion=criterion)
    seen = []
    with SummaryWriter(tmp_path) as writer:
        for step in range(2):
            model.zero_grad()
            criterion(model(torch.randn(6, 3)), torch.randn(6, 2)).backward()
            seen.append(kfac.step())
            options = {} if steps is None else {"step": steps[step], "prefix": prefix}
            log_metrics(writer, seen[-1], **options)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    names = set(seen[0].as_dict()) - {"step"}
    assert set(read.Tags()["scalars"]) == {f"{prefix}{name}" for name in names}
    for name in names:
        events = read.Scalars(f"{prefix}{name}")
        assert [event.step for event in events] == (steps or [0, 1])
        for event, metrics in zip(events, seen, strict=True):
            assert event.value == pytest.approx(metrics.as_dict()[name], rel=1e-6)
    assert read.Scalars(f"{prefix}loss")[0].value > 0.0

"""Networks that nobody here wrote are covered in full, and train."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if not (find_spec("transformers") and find_spec("timm")):
    pytest.skip("needs the extra loops", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from public_networks import PUBLIC, ten_steps

from thermokron.host import open_unit
from thermokron.host.train import Digits
from thermokron.model import UnitSpec

DATA = Digits.load(0)


@pytest.mark.parametrize("fisher", ["empirical", "mc"])
@pytest.mark.parametrize("name", PUBLIC)
def test_ten_steps(name, fisher) -> None:
    found = ten_steps(PUBLIC[name], DATA, fisher=fisher)
    assert not found.untouched
    assert not found.warnings
    assert found.after < 0.995 * found.before


def test_ten_steps_on_a_unit() -> None:
    """One of them: layers of every shape, and a vocabulary, on an array of 64 cells."""
    with open_unit("numeric", UnitSpec(cells=64), seed=0) as unit:
        found = ten_steps(PUBLIC["GPT-2, next tokens"], DATA, unit)
    assert not found.untouched
    assert found.after < 0.995 * found.before


def test_what_is_left_alone_would_be_noticed() -> None:
    found = ten_steps(PUBLIC["ViT"], DATA, others="plain", exclude="*.layernorm_after")
    assert any("cls_token" in name for name in found.untouched)
    assert any("layernorm_after" in name for name in found.untouched)

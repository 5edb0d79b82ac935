"""Mutants that nobody can tell from the RTL, by an argument that Yosys has no proof for.

The benches look at each all the same: if one of them kills it, the argument is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ARGUED"]

#: Why, by module, line and change.
ARGUED: Mapping[tuple[str, str, str], str] = {
    (
        "moments",
        "read.en.eq(self.add | self.read),",
        "read.en.eq(self.add | self.read) -> nothing",
    ): "It spares power. A word is taken in the one cycle in which it comes; what is held "
    "afterwards nobody looks at.",
    (
        "moments",
        "sum_address = Signal(span(sum_depth))",
        "Signal(span(sum_depth)) -> Signal(span(sum_depth), init=1)",
    ): "The address is set with every sample that is taken over, before it is used.",
    (
        "registers",
        'asked = Signal(name=f"asks_{window.name}")',
        "Signal(name=f'asks_{window.name}') -> Signal(name=f'asks_{window.name}', init=1)",
    ): "It chooses what a read returns, and follows the address of each; reset begins none.",
    (
        "results",
        "ends = Signal(3)",
        "Signal(3) -> Signal(3, init=1)",
    ): "An end is looked at with the word that comes with it; after reset none does.",
    (
        "results",
        "ends = Signal()",
        "Signal() -> Signal(init=1)",
    ): "Whether a sample is the last is taken over with it, before its codes leave.",
    (
        "unit",
        "moments.cancel.eq(sequencer.cancel),",
        "moments.cancel.eq(sequencer.cancel) -> nothing",
    ): "The sample is added to words that the next run begins anew. A first sample that comes "
    "before it is done waits in the converter's port, as any does that finds the accumulator at "
    "work.",
}

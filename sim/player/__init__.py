"""Plays the surroundings of a unit's RTL, in C++: bus, streams, DACs, ADCs, edge by edge.

`player.h` is the one text of it. What binds it to a way of running the RTL is a file each:
`compiled.cpp` to CXXRTL, `verilator.cpp` to Verilator, `vpi.cpp` to a simulator with VPI. Python
calls it through `Player`, and `thermokron.sim.frontend` gives it the samples.
"""

from thermokron.sim.player.calls import ENDS, Event, Into, Player

__all__ = ["ENDS", "Event", "Into", "Player"]

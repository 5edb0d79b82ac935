"""The designs on which mutants are judged, generated from the RTL that Python finds.

As a program, `python -m thermokron.sim.mutants.designs NAME` prints the Verilog of one of them as
JSON. The campaign runs it where a mutated copy of the RTL is found first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thermokron.model import UnitSpec
from thermokron.sim.benches.catalogue import BENCHES, bundle, run_block_bench
from thermokron.sim.runner import run_bench

__all__ = ["LAST", "REGISTER_SPECS", "STAGES", "Design", "design"]

#: Register files on which their bench runs.
REGISTER_SPECS = {
    "registers2": UnitSpec(cells=2, rhs_depth=1),
    "registers15": UnitSpec(cells=15, lanes=5, rhs_depth=5, clock_hz=123.4e6, tau_s=1e-9),
}
REGISTER_OPERATIONS = 600

#: The designs on which each module is judged, one after the other; what survives goes on to the
#: whole unit. The few instances of `moments_few` find most of what all of them find.
STAGES: Mapping[str, tuple[str, ...]] = {
    "axi": ("registers2", "registers15"),
    "biases": ("codes",),
    "codes": ("codes",),
    "converter": ("converter",),
    "couplings": ("codes",),
    "moments": ("moments_few", "moments"),
    "registers": ("registers2", "registers15"),
    "results": (),
    "sampler": ("sampler",),
    "sequencer": ("sequencer",),
    "streams": ("codes",),
    "synchroniser": ("converter",),
    "unit": (),
}
#: Where what survives is judged.
LAST = "unit"


@dataclass(frozen=True)
class Design:
    """A design, its bench and its top module's name."""

    name: str

    @property
    def _bench(self) -> tuple[str, tuple[str, ...]]:
        name = self.name.removesuffix("_few")
        bench = BENCHES[name]
        few = bench.only.get("verilator", ()) if name != self.name else ()
        return name, few or tuple(bench.instances)

    @property
    def top(self) -> str:
        return "register_file" if self.name in REGISTER_SPECS else f"{self._bench[0]}_bench"

    def verilog(self) -> str:
        """The Verilog, from the RTL that this process has imported."""
        if spec := REGISTER_SPECS.get(self.name):
            from thermokron.rtl.registers import RegisterFile
            from thermokron.rtl.verilog import generate_verilog

            return generate_verilog(RegisterFile(spec))
        return bundle(*self._bench)[0]

    def run(self, verilog: str, timeout_s: float) -> None:
        """Run the bench on such Verilog until a test fails; errors as `run_bench` has."""
        if spec := REGISTER_SPECS.get(self.name):
            run_bench(
                "thermokron.sim.benches.bench_registers",
                verilog,
                self.top,
                "icarus",
                parameters={
                    "spec": spec.to_json(),
                    "seed": 1,
                    "operations": REGISTER_OPERATIONS,
                },
                timeout_s=timeout_s,
                first_failure=True,
            )
        else:
            name, instances = self._bench
            run_block_bench(
                name,
                "icarus",
                instances=instances,
                verilog=verilog,
                timeout_s=timeout_s,
                first_failure=True,
            )


def design(name: str) -> Design:
    """A design of `STAGES`, or the unit."""
    if name not in REGISTER_SPECS and name.removesuffix("_few") not in BENCHES:
        raise ValueError(f"design = {name!r} has no bench")
    return Design(name)


def main(name: str) -> None:
    """Print the Verilog of a design, and where the RTL was found."""
    import thermokron.rtl

    text = design(name).verilog()
    print(json.dumps({"rtl": str(Path(thermokron.rtl.__file__).parent), "verilog": text}))


if __name__ == "__main__":
    main(sys.argv[1])

"""`open_unit`: one way to every engine."""

from __future__ import annotations

import os

from thermokron.host.engines.compiled import CompiledUnit
from thermokron.host.engines.cosim import CosimUnit
from thermokron.host.engines.statistical import StatisticalUnit
from thermokron.model import ArrayPhysics, BaseUnit, NumericUnit, UnitSpec

__all__ = ["ENGINES", "open_unit"]

#: The engines that can be opened.
ENGINES = ("numeric", "compiled", "cosim", "statistical")


def open_unit(
    engine: str,
    spec: UnitSpec,
    physics: ArrayPhysics | None = None,
    *,
    seed: int = 0,
    simulator: str = "verilator",
    waves: str | os.PathLike[str] | None = None,
    timeout_s: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> BaseUnit:
    """Open a unit; close it, or use it as a context manager.

    Same seed, same jobs: the same integers from every engine but "statistical".

    Parameters
    ----------
    engine : str
        "numeric": bit-true arithmetic on exactly sampled noise, in this process.
        "compiled": the RTL as C++, compiled to a library of this process, with the same noise at
        its pins; it needs g++.
        "cosim": the generated Verilog in a simulator, with the same noise at its pins.
        "statistical": read-outs drawn from their distribution, for arrays of up to 4,096 cells; see
        `StatisticalUnit` for what it leaves out. It needs torch.
    spec : UnitSpec
        The unit.
    physics : ArrayPhysics, optional
        Deviations of its array from nominal; ideal if not given.
    seed : int
        Seed of the noise, 0 to 2^63 - 1.
    simulator : str
        For "cosim": "verilator" or "icarus".
    waves : path, optional
        For "compiled" and "cosim": write a waveform there, `.vcd` or, where a simulator can,
        `.fst`. It has the cells' voltages beside the digital signals, and is complete once the
        unit is closed.
    timeout_s : float, optional
        For "cosim": seconds without a sign of life after which a simulator is given up, 30 if not
        given; see `thermokron.sim.SimulatorLink`.

    dtype, device : str, optional
        For "statistical": "float32", if not given, or "float64"; and where torch is to work, the
        CPU if not given.

    Raises
    ------
    ValueError
        If a name is not known, or seed or timeout_s is out of range.
    TypeError
        If `spec` or `physics` is of another type.
    thermokron.sim.SimulatorMissing
        If the simulator or the compiler is not installed; the message says what to install.

    Examples
    --------
    >>> with open_unit("cosim", UnitSpec(cells=8), seed=1) as unit:   # doctest: +SKIP
    ...     readout = unit.run(job)
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r} is unknown; legal: {', '.join(ENGINES)}")
    if not isinstance(spec, UnitSpec):
        raise TypeError(f"spec = {spec!r} is not a UnitSpec")
    if not isinstance(physics, ArrayPhysics | None):
        raise TypeError(f"physics = {physics!r} is not an ArrayPhysics")
    if engine in ("numeric", "statistical") and waves is not None:
        raise ValueError(f"waves: the {engine} engine has no signals; use engine 'compiled'")
    if engine != "statistical" and not dtype is device is None:
        raise ValueError(f"dtype, device: the {engine} engine works in NumPy's float64 on the CPU")
    if timeout_s is not None and engine != "cosim":
        raise ValueError(f"timeout_s: the {engine} engine waits for nobody; use engine 'cosim'")
    if engine == "numeric":
        return NumericUnit(spec, physics, seed=seed)
    if engine == "statistical":
        return StatisticalUnit(
            spec, physics, seed=seed, dtype=dtype or "float32", device=device or "cpu"
        )
    if engine == "compiled":
        return CompiledUnit(spec, physics, seed=seed, waves=waves)
    return CosimUnit(
        spec, physics, seed=seed, simulator=simulator, waves=waves, timeout_s=timeout_s
    )

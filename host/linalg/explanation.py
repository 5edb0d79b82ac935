"""A plan in words, and why there is none."""

from __future__ import annotations

from dataclasses import replace

from thermokron.host.linalg.choices import Choice, Choices, Method
from thermokron.host.linalg.forecast import Parts

__all__ = ["explained", "reasons"]

#: Damping that is tried where a tolerance is beyond reach, in parts of M's diagonal.
DAMPINGS = tuple(0.001 * 2.0**k for k in range(12))
#: Parts of an error that are not worth naming.
SMALL = 0.05
NAMES = {
    "sampling": "sampling",
    "rounding": "rounded couplings",
    "adc": "ADC and bias codes",
    "settling": "settling",
}
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def _time(seconds: float) -> str:
    size, name = next((each for each in UNITS if seconds >= each[0]), UNITS[-1])
    return f"{seconds / size:.3g} {name}"


def _part(value: float) -> str:
    return f"{100.0 * value:.2g}%"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)


def _how(choices: Choices, way: Choice) -> str:
    """What is done, in one sentence without its end."""
    if way.method == "covariance":
        text = (
            f"sample the covariance {way.samples:,} times, "
            f"{way.interval:g} τ/λ_min apart if the unit can follow"
        )
        return text + ", and take off what rounding did, on the host" * (way.correct is not None)
    assert way.settle is not None
    readings = f"{_many(way.samples, 'reading')} of each of {choices.task.columns:,} columns"
    if choices.task.inverse:
        readings += " of the identity"
    again = f", then refine {_many(way.refine, 'time')}" if way.refine else ""
    return (
        f"take the mean of {readings}, settled until {_part(way.settle)} of the slowest mode is "
        f"left{again}" + ", and symmetrise" * choices.task.inverse
    )


def _what(choices: Choices) -> str:
    task = choices.task
    n, what = len(task.matrix), "invert" if task.inverse else "solve with"
    return f"{what} a {n} x {n} matrix to {_part(choices.limits.tolerance)}"


def _takes(way: Choice) -> str:
    cost = way.cost
    return (
        f"{_time(sum(cost.seconds.values()))} on the unit in {_many(cost.runs, 'run')}, "
        f"{_time(cost.port_seconds)} on its ports for {cost.bytes_to_unit:,} bytes to it and "
        f"{cost.bytes_from_unit:,} back, and {cost.digital_flops:.2g} operations of the host"
    )


def explained(
    choices: Choices,
    way: Choice,
    parts: Parts,
    others: tuple[Choice, ...],
    blocks: int,
    flops: int,
) -> str:
    """What a plan does, what to expect, and why."""
    spec, solver = choices.task.spec, choices.rehearsal.solver
    where = f"{spec.cells} cells, {spec.coupling_bits}-bit couplings, {spec.adc_bits}-bit ADC"
    cut = f", in {blocks} blocks" if blocks > 1 else ""
    lines = [f"To {_what(choices)} ({where}{cut}): {_how(choices, way)}."]
    small = SMALL * way.error
    shares = [
        f"{NAMES[name]} {_part(value)}"
        for name, value in sorted(vars(parts).items(), key=lambda each: -each[1])
        if value > small
    ]
    if len(shares) < len(NAMES):
        shares.append(f"anything else {_part(small)} at most")
    share = ", ".join(shares)
    lines.append(f"Expected error: {_part(way.error)} (Frobenius, relative), of which {share}.")
    lines.append(f"It takes {_takes(way)}.")
    plan = getattr(solver, "plan", None)
    if plan is not None:
        shrunk = (
            f"; couplings had to shrink by {_part(plan.shrinkage)} to stay positive definite"
            if plan.shrinkage
            else ""
        )
        lines.append(
            f"Scaled to unit diagonal, the matrix has λ_min of about {plan.rate:.2g}, and rounding "
            f"its couplings adds {plan.size:.2g} (Frobenius){shrunk}."
        )
    for other in others:
        lines.append(
            f"By {other.method}: {_how(choices, other)}; an error of {_part(other.error)}, and "
            f"{other.seconds / way.seconds:.2g} times as long, all in all."
        )
    for method in choices.limits.methods:
        if method not in choices.best:
            least = choices.least.get(method)
            best = "readings clip at any amplitude" if least is None else f"{_part(least)} at best"
            lines.append(f"By {method} it is out of reach: {best}.")
    lines.append(f"Planning took {flops:.2g} operations. Flaws of the unit are not in this.")
    return "\n".join(lines)


def reasons(choices: Choices) -> str:
    """Why a tolerance is out of reach, and what would reach it."""
    task, limits = choices.task, choices.limits
    spec = task.spec
    best = ", ".join(_limit(choices, method) for method in limits.methods)
    text = (
        f"tolerance = {limits.tolerance:g} cannot be reached with {spec.coupling_bits}-bit "
        f"couplings and a {spec.adc_bits}-bit ADC: the error is at least {best}"
    )
    helps = _what_helps(choices)
    return text + (f". What would reach it: {'; '.join(helps)}" if helps else "")


def _limit(choices: Choices, method: Method) -> str:
    """The least error of a method, and what it is of."""
    if method not in choices.least:
        return f"unknown by {method}, as readings clip at any amplitude, on an ideal unit, too"
    least = f"{_part(choices.least[method])} by {method}"
    if method == "means":
        return f"{least} with up to {_many(choices.limits.refine, 'refinement')}"
    rounding = choices.covariance.rounding(None)
    corrected = ""
    if choices.limits.correct:
        corrected = f", {_part(choices.covariance.rounding('rounding'))} of it to second order"
    return f"{least}, where rounded couplings alone make {_part(rounding)}{corrected}"


def _what_helps(choices: Choices) -> list[str]:
    task, limits = choices.task, choices.limits
    helps = []
    if limits.methods == ("covariance",):
        if not limits.correct and _reaches(Choices(task, replace(limits, correct=True))):
            helps.append('what rounding did taken off (correct=True, "rounding" of inv)')
        if _reaches(Choices(task, replace(limits, methods=("means",)))):
            helps.append("method = 'means'")
    more = replace(limits, refine=20)
    if "means" in limits.methods and limits.refine < 20:
        way = Choices(task, more).quickest()
        if way is not None:
            helps.append(f"refine = {way.refine}")
    for bits in range(task.spec.coupling_bits + 1, 17):
        finer = replace(task, spec=replace(task.spec, coupling_bits=bits))
        if _reaches(Choices(finer, limits)):
            helps.append(f"{bits} coupling bits")
            break
    for damping in DAMPINGS:
        if _reaches(Choices(task.damped(damping), limits)):
            helps.append(f"damping: {damping:.2g} times M's diagonal added to M")
            break
    return helps


def _reaches(choices: Choices) -> bool:
    return choices.quickest() is not None

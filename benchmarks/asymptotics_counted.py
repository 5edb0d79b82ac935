"""What steps of `asymptotics.py` are counted to take: metrics, states, Verilog, passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from asymptotics_exponents import FINE, KAPPAS, Row, hadamard, half
from torch.utils.flop_counter import FlopCounterMode

from thermokron.host import open_unit
from thermokron.host.kfac import KFAC, Relative, StepMetrics
from thermokron.host.linalg import program
from thermokron.host.predict.asymptotics import METHODS, TABLE, Setting, exponent, value
from thermokron.host.tables import number
from thermokron.model import UnitSpec

__all__ = ["CELLS", "WIDTHS", "Counted", "by_width", "guarded", "measured", "others", "setting_of"]

WIDTHS = (64, 128, 256, 512, 1024)
CELLS, BITS, PER_ROW, NEVER = 64, 10, 32, 10**6
SPEC = UnitSpec(coupling_bits=BITS, rhs_depth=256)
#: By name: what of `StepMetrics` is the same.
COUNTERS: dict[str, Callable[[StepMetrics], float]] = {
    "step": lambda m: m.digital_flops,
    "bytes": lambda m: m.bytes_to_unit + m.bytes_from_unit,
    "load": lambda m: m.load_seconds * SPEC.clock_hz,
    "settle": lambda m: (m.settle_seconds + m.discharge_seconds) * SPEC.clock_hz,
    "sample": lambda m: m.sample_seconds * SPEC.clock_hz,
}


@dataclass(frozen=True)
class Found:
    """What one width took: counters of a step that renews and of one that does not, and κ."""

    renewing: dict[str, float]
    serving: dict[str, float]
    memory: float
    kappa: float

    def every(self, refresh: int, resource: str) -> float:
        """A step's mean."""
        if resource == "host memory":
            return self.memory
        return (self.renewing[resource] + (refresh - 1) * self.serving[resource]) / refresh


#: By method and width.
Counted = dict[tuple[str, int], Found]


class Layer:
    """One square layer that K-FAC steps on."""

    def __init__(self, width: int, method: str, refresh: int, bits: int = BITS) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(width, width, bias=False)
        self.inputs = torch.randn(2 * width, width)
        kind, _, blocks = method.partition(" ")
        unit, samples = None, None
        if kind != "exact":
            cells = CELLS if blocks else width
            spec = replace(SPEC, cells=cells, lanes=None, coupling_bits=bits)
            unit = open_unit("statistical", spec, seed=1)
            samples = samples_of(method, width)
        self.kfac = KFAC(
            self.model,
            unit,
            lr=0.1,
            damping=Relative(1 / 49),
            method="inverse" if kind == "exact" else kind,
            samples=samples,
            inverse_interval=refresh,
            kl_clip=None,
        )

    def steps(self, count: int) -> list[StepMetrics]:
        """Steps on the same batch, the network left as it is."""
        made = []
        for _ in range(count):
            self.model.zero_grad()
            self.model(self.inputs).square().mean().backward()
            made.append(self.kfac.step())
        return made

    @property
    def kappa(self) -> float:
        """1/λ_min as the array has it, mean over factors, and over the blocks of each."""
        (block,) = self.kfac.training.blocks.prepared.values()
        if not hasattr(block, "gains"):
            return math.nan
        each = [
            np.mean([1.0 / p.array.plan.rate for p in getattr(one, "pivots", ())])
            if hasattr(one, "pivots")
            else 1.0 / one.plan.rate
            for one in (block.a[0], block.g[0])
        ]
        return float(np.mean(each))


def samples_of(method: str, width: int) -> int:
    """Samples of an inverse, readings of a column; in blocks as many as `KFAC` takes by itself."""
    return {"inverse": PER_ROW * width, "inverse in blocks": 1000}.get(method, 1)


def measured(width: int, method: str) -> Found:
    """Counters of a step."""
    layer = Layer(width, method, 1)
    layer.steps(2)  # after which it is known how strongly to drive columns
    taken = layer.steps(16 if method == "solve" else 1)
    reused = Layer(width, method, NEVER)
    serving = reused.steps(3)[-1]
    state = sizes(layer.kfac.state_dict())
    optimizer = torch.optim.SGD(layer.model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    return Found(
        {name: float(np.mean([count(m) for m in taken])) for name, count in COUNTERS.items()},
        {name: count(serving) for name, count in COUNTERS.items()},
        state + sizes(optimizer.state_dict()),
        layer.kappa,
    )


def sizes(state: Any) -> float:
    """Bytes of all tensors."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        state = list(state.values())
    return sum(map(sizes, state)) if isinstance(state, list | tuple) else 0.0


def unit_bits(cells: int) -> float:
    """Bits of the memories of a unit's Verilog, with 64 bias vectors."""
    from thermokron.rtl.memories import count_memories
    from thermokron.rtl.verilog import generate_verilog

    memories = count_memories(generate_verilog(UnitSpec(cells=cells, rhs_depth=64)))
    return float(sum(shape.width * shape.depth * count for shape, count in memories.items()))


# ---- exponents ---------------------------------------------------------------------------------


def setting_of(width: int, method: str, found: Counted, refresh: int = 1) -> Setting:
    """Where the table is to be evaluated: κ as the arrays had it, P as its columns were counted."""
    blocks = method.partition(" ")[2]
    solving = found.get((f"solve{' ' * bool(blocks)}{blocks}", width))
    at = Setting(
        n=width,
        b=2 * width,
        kappa=8.0 if solving is None else solving.kappa,
        samples=samples_of(method, width),
        refresh=refresh,
        cells=CELLS,
        passes=1.0,
        spec=SPEC,
    )
    if not blocks:
        return at
    once, twice = (value(method, "bytes", replace(at, refresh=1, passes=p)) for p in (1, 2))
    passes = 1.0 + (found[method, width].renewing["bytes"] - once) / (twice - once)
    return replace(at, passes=max(passes, 1.0))


#: By method and resource: whether it is within what second-hand accounts of the paper say.
CLAIMS = {
    ("exact", "step"): "no, n³",
    ("solve", "step"): "yes, n²",
    ("solve", "bytes"): "yes, n²",
    ("solve", "load"): "while n ≤ d; beyond n³",
    ("solve", "settle"): "yes, nκ",
    ("solve", "sample"): "yes, n",
    ("inverse", "step"): "no, the apply",
    ("inverse", "bytes"): "yes: sums, not samples",
    ("inverse", "load"): "yes, n²",
    ("inverse", "settle"): "yes, κ",
    ("inverse", "sample"): "yes, n² with n lanes",
    ("inverse", "products"): "no, n³",
    ("solve in blocks", "step"): "no, complements and substitution",
    ("solve in blocks", "bytes"): "yes, n²",
    ("solve in blocks", "load"): "yes, n²",
    ("solve in blocks", "settle"): "yes, n²κ/c",
    ("solve in blocks", "sample"): "yes, n²κ/c at most",
    ("inverse in blocks", "step"): "no",
    ("inverse in blocks", "bytes"): "yes, n²",
    ("inverse in blocks", "load"): "yes, n²",
    ("inverse in blocks", "settle"): "yes, n²κ/c",
    ("inverse in blocks", "sample"): "yes, n²κ/c at most",
}


def by_width(widths: Sequence[int], found: Counted) -> list[Row]:
    """Exponents of n."""
    rows = []
    for method in list(METHODS)[2:]:
        at = [w for w in widths if (method, w) in found]
        for resource in (*COUNTERS, "host memory"):
            refreshes = (1, 10, 100) if resource == "step" else (1,)
            for refresh in refreshes:
                settings = [setting_of(w, method, found, refresh) for w in at]
                values = [value(method, resource, s) for s in settings]
                if not any(values):
                    continue
                name = f"{METHODS[method]}{f', every {refresh}' * (refresh > 1)}: {resource}"
                counted = [found[method, w].every(refresh, resource) for w in at]
                limit = exponent(method, resource, "n", settings[-1])
                if method == "inverse" and resource == "sample":
                    limit += exponent(method, resource, "samples", settings[-1])
                    name += f", N = {PER_ROW}n"
                    limit -= method == "inverse" and 0
                claim = CLAIMS.get((method, resource), "")
                symbol = TABLE[method][resource].leading
                rows.append(Row(name, symbol, "n", limit, at, values, counted, claim))
    return [*rows, products(widths, found)]


def products(widths: Sequence[int], found: Counted) -> Row:
    """Multiplications of the accumulator, whose lanes work all the time while it samples."""
    settings = [setting_of(w, "inverse", found) for w in widths]
    return Row(
        f"{METHODS['inverse']}: products, N = {PER_ROW}n",
        TABLE["inverse"]["products"].leading,
        "n",
        exponent("inverse", "products", "n") + exponent("inverse", "products", "samples"),
        widths,
        [value("inverse", "products", s) for s in settings],
        [found["inverse", w].renewing["sample"] * w for w in widths],
        CLAIMS["inverse", "products"],
    )


# ---- batch, condition, samples -----------------------------------------------------------------


def onednn(left: Any, right: Any, *others: Any, **options: Any) -> int:
    """Operations of the product that `thermokron.host.products` hands to oneDNN, by shapes."""
    return 2 * math.prod(left) * right[0]


def passes(width: int, batch: int, *, kfac: bool) -> float:
    """Operations that torch counts in a pass, forward and backward, moments with K-FAC."""
    layer = torch.nn.Linear(width, width, bias=False)
    inputs = torch.randn(batch, width, requires_grad=True)
    with KFAC(layer, lr=0.1, kl_clip=None) if kfac else nullcontext():
        counting = {torch.ops.mkldnn._linear_pointwise: onednn}
        with FlopCounterMode(display=False, custom_mapping=counting) as counted:
            layer(inputs).square().mean().backward()
    return float(counted.get_total_flops())


def others() -> list[Row]:
    """Exponents of b, κ and N."""
    rows = []
    batches, width = (32, 64, 128, 256, 512, 1024), 128
    for method in ("sgd", "solve"):
        taken = [passes(width, b, kfac=method != "sgd") for b in batches]
        at = [Setting(n=width, b=b) for b in batches]
        who = "SGD, Adam" if method == "sgd" else "K-FAC"
        values = [value(method, "passes", s) for s in at]
        symbol = TABLE[method]["passes"].leading
        limit = exponent(method, "passes", "b")
        rows.append(Row(f"{who}: passes, n = {width}", symbol, "b", limit, batches, values, taken))
        at = [Setting(n=w, b=256) for w in WIDTHS]
        taken = [passes(w, 256, kfac=method != "sgd") for w in WIDTHS]
        values = [value(method, "passes", s) for s in at]
        limit = exponent(method, "passes", "n")
        rows.append(Row(f"{who}: passes, b = 256", symbol, "n", limit, WIDTHS, values, taken))
    n = FINE.cells
    cycles: dict[str, list[float]] = {"settle": [], "sample": []}
    for kappa in KAPPAS:
        with open_unit("statistical", FINE, seed=2) as unit:
            placed = program(unit, hadamard(n, half(n, kappa), 0), lambda_min=1.0 / kappa)
            columns = np.random.default_rng(0).standard_normal((n, n))
            for _ in range(2):
                solved = placed.solve(columns)
            taken = solved.seconds["settle"] + solved.seconds["discharge"]
            cycles["settle"].append(2 * taken * FINE.clock_hz)
            cycles["sample"].append(2 * placed.inv(samples=1000).seconds["sample"] * FINE.clock_hz)
    for method, resource, count in (("solve", "settle", 1), ("inverse", "sample", 1000)):
        at = [Setting(n=n, kappa=k, samples=count, spec=FINE) for k in KAPPAS]
        values = [value(method, resource, s) for s in at]
        what = f"{METHODS[method]}: {resource}, n = {n}, τ of 50 cycles"
        limit, symbol = exponent(method, resource, "kappa"), TABLE[method][resource].leading
        claim = "yes, nκ" if method == "solve" else "yes, Nκ"
        rows.append(Row(what, symbol, "κ", limit, KAPPAS, values, cycles[resource], claim))
    counts, taken = (1000, 2000, 4000, 8000, 16000), []
    with open_unit("statistical", replace(SPEC, cells=128, lanes=None), seed=3) as unit:
        placed = program(unit, hadamard(128, half(128, 8), 0), lambda_min=1 / 8)
        taken = [2 * placed.inv(samples=c).seconds["sample"] * SPEC.clock_hz for c in counts]
    at = [Setting(n=128, samples=c, spec=SPEC) for c in counts]
    values = [value("inverse", "sample", s) for s in at]
    symbol = TABLE["inverse"]["sample"].leading
    what = f"{METHODS['inverse']}: sample, n = 128"
    rows.append(Row(what, symbol, "N", 1, counts, values, taken))
    cells = (32, 64, 128)
    spec = UnitSpec(rhs_depth=64)
    values = [value("solve", "unit memory", Setting(n=c, spec=spec)) for c in cells]
    symbol = TABLE["solve"]["unit memory"].leading
    bits = [unit_bits(c) for c in cells]
    rows.append(Row("unit memory, d = 64, from Verilog", symbol, "n", 2, cells, values, bits))
    return rows


# ---- coupling bits -------------------------------------------------------------------------------


def guarded(widths: Sequence[int], coupling_bits: Sequence[int] = (8, 10, 12)) -> list[list[str]]:
    """Operations of the host a step over n², unit solves: with few bits the guard shrinks."""
    lines = []
    for bits in coupling_bits:
        cells = []
        for width in widths:
            layer = Layer(width, "solve", 1, bits)
            layer.steps(1)
            steps = layer.steps(16)
            cells.append(number(sum(m.digital_flops for m in steps) / 16 / width**2))
        lines.append([f"{bits} bits", *cells])
    return lines

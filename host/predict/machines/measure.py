"""Measures the computer here: about a minute on one thread, with torch as it is set up.

What is timed is what the package does: products as `torch.nn.functional.linear` makes them, square
ones and thin ones; moments and inverses as K-FAC makes them on the host; convolutions; bandwidth
of a change of sign by size, with results in new memory as everywhere in torch; operations that
compute more than they move. Of repetitions the least time counts, which is what other work on the
machine disturbs least.

There is no way to measure power from here. It is assumed, per thread, and says so.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from thermokron.host.predict.machines.machine import Curve, Machine
from thermokron.host.predict.machines.measured import cpu_name
from thermokron.host.predict.quantity import Quantity
from thermokron.host.predict.workloads.workload import effective_size

if TYPE_CHECKING:
    import torch

__all__ = ["about", "clock_of", "measure"]

#: Seconds for each figure, at least, and repetitions.
PATIENCE, ROUNDS = 0.35, 4

SIDES = (16, 32, 64, 128, 256, 512, 1024, 2048)
THIN = (1, 2, 4, 8, 16, 32, 64)
VECTORS = (32, 128, 512, 1024, 2048)
#: How many there are, of which the second is taken for all lengths, and `TYPICAL` for all numbers.
COUNTS, TYPICAL = (512, 2048, 8192, 32768), 385
INVERTED = (16, 32, 64, 128, 256, 512, 1024, 2048)
DECOMPOSED = (32, 128, 256, 512, 1024)
#: Channels in and out, kernel, side of the image; 8 images.
CONVOLVED = ((8, 8, 3, 16), (32, 32, 3, 16), (64, 64, 3, 16), (128, 128, 3, 16), (256, 256, 3, 16))
#: Bytes that are read and written.
MOVED = tuple(2**power for power in (13, 15, 17, 19, 21, 23, 24, 25, 27))
#: Inputs are taken in turn from so many bytes, so that they are where those of a network are.
AROUND = 2**24
#: Bytes from which on a result is seldom in memory that was used before: the allocator gives such
#: pieces back to the system, which takes longer to bring new ones than they take to write.
NEW = 2**23

#: W of one core: idle, and busy; of memory, J per byte.
IDLE = (0.3, 1.0, 3.0)
BUSY = (3.0, 6.0, 15.0)
BYTE = (60e-12, 162e-12, 330e-12)
POWER = "assumed: thermal design power per core, of servers to desktops"
#: How far rates may be off.
TRUST = (0.75, 1.0, 1.25)

#: Called with the part of the work that is done, and what is next.
Progress = Callable[[float, str], None]


def measure(progress: Progress | None = None) -> Machine:
    """The machine here, with the threads that torch has now.

    Parameters
    ----------
    progress : callable, optional
        Called with the part done, 0 to 1, and what is measured next.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    stages: list[tuple[str, Callable[[torch.Generator], Any]]] = [
        ("products", _products),
        ("thin products", _thin_products),
        ("convolutions", _convolutions),
        ("moments", _moments),
        ("inverses", _inverses),
        ("eigendecompositions", _eigendecompositions),
        ("memory", _memory),
        ("operations", _operations),
    ]
    found: dict[str, Any] = {}
    _launch.cache_clear()
    with torch.no_grad():
        for place, (what, stage) in enumerate(stages):
            if progress is not None:
                progress(place / len(stages), what)
            found[what] = stage(generator)
    if progress is not None:
        progress(1.0, "done")
    return _machine(found, _launch())


def clock_of() -> Callable[[], float]:
    """Seconds: of one thread those that it ran, whoever else did; of several those that passed."""
    import torch

    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def about() -> dict[str, Any]:
    """What is to be remembered beside the figures."""
    import torch

    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _machine(found: dict[str, Any], launch: float) -> Machine:
    here = about()
    threads = f"{here['threads']} thread" + ("s" if here["threads"] > 1 else "")
    source = f"measured on {here['cpu']}, {threads}, torch {here['torch']}, {here['date'][:10]}"

    def curve(points: dict[float, float]) -> Curve:
        return Curve(tuple(points), tuple(points.values()), source)

    def quantity(
        what: str, figures: Sequence[float], unit: str, why: str, scale: float = 1.0
    ) -> Quantity:
        low, nominal, high = (scale * figure for figure in figures)
        return Quantity(f"this computer's {what}", low, nominal, high, unit, why)

    gemm = curve(found["products"])
    inverses, twice = found["inverses"]
    lengths, counts = found["moments"]
    bandwidths: dict[float, float] = found["memory"]
    large = bandwidths[max(bandwidths)]
    cores, fastest = here["threads"], max(gemm.rates)
    assumed = "assumed: what is left of repeated timings on a busy machine"
    energy = [(busy - idle) / fastest for busy, idle in zip(BUSY, IDLE, strict=True)]
    return Machine(
        name="this",
        gemm=gemm,
        inverse=curve(inverses),
        eigen=curve(found["eigendecompositions"]),
        gemm_trust=quantity("trust in products", TRUST, "1", assumed),
        inverse_trust=quantity("trust in inverses", TRUST, "1", assumed),
        eigen_trust=quantity("trust in eigendecompositions", TRUST, "1", assumed),
        bandwidth=quantity("bandwidth", [t * large for t in TRUST], "byte/s", source),
        launch=quantity("launch", (0.7, 1.0, 2.0), "s", source, launch),
        idle_power=quantity("idle power", IDLE, "W", POWER, cores),
        flop_energy=quantity("energy per operation", energy, "J", POWER, cores),
        byte_energy=quantity(
            "energy per byte",
            BYTE,
            "J",
            "1300 pJ per 64 bits of DDR4, Jouppi et al. ISCA 2021; range assumed",
        ),
        source=source,
        thin=curve(
            {
                side: rate / gemm(effective_size(1024, 1024, side))
                for side, rate in found["thin products"].items()
            }
        ),
        cached=curve({moved: rate / large for moved, rate in bandwidths.items()}),
        convolution=curve(found["convolutions"]),
        moments=curve(lengths),
        tall=curve(counts),
        slower=found["operations"],
        double=quantity("inverses in float64 over float32", (0.9, 1.0, 1.1), "1", source, twice),
    )


def _least(action: Callable[[], object], patience: float = PATIENCE) -> float:
    """Seconds of the fastest of several runs."""
    clock = clock_of()
    action()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < ROUNDS or time.perf_counter() - begin < patience:
        start = clock()
        action()
        times.append(clock() - start)
    return min(times)


def _work(action: Callable[[], object], patience: float = PATIENCE) -> float:
    """The same without the launch, which counts by itself."""
    seconds = _least(action, patience)
    return max(seconds - _launch(), 0.2 * seconds)


@cache
def _launch() -> float:
    """Seconds of an operation on one number."""
    import torch

    one = torch.ones(1)

    def thousand() -> None:
        for _ in range(1000):
            one.neg()

    return _least(thousand) / 1000


def _products(generator: torch.Generator) -> dict[float, float]:
    return {float(n): 2.0 * n**3 / _product(n, n, n, generator) for n in SIDES}


def _thin_products(generator: torch.Generator) -> dict[float, float]:
    """Rates of (1024, 1024) times (1024, n), the mean of its three orders in time, by n."""
    found: dict[float, float] = {}
    for n in THIN:
        shapes = (1024, 1024, n), (n, 1024, 1024), (1024, n, 1024)
        seconds = sum(_product(*shape, generator) for shape in shapes) / len(shapes)
        found[float(n)] = 2.0 * 1024 * 1024 * n / seconds
    return found


def _product(m: int, k: int, n: int, generator: torch.Generator) -> float:
    import torch

    inputs = torch.randn(m, k, generator=generator)
    weight, bias = torch.randn(n, k, generator=generator), torch.zeros(n)
    return _work(lambda: torch.nn.functional.linear(inputs, weight, bias))


def _convolutions(generator: torch.Generator) -> dict[float, float]:
    """Of forward and both backward products together."""
    import torch

    found: dict[float, float] = {}
    for inputs, outputs, kernel, side in CONVOLVED:
        x = torch.randn(8, inputs, side, side, generator=generator)
        w = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        pad = kernel // 2
        y = torch.nn.functional.conv2d(x, w, padding=pad)

        def both(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, pad: int) -> None:
            torch.nn.functional.conv2d(x, w, padding=pad)
            torch.ops.aten.convolution_backward(
                y, x, w, None, [1, 1], [pad] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
            )

        m, k, n = outputs, inputs * kernel**2, 8 * side**2
        found[effective_size(m, k, n)] = 6.0 * m * k * n / _least(partial(both, x, w, y, pad))
    return dict(sorted(found.items()))


def _moments(generator: torch.Generator) -> tuple[dict[float, float], dict[float, float]]:
    """Rates by length of vectors, and what part of them is left by their number."""
    count = COUNTS[1]
    lengths = {float(n): _moment_rate(count, n, generator) for n in VECTORS}
    counts = {float(c): _moment_rate(c, TYPICAL, generator) for c in COUNTS}
    return lengths, {c: rate / counts[float(count)] for c, rate in counts.items()}


def _moment_rate(count: int, length: int, generator: torch.Generator) -> float:
    import torch

    from thermokron.host.kfac.curvature.factors import Factor

    rows, factor = torch.randn(count, length, generator=generator), Factor((length, length))
    return 2.0 * count * length**2 / _work(partial(factor.moments, rows))


def _inverses(generator: torch.Generator) -> tuple[dict[float, float], float]:
    """Rates in float32, and how much longer the largest takes in float64."""
    found: dict[float, float] = {}
    seconds = 0.0
    for n in INVERTED:
        matrix = _definite(n, generator)
        seconds = _least(partial(_inverted, matrix))
        found[float(n)] = n**3 / seconds
    twice = matrix.double()
    return found, _least(lambda: _inverted(twice)) / seconds


def _inverted(matrix: torch.Tensor) -> torch.Tensor:
    """As K-FAC makes it on the host."""
    import torch

    from thermokron.host.kfac.solve.dense import definite_cholesky

    factor, _ = definite_cholesky(matrix, 1e-3)
    return torch.cholesky_inverse(factor).mT


def _definite(n: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    rows = torch.randn(2 * n, n, generator=generator)
    return rows.mT @ rows / (2 * n) + 0.1 * torch.eye(n)


def _eigendecompositions(generator: torch.Generator) -> dict[float, float]:
    import torch

    found: dict[float, float] = {}
    for n in DECOMPOSED:
        matrix = _definite(n, generator).double()  # as K-FAC takes it
        found[float(n)] = 9.0 * n**3 / _least(partial(torch.linalg.eigh, matrix))
    return found


def _memory(generator: torch.Generator) -> dict[float, float]:
    """Byte/s of a change of sign, by bytes."""
    import torch

    found: dict[float, float] = {}
    for moved in MOVED:
        entries = moved // 8
        fresh = 4 * entries >= NEW
        count = 3 if fresh else max(AROUND // moved, 1)
        inputs = [torch.ones(entries) for _ in range(count)]

        def all_of_them(inputs: list[torch.Tensor], kept: list[torch.Tensor] | None) -> None:
            for x in inputs:
                y = torch.neg(x)
                if kept is not None:
                    kept.append(y)

        times = []
        for _ in range(2 * ROUNDS):
            kept: list[torch.Tensor] | None = [] if fresh else None
            start = clock_of()()
            all_of_them(inputs, kept)
            times.append(clock_of()() - start)
        seconds = min(times) / count
        found[float(moved)] = moved / max(seconds - _launch(), 0.2 * seconds)
    return found


def _operations(generator: torch.Generator) -> dict[str, float]:
    """Byte/s of operations that compute much, by name."""
    from thermokron.host.predict.machines.computing import computing
    from thermokron.host.predict.workloads.recording import Recorder

    found: dict[str, float] = {}
    for name, action in computing(generator):
        with Recorder() as recorder:
            action()
        moved = sum(each.bytes for each in recorder.operations if each.kind == "memory")
        assert moved, name
        found[name] = moved / _work(action, PATIENCE / 2)
    return found

"""How much faster a pool's units are side by side: the same work on pools of one and of more units.

    python benchmarks/pool.py [ENGINE ...] [--units K ...]

Inverses of matrices of 16 rows, a task each. Pools of all sizes take turns, in one process, and
beside them as many threads that hash: what the machine has for threads at that time. Ratios are
medians over the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from thermokron.host import ENGINES, Pool, linalg, open_pool
from thermokron.model import UnitSpec

#: Matrices and samples by engine: about a second's work of one unit.
WORK = {"numeric": (48, 60_000), "compiled": (8, 40_000), "cosim": (8, 20_000)}
HASHED = bytes(2**27)


def inverses(pool: Pool, matrices: list[np.ndarray], samples: int) -> bytes:
    """Of all matrices, as bytes."""
    pool.stream = 0
    results = pool.map([partial(linalg.inv, pool, each, samples=samples) for each in matrices])
    return b"".join(result.value.tobytes() for result in results)


def hashes(threads: ThreadPoolExecutor) -> bytes:
    """Of the same bytes, six times."""
    return b"".join(threads.map(lambda _: hashlib.sha256(HASHED).digest(), range(6)))


def ratios(taken: list[list[float]]) -> list[float]:
    """How many times as fast as the first, round by round."""
    return [
        statistics.median(a / b for a, b in zip(taken[0], times, strict=True)) for times in taken
    ]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="*", default=list(WORK), metavar="ENGINE")
    parser.add_argument("--units", type=int, nargs="+", default=[1, 2], metavar="K")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if unknown := set(args.engines) - set(WORK):
        parser.error(f"no work for {sorted(unknown)}; legal: {', '.join(WORK)} of {ENGINES}")
    spec = UnitSpec(cells=16)
    rng = np.random.default_rng(0)
    print("| engine | units | seconds | times as fast | threads that hash |\n|---|---|---|---|---|")
    for engine in args.engines:
        count, samples = WORK[engine]
        data = rng.normal(size=(count, 64, 16))
        matrices = list(data.swapaxes(1, 2) @ data / 64 + 0.1 * np.eye(16))
        pools = [open_pool(engine, spec, units=k, seed=1) for k in args.units]
        threads = [ThreadPoolExecutor(k) for k in args.units]
        calls: list[Callable[[], bytes]] = [partial(inverses, p, matrices, samples) for p in pools]
        calls += [partial(hashes, each) for each in threads]
        taken: list[list[float]] = [[] for _ in calls]
        found: list[bytes] = []
        for _ in range(args.rounds):
            found = []
            for call, times in zip(calls, taken, strict=True):
                begin = time.perf_counter()
                found.append(call())
                times.append(time.perf_counter() - begin)
        for each in (*pools, *threads):
            each.close() if isinstance(each, Pool) else each.shutdown()
        assert len(set(found)) == 2, "results depend on the number of units"
        faster, hashing = ratios(taken[: len(pools)]), ratios(taken[len(pools) :])
        for k, times, ratio, yardstick in zip(args.units, taken, faster, hashing, strict=False):
            seconds = statistics.median(times)
            print(f"| {engine} | {k} | {seconds:.2f} | {ratio:.2f} | {yardstick:.2f} |")


if __name__ == "__main__":
    main()

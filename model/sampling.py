"""The samples of an array, drawn for every engine by one function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermokron.model.array import NoiseArray
from thermokron.model.discharges import (
    BLOCKS,
    Discharges,
    Room,
    Stretch,
    blocks_of,
    first_of,
    in_time,
    room,
    wipe,
)
from thermokron.model.linear import LinearDischarges
from thermokron.model.saturation import SaturatedDischarges
from thermokron.model.threads import single_threaded_blas, threads_at_hand

__all__ = ["BLOCKS", "SampleBlocks", "sample_blocks"]

#: Numbers that are worked on at a time, about: few enough for the cache, so many that calls, and
#: what is made of the samples, do not count.
AT_ONCE = 2**16
#: Nanoseconds of work from which on threads are worth their start.
WORTH_THREADS = 2e6

#: What is shown the samples; see `SampleBlocks.show`.
See = Callable[[slice, NDArray[np.float64], bool], None]


def sample_blocks(
    array: NoiseArray,
    biases: ArrayLike,
    *,
    settle_cycles: int,
    interval_cycles: int,
    seed: int,
    stream: int,
) -> SampleBlocks:
    """Samples of K discharges side by side, without end, in blocks; the caller truncates.

    Every engine draws from this function, which is why they return the same integers: sample j,
    taken settle_cycles + j·interval_cycles after the release of discharge, is a function of the
    array, its own bias vector, the two times, the seed and its stream alone (on one machine with
    one set of libraries): not of how many are taken, of other bias vectors, of the number of
    threads, or of whether blocks are asked for one by one or shown by `SampleBlocks.show`.

    Parameters
    ----------
    array : NoiseArray
        The programmed array.
    biases : (K, n) int
        Bias codes, a vector for each discharge.
    settle_cycles, interval_cycles : int
        Clock cycles to the first sample, and between samples.
    seed, stream : int
        Seed of the generators: the unit's, and the number of the first discharge.

    Yields
    ------
    voltages : (K, block, n) float64
        x at the sampling instants, in ADC full scales; see `BLOCKS` for the block's length.
    codes : (K, block, n) int16, C-contiguous
        What the ADC makes of them.
    """
    discharges = Discharges if array.modal else LinearDischarges
    if array.physics.cell_saturation is not None:
        discharges = SaturatedDischarges
    return SampleBlocks(
        discharges(
            array,
            biases,
            settle_cycles=settle_cycles,
            interval_cycles=interval_cycles,
            seed=seed,
            stream=stream,
        )
    )


class SampleBlocks(Iterator[tuple[NDArray[np.float64], NDArray[np.int16]]]):
    """What `sample_blocks` returns: an iterator over blocks, and `show` for many of them."""

    def __init__(self, discharges: Discharges) -> None:
        self._discharges = discharges
        self._block = 0
        self._last: NDArray[np.float64] | None = None

    def __next__(self) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        block, of = self._block, self._discharges
        stretch = Stretch(slice(0, of.vectors), block, block + 1)
        with single_threaded_blas(), room() as taken:
            begun = of.begin(stretch, taken)
            finals = of.finals(stretch, begun[1], self._last)
            steps = of.finish(stretch, taken, begun, finals, self._last)
            voltages = in_time(steps, block) * of.step
            of.convert(stretch, taken, steps)
            codes = in_time(steps, block).astype(np.int16, order="C")
        self._block, self._last = block + 1, finals[-1][:, -1]
        return voltages, codes

    def show(self, samples: int, see: See) -> None:
        """Have the codes of the first samples seen, in any order, by several threads at once.

        There are as many as BLAS may have, if there is enough to do for them. It begins with the
        first sample, wherever the iteration stands, and takes no more memory for more samples.

        Parameters
        ----------
        samples : int
            Samples per bias vector, at least 1.
        see : callable of (vectors, codes, clipped)
            Called with a slice of the bias vectors; their codes, (K, rows, n) float64, integers at
            some instants in no particular order, and rows of zeros, all valid until it returns; and
            whether any may be at a rail. Every sample is shown once.
        """
        of = self._discharges
        with single_threaded_blas():
            threads = threads_at_hand() if _work(of, samples) > WORTH_THREADS else 1
            stretches = _stretches(of, samples, threads)
            threads = min(threads, len(stretches))
            # of each stretch, for the next one of its vectors
            lasts: list[Future[NDArray[np.float64]]] = [Future() for _ in stretches[1:]]
            numbers = iter(range(len(stretches)))

            def work_out(number: int, taken: Room) -> None:
                stretch = stretches[number]
                begun = of.begin(stretch, taken)
                last = lasts[number - 1].result() if stretch.begin else None
                finals = of.finals(stretch, begun[1], last)
                if number < len(lasts):
                    lasts[number].set_result(finals[-1][:, -1])
                steps = of.finish(stretch, taken, begun, finals, last)
                clipped = of.convert(stretch, taken, steps)
                wipe(stretch, steps, samples)
                see(stretch.vectors, steps, clipped)

            errors: list[BaseException] = []

            def work() -> None:
                with room() as taken:
                    for number in numbers:  # in order: what one waits for has been begun
                        try:
                            work_out(number, taken)
                        except BaseException as error:
                            errors.append(error)
                            for _ in numbers:
                                pass  # nobody shall begin another
                            if number < len(lasts) and not lasts[number].done():
                                lasts[number].set_exception(error)

            # no executor: its threads begin under a lock that a fork elsewhere may hold while it
            # waits for that of BLAS
            others = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
            for other in others:
                other.start()
            work()
            for other in others:
                other.join()
            if errors:
                raise errors[0]


def _work(discharges: Discharges, samples: int) -> float:
    """About how many nanoseconds it takes to draw samples and to multiply them."""
    n = discharges.cells
    return discharges.vectors * samples * n * (8.0 + 0.07 * n)


def _stretches(discharges: Discharges, samples: int, threads: int) -> list[Stretch]:
    """All there is to do, for some vectors after others, and for these in the order of time."""
    vectors, blocks = discharges.vectors, blocks_of(samples)
    rows = first_of(blocks)
    most = max(AT_ONCE // discharges.cells, 1)
    if threads > 1:  # a few for each of them
        most = min(most, max(vectors * rows // (4 * threads), 1))
    # the blocks before those that are alike are as long as one of these
    long, head = max(most // sum(BLOCKS), 1), len(BLOCKS)
    ends = list(range(head + long - 1, blocks, long))
    together = max(most // rows, 1)
    return [
        Stretch(slice(first, min(first + together, vectors)), begin, end)
        for first in range(0, vectors, together)
        for begin, end in zip([0, *ends], [*ends, blocks], strict=True)
    ]

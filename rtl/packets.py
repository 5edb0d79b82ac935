"""What passes a unit's streams, as bytes and as the arrays that they stand for.

Pure arithmetic on a `UnitSpec`, shared by the gateware's documentation and the host's driver. All
numbers are little-endian, as NumPy has them; every packet is a whole number of beats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thermokron.model import UnitSpec
from thermokron.model.spec import MAX_SAMPLES
from thermokron.rtl.layout import coupling_cells, product_pairs

__all__ = ["STREAMS", "pack_biases", "pack_couplings", "result_bytes", "unpack_results"]

#: The streams by name, in the order of their numbers.
STREAMS = ("couplings", "biases", "results")
#: Bits of a clip count, below the sum in a word of results.
CLIP_BITS = MAX_SAMPLES.bit_length()


def _beat(spec: UnitSpec) -> int:
    if spec.stream_bits is None:
        raise ValueError("stream_bits = None: the unit has no streams; legal: 32, 64 or 128")
    return spec.stream_bits // 8


def _item(bits: int) -> str:
    return "<i1" if bits <= 8 else "<i2"


def pack_couplings(spec: UnitSpec, couplings: NDArray[np.integer]) -> bytes:
    """The packet of a coupling matrix (n, n), of codes within their range.

    Row by row the columns from the multiple of `dac_lanes` at or below the row's number on, up to
    a whole number of `dac_lanes` columns; what is not of the upper triangle is 0.
    """
    rows, columns, used = coupling_cells(spec)
    codes = np.zeros(len(rows), _item(spec.coupling_bits))
    codes[used] = couplings[rows[used], columns[used]]
    return _whole(codes.tobytes(), _beat(spec))


def pack_biases(spec: UnitSpec, biases: NDArray[np.integer]) -> bytes:
    """The packet of bias vectors (K, n), each of which is a whole number of beats."""
    kind, beat = np.dtype(_item(spec.bias_bits)), _beat(spec)
    codes = np.zeros((len(biases), _row(spec.cells, kind, beat)), kind)
    codes[:, : spec.cells] = biases
    return codes.tobytes()


def _whole(content: bytes, beat: int) -> bytes:
    return content + bytes(-len(content) % beat)


def _row(cells: int, kind: np.dtype[np.integer], beat: int) -> int:
    """Codes of a vector with those that fill its last beat."""
    return -(-cells * kind.itemsize // beat) * beat // kind.itemsize


def result_bytes(spec: UnitSpec, vectors: int, samples: int, second_moments: bool) -> int:
    """Length of the packet of results."""
    beat, n = _beat(spec), spec.cells
    if samples == 1 and not second_moments:
        kind = np.dtype(_item(spec.adc_bits))
        return vectors * _row(n, kind, beat) * kind.itemsize
    words = vectors * n + (n * spec.diagonals if second_moments else 0)
    return -(-8 * words // beat) * beat


def unpack_results(
    spec: UnitSpec, packet: bytes, vectors: int, samples: int, second_moments: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Sums (K, n), clip counts (K, n) and products (n, n) or None, from a packet of results.

    With one sample a vector, and no second moments, the packet holds codes, an int8 or int16 each.
    Otherwise it holds int64: sum · 2^21 + clip count, vector after vector; then the products of the
    cyclic diagonals, cell i beside cell (i + d) mod n at i · (⌊n/2⌋+1) + d.
    """
    n = spec.cells
    if samples == 1 and not second_moments:
        kind = np.dtype(_item(spec.adc_bits))
        codes = np.frombuffer(packet, kind).reshape(vectors, -1)[:, :n].astype(np.int64)
        rails = (codes == spec.adc_min) | (codes == spec.adc_max)
        return codes, rails.astype(np.int64), None
    words = np.frombuffer(packet, "<i8").astype(np.int64)
    sums = words[: vectors * n].reshape(vectors, n)
    products = None
    if second_moments:
        first, diagonal = product_pairs(spec)
        products = words[vectors * n :][first * spec.diagonals + diagonal]
    return sums >> CLIP_BITS, sums & ((1 << CLIP_BITS) - 1), products

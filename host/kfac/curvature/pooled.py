"""Sums of second moments that several processes gathered, added up."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch

from thermokron.host.kfac.curvature.factors import Factor
from thermokron.host.kfac.curvature.layers import Layer, full_precision
from thermokron.host.kfac.curvature.layers.base import Sums
from thermokron.host.kfac.curvature.passes import Pass
from thermokron.host.kfac.distributed import Ranks

__all__ = ["Pool", "Report", "packed", "unpacked"]

#: Of every layer that records: whether this process saw any of its data, and the counts of its
#: factors, loss terms included of passes that made no use of it.
Report = list[tuple[bool, list[float]]]


class Pool:
    """What layers recorded, on all processes together.

    Each process has summed up a aᵀ over its rows and g gᵀ over its loss terms, g being the
    gradient of their sum, so that sums add up to those of the whole batch, and so do the counts
    that they are divided by: the averages are those of one process that has seen everything,
    however unequal the shares. A layer that a process has not used, such as an expert, counts the
    process's loss terms all the same, as it does within one process.

    Parameters
    ----------
    layers : sequence of Layer
        All.
    ranks : Ranks
        The processes.
    """

    def __init__(self, layers: Sequence[Layer], ranks: Ranks) -> None:
        self.ranks = ranks
        parts = (layer.part_at(module) for layer in layers for module in layer.modules)
        self.parts = list(dict.fromkeys(parts))

    def report(self, passes: Collection[Pass]) -> Report:
        """What this process has to add of its passes, in numbers; nothing is taken from layers."""
        if self.ranks.size == 1 or not passes:
            return []
        report, terms = [], sum(here.own or 0.0 for here in passes if here.whole)
        for part in self.parts:
            own = part.take()
            seen = any(total is not None for total, _ in own)
            if not seen and terms:
                part.pass_over(terms)
                report.append((False, [count for _, count in part.take()]))
            else:
                report.append((seen, [count for _, count in own]))
                part.put(own)
        return report

    @contextmanager
    def added_up(self, reports: Sequence[Report]) -> Iterator[None]:
        """Layers hold what all processes recorded meanwhile, and afterwards their own again.

        Parameters
        ----------
        reports : sequence of Report
            Of all.
        """
        reports = [report for report in reports if report]
        seen = [part for i, part in enumerate(self.parts) if any(r[i][0] for r in reports)]
        if not seen:
            yield
            return
        counts = {
            part: [sum(each) for each in zip(*(report[i][1] for report in reports), strict=True)]
            for i, part in enumerate(self.parts)
        }
        own = {part: part.take() for part in seen}
        try:
            for part, totals in self._totals(own).items():
                part.put(list(zip(totals, counts[part], strict=True)))
            yield
        finally:
            for part, sums in own.items():
                part.discard()
                part.put(sums)

    def _totals(self, own: dict[Layer, Sums]) -> dict[Layer, list[torch.Tensor]]:
        """Sums over all processes, one exchange for each type; every matrix as a triangle."""
        factors = [
            (part, factor, total)
            for part, sums in own.items()
            for factor, (total, _) in zip(part.factors.values(), sums, strict=True)
        ]
        kinds = {part: _kind(part) for part in own}
        found: dict[tuple[Layer, int], torch.Tensor] = {}
        for kind in dict.fromkeys(kinds.values()):
            mine = [each for each in factors if kinds[each[0]] == kind]
            flat = torch.cat([_flat(factor, total, *kind) for _, factor, total in mine])
            self.ranks.add_up("second moments", flat)
            start = 0
            for part, factor, _ in mine:
                length = _length(factor)
                found[part, id(factor)] = _unflat(factor, flat[start : start + length])
                start += length
        return {part: [found[part, id(f)] for f in part.factors.values()] for part in own}


def _kind(part: Layer) -> tuple[torch.dtype, torch.device]:
    """In which type, and where, a layer's moments are."""
    weight = part.parameters[0]
    return full_precision(weight).dtype, weight.device


def _flat(
    factor: Factor, total: torch.Tensor | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    if total is None:
        return torch.zeros(_length(factor), dtype=dtype, device=device)
    whole = total.to(device, dtype).expand(factor.shape)
    return (whole if factor.diagonal else packed(whole)).reshape(-1)


def _length(factor: Factor) -> int:
    """Numbers that a factor's sum is sent as."""
    entries = torch.Size(factor.shape).numel()
    if factor.diagonal:
        return entries
    size = factor.size
    upper = size - size // 2
    return factor.blocks * (upper * (upper + 1) + size // 2 * upper)


def _unflat(factor: Factor, flat: torch.Tensor) -> torch.Tensor:
    if factor.diagonal:
        return flat.reshape(factor.shape).clone()
    return unpacked(flat.reshape(*factor.shape[:-2], -1), factor.size)


def packed(matrices: torch.Tensor) -> torch.Tensor:
    """Symmetric (..., n, n) as (..., about n(n+1)/2), without a list of indices.

    With M = [P Q; Qᵀ R], P of n/2 rows: the triangle of R above its diagonal and that of P below
    have a rectangle together, beside Q.
    """
    half = matrices.shape[-1] // 2
    p, q, r = matrices[..., :half, :half], matrices[..., :half, half:], matrices[..., half:, half:]
    more = r.shape[-1] - half
    both = torch.nn.functional.pad(r.triu(), (1, 0))
    both += torch.nn.functional.pad(p.tril(), (0, 1 + more, 0, more))
    return torch.cat([both.flatten(-2), q.flatten(-2)], dim=-1)


def unpacked(flat: torch.Tensor, size: int) -> torch.Tensor:
    """What `packed` was made of, of `size` rows."""
    half = size // 2
    rest, lead = size - half, flat.shape[:-1]
    both = flat[..., : rest * (rest + 1)].reshape(*lead, rest, rest + 1)
    matrix = flat.new_empty(*lead, size, size)
    if half:
        q = flat[..., rest * (rest + 1) :].reshape(*lead, half, rest)
        matrix[..., :half, half:], matrix[..., half:, :half] = q, q.mT
        p = both[..., :half, :half]
        matrix[..., :half, :half] = p.tril() + p.tril(-1).mT
    r = both[..., 1:]
    matrix[..., half:, half:] = r.triu() + r.triu(1).mT
    return matrix

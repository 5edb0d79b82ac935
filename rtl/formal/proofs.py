"""Every proof there is, the blocks' before those of what is made of them."""

from __future__ import annotations

from thermokron.rtl.formal import axi, moments, pins, runs, sampler, streams
from thermokron.rtl.formal.proof import Proof

__all__ = ["PROOFS"]

_MODULES = (axi, sampler, moments, pins, runs, streams)
PROOFS: tuple[Proof, ...] = tuple(proof for module in _MODULES for proof in module.PROOFS)

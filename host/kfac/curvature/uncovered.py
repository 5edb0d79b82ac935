"""Says once of every parameter that keeps its plain gradient, and why."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import torch

from thermokron.host.kfac.curvature.layers import Coverage, Layer
from thermokron.host.kfac.curvature.layers.coverage import in_words

__all__ = ["Uncovered"]


class Uncovered:
    """Looks at every step for gradients that K-FAC does not precondition, and names them once.

    What was known when K-FAC was made was said then. Later, parameters may be added, replaced,
    pruned, parametrized or unfrozen; or K-FAC sees no data of a layer that gets a gradient: its
    module is in eval mode, say, or its weight is used by hand.

    Parameters
    ----------
    model : torch.nn.Module
        As it is when K-FAC is made.
    coverage : Coverage
        What was found in it.
    fisher : str
        Which curvature is gathered.
    """

    def __init__(self, model: torch.nn.Module, coverage: Coverage, fisher: str) -> None:
        self._model, self._fisher = model, fisher
        self._told = set(coverage.plain)
        self._frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        self._known = {name: id(p) for name, p in model.named_parameters()}
        #: which of the model's parameters need no further look, by their id
        self._expected = {self._known[name] for name in coverage.plain}

    def check(
        self,
        layers: Sequence[Layer],
        moved: Collection[Layer],
        present: Collection[Layer],
        *,
        due: bool,
    ) -> None:
        """Warn of what has a gradient and is not preconditioned.

        Parameters
        ----------
        layers : sequence of Layer
            All.
        moved : collection of Layer
            Those that this step's passes reached.
        present : collection of Layer
            Those whose gradient is preconditioned.
        due : bool
            Whether passes were to be recorded.

        Raises
        ------
        RuntimeError
            If no layer has ever seen a pass.
        """
        if not any(layer.has_factors for layer in layers):
            before = (
                "loss.backward()"
                if self._fisher == "empirical"
                else "loss = criterion(model(inputs), targets), with the criterion given to KFAC, "
                "and loss.backward()"
            )
            raise RuntimeError(
                f"no layer has seen a backward pass in training mode; call step() after {before}. "
                "What torch.compile compiled before KFAC was made takes no notice of it: call "
                "torch.compiler.reset() once it is made"
            )
        covered = {id(p): layer for layer in present for p in layer.parameters}
        strangers = any(
            p.grad is not None and id(p) not in covered and id(p) not in self._expected
            for p in self._model.parameters()
        )
        stale = [layer for layer in present if layer not in moved] if due else []
        if strangers or stale:
            self._tell(layers, covered, stale)

    def _tell(
        self, layers: Sequence[Layer], covered: dict[int, Layer], stale: Sequence[Layer]
    ) -> None:
        owners = {id(p): layer for layer in layers if layer.intact for p in layer.parameters}
        plain: dict[str, str] = {}
        old = []
        for name, p in self._model.named_parameters():
            if p.grad is None or name in self._told:
                continue
            if id(p) not in covered:
                plain[name] = self._reason(name, p, owners.get(id(p)))
                self._expected.add(id(p))
                self._told.add(name)
            elif covered[id(p)] in stale:
                old.append(name)
                self._told.add(name)
        if plain:
            warnings.warn(
                f"K-FAC has no curvature for {'; '.join(in_words(plain))}: plain gradients there",
                stacklevel=5,  # of the caller of KFAC.step
            )
        if old:
            warnings.warn(
                f"K-FAC saw none of the data behind the gradient of {', '.join(old)} in this step: "
                "preconditioned by the curvature of earlier ones",
                stacklevel=5,
            )

    def _reason(self, name: str, p: torch.nn.Parameter, owner: Layer | None) -> str:
        """Why a parameter is not covered."""
        if name in self._frozen:
            return "frozen when KFAC was made; make it anew"
        if owner is not None and owner.has_factors:
            return "its layer's other parameter has no gradient, or another layer shares it now"
        if owner is not None:
            return "K-FAC saw none of its data"
        known = self._known.get(name)
        if known is None:
            return "added, pruned or parametrized since KFAC was made; make it anew"
        if known != id(p):
            return "replaced since KFAC was made; make it anew"
        return "its module has changed since KFAC was made; make it anew"

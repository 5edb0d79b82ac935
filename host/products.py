"""Products of matrices on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["product"]

#: Products of fewer multiplications than this are torch's: handing them over takes 10 µs.
FEW = 256**3
#: From here on oneDNN gains more from a factor whose rows it can read in order than the copy takes;
#: parts of larger matrices are copied always, as they would go to a slow loop.
MANY = 768**3


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left @ right`; large products of float32 matrices on the CPU through oneDNN.

    torch multiplies matrices by MKL, which leaves the AVX-512 units of AMD processors idle; oneDNN
    does not, and takes half of the time there. It is reached as the linear layer that torch's
    compiler makes of it, without a layout of its own; its results are as exact, and the same from
    run to run.
    """
    import torch

    multiplications = left.numel() * right.shape[-1]
    if multiplications < FEW or not _for_onednn(left, right):
        return left @ right
    weight = right.mT
    if multiplications >= MANY or not (right.is_contiguous() or weight.is_contiguous()):
        weight = weight.contiguous()
    answer: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        left.contiguous(), weight, None, "none", [], ""
    )
    return answer


def _for_onednn(left: torch.Tensor, right: torch.Tensor) -> bool:
    import torch

    return (
        left.ndim == right.ndim == 2
        and left.dtype == right.dtype == torch.float32
        and left.device.type == right.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )

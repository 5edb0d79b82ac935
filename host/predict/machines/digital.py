"""What K-FAC's parts of a step, and the optimiser's, ask of a digital computer.

As `thermokron.host.kfac` does it on the host: n, m are the rows of a block's factors A and G, R the
vectors of which moments are made; every number has 4 bytes.

    factors     2 R n² + 2 R m² operations for both moments, their running averages, and copies of
                inputs (homogeneous coordinate, patches of convolutions) and scaled gradients
    inversion   n³ + m³ operations: Cholesky factorisations, and the inverses made of them
    apply       2 m n (m + n) operations of G⁻¹ V A⁻¹; gathering, checking, shortening V
    update      the optimiser's: memory alone

Parts are `Operation`s, of which `Machine.seconds`, `total_flops` and `total_bytes` make the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from thermokron.host.predict.workloads.workload import Block, Operation, Workload

__all__ = [
    "APPLIED",
    "MOMENTS",
    "OPTIMISERS",
    "PATCHES",
    "ROWS",
    "apply_operations",
    "curvature_operations",
    "factor_operations",
    "inversion_operations",
    "update_operations",
]

#: Names of operations, for which machines may have rates.
MOMENTS, APPLIED, PATCHES, ROWS = "moments", "precondition", "patches", "rows"
#: Numbers read and written for every parameter, by a kernel that does it all at once.
#: sgd: p, g, momentum read, p, momentum written; adam: p, g and two moments read, three written.
OPTIMISERS = {"sgd": 5, "adam": 7}
#: The same for every entry of a dense factor: its sum divided by a count, and a running average.
AVERAGED = 2 + 3
#: For every number that a norm returns: scaled gradient, input normalised, product, both summed.
NORMALISED = 2 + 2 + 3 + 3
#: Before a factor is inverted: divided by the average's weight, damped, its norm taken.
DAMPED = 2 + 1
#: Gradients of a block: put together, checked, compared with the last step, twice with the update,
#: which is shortened, checked and written back; and the parameters copied.
HANDLED = 2 + 1 + 9 + 8 + 2 + 1 + 2 + 2
#: Inverses by LAPACK: copies that its order and its triangles ask for.
COPIED = 6


def factor_operations(block: Block, *, inputs: bool = True) -> tuple[Operation, ...]:
    """Moments of one pass, and their averages.

    Parameters
    ----------
    block : Block
        Of whose layer.
    inputs : bool
        Whether the moments of its inputs have to be made: layers with equal inputs share them.
    """
    n, m, rows, blocks = block.inputs, block.outputs, block.rows, block.blocks
    made: list[Operation] = []
    if block.diagonal_inputs:  # one-hot, counted
        made.append(_memory("factors", 8 * rows + 4 * n, 1))
    elif inputs:
        if block.patch > 1:
            made.append(_memory("factors", 8 * blocks * rows * n, 1, PATCHES))
        if block.bias:
            made.append(_memory("factors", 8 * blocks * rows * n, 1))
        made.append(Operation.product("factors", n, rows, n, blocks, name=MOMENTS))
    # scaled to those of a sum; of convolutions brought into rows, too
    made.append(_memory("factors", 8 * blocks * rows * m, 1))
    if block.patch > 1:
        made.append(_memory("factors", 8 * blocks * rows * m, 1, ROWS))
    if block.diagonal_outputs:
        made.append(_memory("factors", 12 * blocks * rows * m, 2))
    else:
        made.append(Operation.product("factors", m, rows, m, blocks, name=MOMENTS))
    for size, diagonal in ((n, block.diagonal_inputs), (m, block.diagonal_outputs)):
        entries = blocks * size ** (1 if diagonal else 2)
        made.append(_memory("factors", 4 * AVERAGED * entries, 2))
    return tuple(made)


def inversion_operations(block: Block, *, double: bool = False) -> tuple[Operation, ...]:
    """Both damped factors inverted; a diagonal costs its entries alone.

    Parameters
    ----------
    block : Block
        Whose factors.
    double : bool
        In float64, as the package does where the condition number times 1.2e-7 is above 1e-3, see
        `thermokron.host.kfac.solve.dense`.
    """
    made: list[Operation] = []
    for size, _ in block.dense:
        entries = block.blocks * size**2
        made.append(_memory("inversion", 4 * DAMPED * entries, 3))
        moved = (8 if double else 4) * COPIED * entries
        made.append(
            Operation(
                "inverse",
                "inversion",
                n=size,
                blocks=block.blocks,
                bytes=moved,
                name="cholesky_inverse",
                double=double,
            )
        )
    for size, diagonal in (
        (block.inputs, block.diagonal_inputs),
        (block.outputs, block.diagonal_outputs),
    ):
        if diagonal:
            made.append(_memory("inversion", 16 * block.blocks * size, 2))
    return tuple(made)


def apply_operations(block: Block) -> tuple[Operation, ...]:
    """G⁻¹ V A⁻¹ with the inverses, and what else a step does to V."""
    n, m, blocks = block.inputs, block.outputs, block.blocks
    made: list[Operation] = []
    if not block.diagonal_outputs:
        made.append(Operation.product("apply", m, m, n, blocks, name=APPLIED))
    if not block.diagonal_inputs:
        made.append(Operation.product("apply", m, n, n, blocks, name=APPLIED))
    diagonals = block.diagonal_inputs + block.diagonal_outputs
    entries = blocks * m * n
    made.append(_memory("apply", 4 * (HANDLED + 2 * diagonals) * entries, 16 + diagonals))
    return tuple(made)


def update_operations(workload: Workload, optimiser: str) -> tuple[Operation, ...]:
    """The optimiser's step: "sgd", with momentum, or "adam".

    Raises
    ------
    ValueError
        If there is no such optimiser.
    """
    if optimiser not in OPTIMISERS:
        raise ValueError(f"optimiser = {optimiser!r} is unknown; legal: {', '.join(OPTIMISERS)}")
    moved = OPTIMISERS[optimiser] * workload.element_bytes * workload.parameters
    return (_memory("update", moved, 1),)


def curvature_operations(blocks: Iterable[Block], diagonal: int = 0) -> tuple[Operation, ...]:
    """`factor_operations` of all blocks, moments of equal inputs made once.

    With the diagonal curvature of layers that return so many numbers, see `Workload`.
    """
    known: set[str] = set()
    made: list[Operation] = []
    for block in blocks:
        made += factor_operations(block, inputs=block.shared not in known)
        if block.shared:
            known.add(block.shared)
    if diagonal:
        made.append(_memory("factors", 4 * NORMALISED * diagonal, 1))
    return tuple(made)


def _memory(phase: str, moved: int, kernels: int, name: str = "") -> Operation:
    """Kernels that move so many bytes together."""
    return Operation("memory", phase, bytes=moved // kernels, count=kernels, name=name)

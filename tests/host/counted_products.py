"""Takes two steps of K-FAC and counts the products that they make, as JSON on standard output.

    python counted_products.py SETTINGS, a JSON list of objects: width, cells (null: no unit), and
    options of `KFAC`

Products of tensors are counted by torch's `FlopCounterMode`. NumPy has nothing like it, so `@` in
`thermokron.host` is rewritten, on its way in, to a function that counts, and functions that
multiply matrices count too. What is counted is 2mkn of a product (m, k) x (k, n), and 9n³ of an
eigendecomposition; the simulation of the array, in `thermokron.model`, is not looked at.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import json
import sys

import numpy as np

counted = {"numpy": 0}


def matmul(left, right):
    """`left @ right`, counted if NumPy makes it."""
    result = left @ right
    if isinstance(result, np.ndarray | np.generic):
        counted["numpy"] += 2 * np.size(result) * left.shape[-1]
    return result


class Rewriter(ast.NodeTransformer):
    """a @ b becomes counted_matmul(a, b)."""

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        name = ast.Name("counted_matmul", ast.Load())
        return ast.copy_location(ast.Call(name, [node.left, node.right], []), node)

    def visit_AugAssign(self, node):
        assert not isinstance(node.op, ast.MatMult), "not rewritten"
        return self.generic_visit(node)


class Loader(importlib.machinery.SourceFileLoader):
    """Loads rewritten sources."""

    def get_code(self, fullname):
        tree = Rewriter().visit(ast.parse(self.get_data(self.path)))
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


class Finder(importlib.machinery.PathFinder):
    """Finds the modules of `thermokron.host` for `Loader`."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if not fullname.startswith("thermokron.host."):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def counting(module, name, flops):
    """Count the calls of a function of NumPy's that come from `thermokron.host`."""
    original = getattr(module, name)

    def function(*args, **options):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("thermokron.host"):
            counted["numpy"] += flops(*args)
        return original(*args, **options)

    setattr(module, name, function)


def install():
    """Before anything of the package is imported."""
    builtins.counted_matmul = matmul
    sys.meta_path.insert(0, Finder)
    counting(np, "vdot", lambda a, b: 2 * a.size)
    counting(np, "einsum", lambda subscripts, *arrays: 2 * arrays[0].size)
    counting(np, "outer", lambda a, b: a.size * b.size)
    counting(np.linalg, "eigh", lambda a: 9 * len(a) ** 3)
    for module, names in ((np, "dot inner matmul tensordot kron"), (np.linalg, "inv solve svd qr")):
        for name in names.split():
            counting(module, name, lambda *args: 10**15)  # not used today: teach this file if so


def counted_steps(width, cells, **options):
    """Products made, and operations counted, in each of two steps."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from thermokron.host.kfac import KFAC
    from thermokron.model import NumericUnit, UnitSpec

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, 10)
    )
    unit = None if cells is None else NumericUnit(UnitSpec(cells=cells, adc_bits=8), seed=0)
    kfac = KFAC(model, unit, lr=0.1, damping=0.03, **options)
    found = []
    for _ in range(2):
        model.zero_grad()
        labels = torch.arange(64) % 10
        torch.nn.functional.cross_entropy(model(torch.randn(64, width)), labels).backward()
        counted["numpy"] = 0
        with FlopCounterMode(display=False) as torchs:
            metrics = kfac.step()
        found.append(
            {
                "numpy": counted["numpy"],
                "torch": torchs.get_total_flops(),
                "counted": metrics.digital_flops,
            }
        )
    return found


def main():
    """Count, print."""
    install()
    print(json.dumps([counted_steps(**settings) for settings in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()

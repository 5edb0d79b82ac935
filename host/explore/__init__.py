"""The unit worth building: a search of its sizes for the least time, energy and area.

A candidate is a `UnitSpec` and how the host works with it. Each is trained on; what its training
asked of the unit is priced by `thermokron.host.predict`, and Optuna proposes the next ones.
"""

try:
    import optuna as _optuna  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"thermokron.host.explore needs {error.name}; install it with: "
        "pip install 'thermokron[train,explore]'",
        name=error.name,
    ) from None

from thermokron.host.explore.candidate import Candidate
from thermokron.host.explore.plan import Plan, load_plan, plan_names, plan_text
from thermokron.host.explore.results import Evaluated, Found
from thermokron.host.explore.search import explore

__all__ = [
    "Candidate",
    "Evaluated",
    "Found",
    "Plan",
    "explore",
    "load_plan",
    "plan_names",
    "plan_text",
]

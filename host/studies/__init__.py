"""Studies: many training runs from a declarative plan, kept on disk, told as tables and plots."""

try:
    import matplotlib as _matplotlib  # noqa: F401
    import sklearn as _sklearn  # noqa: F401
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"thermokron.host.studies needs {error.name}; install it with: "
        "pip install 'thermokron[train]'",
        name=error.name,
    ) from None

from thermokron.host.studies.plan import Study, load_study, plan_names, plan_text
from thermokron.host.studies.runner import run_study
from thermokron.host.studies.runs import Outcome, Run

__all__ = ["Outcome", "Run", "Study", "load_study", "plan_names", "plan_text", "run_study"]

"""The built-in cost models, registered through the same hook as any plugin's."""

from bench_core.costs.cmos45 import Cmos45, SeennCode
from bench_core.costs.imc import Imc
from bench_core.costs.memory import Memory
from bench_core.costs.models import CostModel
from bench_core.markers import hookimpl


@hookimpl
def bench_cost_models() -> list[CostModel]:
    """Return the built-in cost models."""
    return [Cmos45(), SeennCode(), Imc(), Memory()]

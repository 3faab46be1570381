"""The cost models that come with exitbench, registered like anyone else's."""

from bench_core.costs.cmos45 import Cmos45, SeennCode
from bench_core.costs.imc import Imc
from bench_core.costs.memory import Memory
from bench_core.costs.models import CostModel
from bench_core.markers import hookimpl


@hookimpl
def bench_cost_models() -> list[CostModel]:
    return [Cmos45(), SeennCode(), Imc(), Memory()]

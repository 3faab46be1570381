"""The cost models that come with exitbench, registered like anyone else's."""

from bench_core import hookimpl
from bench_core.costs.models import Cmos45, CostModel


@hookimpl
def bench_cost_models() -> list[CostModel]:
    return [Cmos45()]

"""The models that come with exitbench, registered like anyone else's."""

from bench_core import hookimpl
from bench_core.snn.models.base import Model
from bench_core.snn.models.small_conv import SmallConv, SmallConvDeep


@hookimpl
def bench_models() -> list[Model]:
    return [SmallConv(), SmallConvDeep()]

"""The data sets that come with exitbench, registered like anyone else's."""

from bench_core import hookimpl
from bench_core.data.base import Dataset
from bench_core.data.fashion_mnist import FashionMNIST
from bench_core.data.saccades import FashionSaccades


@hookimpl
def bench_datasets() -> list[Dataset]:
    return [FashionMNIST(), FashionSaccades()]

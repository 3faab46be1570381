"""What decisions cost: the operation ledger that counts while recording, and the models that price the counts."""

from bench_core.costs.models import CostModel
from bench_core.costs.operations import FirstLayer, OperationCounts, Operations, Overhead

__all__ = ["CostModel", "FirstLayer", "OperationCounts", "Operations", "Overhead"]

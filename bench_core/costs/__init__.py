"""Cost models: operation counts of a network and its controller, and their conversion to energy and latency."""

from bench_core.costs.models import CostModel
from bench_core.costs.operations import FirstLayer, OperationCounts, Operations, Overhead

__all__ = ["CostModel", "FirstLayer", "OperationCounts", "Operations", "Overhead"]

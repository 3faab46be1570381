"""ANN to SNN conversion: shared machinery. The methods are plugins."""

from bench_core.conversion.base import Converter, replace_activations

__all__ = ["Converter", "replace_activations"]

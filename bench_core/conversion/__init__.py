"""ANN to SNN conversion: shared machinery. The methods are plugins."""

from bench_core.conversion.base import Converter, replace_activations
from bench_core.conversion.kept import neuron_numbers, rebuilt

__all__ = ["Converter", "neuron_numbers", "rebuilt", "replace_activations"]

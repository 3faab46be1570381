"""ANN-to-SNN conversion: shared machinery. The methods are plugins."""

from bench_core.conversion.base import Converter, replace_activations
from bench_core.conversion.rebuild import converted_record, rebuilt

__all__ = ["Converter", "converted_record", "rebuilt", "replace_activations"]

"""Training: losses, regularisers, recipes, the loop."""

from bench_core.training.loop import EpochRecord, train_network
from bench_core.training.recipe import Recipe
from bench_core.training.regularizers import LayerRecord, Regularizer

__all__ = ["EpochRecord", "LayerRecord", "Recipe", "Regularizer", "train_network"]

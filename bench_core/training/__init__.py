"""Training: losses, regularisers, recipes, the loop."""

from bench_core.training.loop import EpochRecord, train_network
from bench_core.training.recipe import Recipe, RegularizerSpec
from bench_core.training.regularizers import LayerRecord, Regularizer, TrainingBatch

__all__ = ["EpochRecord", "LayerRecord", "Recipe", "Regularizer", "RegularizerSpec", "TrainingBatch", "train_network"]

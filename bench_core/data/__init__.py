"""Data sets: readers, frozen splits, simulated events."""

from bench_core.data.base import SPLITS, Dataset, ImageSplit
from bench_core.data.splits import calibration_halves, stratified_cut

__all__ = ["SPLITS", "Dataset", "ImageSplit", "calibration_halves", "stratified_cut"]

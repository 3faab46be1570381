"""Data sets: readers, frozen splits, simulated events."""

from bench_core.data.base import SPLITS, Dataset, Images, ImageSplit, LazyImages
from bench_core.data.splits import calibration_halves, stratified_cut

__all__ = ["SPLITS", "Dataset", "ImageSplit", "Images", "LazyImages", "calibration_halves", "stratified_cut"]

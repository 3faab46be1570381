"""Splits: how calibration data is cut from the training set, and halved, the same way on every machine.

Everything here is a pure function of labels and sample ids. A sample's place is decided by a counter-based hash of its
id, so it depends neither on the order of the samples nor on a library's random generator.
"""

import numpy as np
import torch

from bench_core.hashing import hash_order

__all__ = ["calibration_halves", "stratified_cut"]

_CUT_SALT = 0x43414C49  # "CALI"
_HALVES_SALT = 0x48414C46  # "HALF"


def stratified_cut(labels: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut ``size`` samples from a training set, the same number of each class where the classes allow it.

    Args:
        labels: [N] class index per sample; the sample ids are 0..N-1.
        size: samples to cut, at most N.

    Returns:
        The indices kept for training and the indices cut, each ascending.
    """
    order = _interleaved_by_class(labels, torch.arange(len(labels)), _CUT_SALT)
    cut = np.zeros(len(labels), dtype=bool)
    cut[order[:size]] = True
    mask = torch.from_numpy(cut)
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()


def calibration_halves(labels: torch.Tensor, sample_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two frozen halves of a calibration split: ``fit`` (what strategies learn from) and ``select`` (what chooses
    operating points).

    Within each class samples are ordered by a hash of their id and dealt alternately, so both halves hold the
    same classes in the same shares. A single sample serves as both halves.

    Returns:
        Indices into the given tensors, each ascending: fit [ceil(N / 2)], select [floor(N / 2)].
    """
    if len(labels) == 1:
        only = torch.zeros(1, dtype=torch.int64)
        return only, only
    keys = hash_order(sample_ids, _HALVES_SALT)
    order = np.lexsort((keys, labels.numpy()))  # class by class, hashed within, dealt alternately
    fit, select = np.sort(order[0::2]), np.sort(order[1::2])
    return torch.from_numpy(fit), torch.from_numpy(select)


def _interleaved_by_class(labels: torch.Tensor, sample_ids: torch.Tensor, salt: int) -> np.ndarray:
    """Sample positions ordered so that every prefix holds the classes as evenly as can be."""
    keys = hash_order(sample_ids, salt)
    classes = labels.numpy()
    order = np.lexsort((keys, classes))
    starts = np.searchsorted(classes[order], classes[order], side="left")
    rank_in_class = np.arange(len(order)) - starts
    return order[np.lexsort((classes[order], rank_in_class))]

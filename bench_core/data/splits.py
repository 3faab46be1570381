"""Splits: how calibration data is cut from the training set, and halved, identically on every machine.

Everything here is a pure function of labels and sample ids. A hash of its id determines a sample's place, so it depends
neither on the order of the samples nor on a library's random generator.

The cuts themselves are frozen: the choice of ``stratified_cut`` is stored in ``frozen/``, one number per line; the
sha256 of that file is part of a data set's identity. For data sets whose labels this project never saw, the file holds
ranks: the samples with these ranks within each class are cut, which requires no labels and is stratified as well.
"""

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
import torch

from bench_core.errors import DataError
from bench_core.util.stable_random import hash_order

__all__ = ["FROZEN", "calibration_halves", "cut_by_rank", "frozen", "ranks_in_class", "stratified_cut"]

# sha256 of the files in frozen/
FROZEN: Final[dict[str, str]] = {
    "cifar-10-calibration": "a16067d973829172a44fc7b032d6803818aba0c52c88d23ed90f044d5c29b083",
    "cifar-100-calibration-ranks": "db89110d38c39de61b99619932acfe7d6974a2aec46a9877e6a6ed5b6d56ba09",
    "cifar10-dvs-calibration": "0fe6aed07ac72b607937693e48e324f31c31e450cbb2afedcfc36dcc4a451c26",
    "cifar10-dvs-test": "c79ab938b36932bfccc3cf263d3922a6c3c9d4779de9090afba91018cecac576",
    "digits-calibration": "f23a9d07129b63f83f3758ea7523f412f5b9ee45fdf7e3560dbdebe8dbeadaad",
    "digits-test": "692810c3fc4cfee97e0ede38a65e81da5fda591f3a9575e18a067fef482e27a9",
    "dvs128-gesture-calibration-users": "a9551b4779a08cf29818bef99d4ff779d7053bf1739cebae7ee364424ada95b5",
    "imagenet-calibration-ranks": "78057d782b2deb15925550340c0e2ab07250736c16b2ad70cda4ed385f875439",
    "mnist-calibration": "6a0a9a94415fce9b5bc7b7cdf604c74cfaa0dd74db0ff53c1c3e08fa9108842d",
    "n-caltech101-calibration-ranks": "adbfd73d88a89aab26773ae7a8bdb3816c4f93b8c5654c2d74ab5a41fa4ab2cb",
    "n-caltech101-test-ranks": "c73d30e8b8840444e8d3b8214134438133766cccb3f7c249a368bb52871637ff",
    "tiny-imagenet-calibration-ranks": "db89110d38c39de61b99619932acfe7d6974a2aec46a9877e6a6ed5b6d56ba09",
}

_CUT_SALT = 0x43414C49  # "CALI"
_HALVES_SALT = 0x48414C46  # "HALF"


def stratified_cut(labels: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut ``size`` samples from a training set, the same number of each class if the class sizes allow it.

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


def frozen(name: str) -> torch.Tensor:
    """Return the numbers in ``frozen/<name>.txt``, int64 [n], ascending. Raises DataError if the file is altered."""
    path = Path(__file__).parent / "frozen" / f"{name}.txt"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); install exitbench again") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != FROZEN[name]:
        expected = FROZEN[name][:12]
        raise DataError(f"{path}: altered (sha256 {found[:12]}…, expected {expected}…); install exitbench again")
    return torch.tensor([int(line) for line in raw.split()])


def ranks_in_class(labels: torch.Tensor) -> torch.Tensor:
    """Return, for each sample [N], how many samples of its class precede it, int64 [N]."""
    classes = labels.numpy()
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], classes[order], side="left")
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - starts
    return torch.from_numpy(ranks)


def cut_by_rank(labels: torch.Tensor, ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the samples whose rank within their class is listed; return indices kept and cut, each ascending."""
    mask = torch.isin(ranks_in_class(labels), ranks)
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()


def calibration_halves(labels: torch.Tensor, sample_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two frozen halves of a calibration split: ``fit`` and ``select``.

    Strategies are fitted on ``fit``; operating points are chosen on ``select``. Within each class, samples are ordered
    by a hash of their id and dealt alternately, so both halves hold the same classes in the same shares. A single
    sample is in both halves.

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
    """Return sample positions ordered so that every prefix holds the classes as evenly as possible."""
    keys = hash_order(sample_ids, salt)
    classes = labels.numpy()
    order = np.lexsort((keys, classes))
    starts = np.searchsorted(classes[order], classes[order], side="left")
    rank_in_class = np.arange(len(order)) - starts
    return order[np.lexsort((classes[order], rank_in_class))]

"""The contract for numbers: what agrees between two machines, and how closely.

- From the same logits every decision is the same: predictions, exit timesteps, accuracies, counts, histograms,
  statuses. Scores and knobs agree to ``RELATIVE``; a sample whose score is that close to the threshold may stop
  elsewhere.
- From the same weights single spikes flip if kernels round differently. Policies at the same knobs then agree to
  ``ACCURACY_POINTS`` and ``TIMESTEP_SHARE``, or to one sample if a test split is so small that one weighs more.
  Samples with a logit that moved by more than ``LOGIT`` are counted, and are at most ``FLIPPED_SHARE`` of all.
- Bytes are equal if everything that affects rounding is the same (``same_numerics``).

docs/reproducing.md has the reasons and the measurements.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

__all__ = [
    "ACCURACY_POINTS",
    "FLIPPED_SHARE",
    "LOGIT",
    "RELATIVE",
    "TIMESTEP_SHARE",
    "accuracy_allowance",
    "is_empty",
    "near_threshold",
    "same_cell",
    "same_numerics",
    "timestep_allowance",
]

RELATIVE = 1e-9
LOGIT = 1e-4  # more than rounding alone changes a logit, less than a flipped spike does
FLIPPED_SHARE = 0.1  # of samples; 0.058 was measured, and changing a weight by 1 % moves nearly all
ACCURACY_POINTS = 0.15
TIMESTEP_SHARE = 0.01
_SETTINGS = ("python", "torch", "numpy", "scipy", "machine", "numerics", "device")
_ROUNDING = 1e-12  # of the tolerances themselves
_NOTHING = 1e-12


def same_numerics(one: Mapping[str, Any], other: Mapping[str, Any], *, threads: bool) -> bool:
    """Return whether two environments round alike; an environment without a fingerprint matches no other.

    Args:
        one: from ``bench_core.util.environment.environment``.
        other: from ``bench_core.util.environment.environment``.
        threads: whether their number counts, as it does for networks but not for decisions.
    """
    names = (*_SETTINGS, "threads") if threads else _SETTINGS
    return all(name in one and one[name] == other.get(name) for name in names)


def same_cell(column: str, expected: Any, found: Any) -> bool:
    """Return whether two cells of a table agree: numbers to ``RELATIVE``, also inside JSON, everything else exactly.

    Differences of two figures may be pure rounding, so numbers below ``_NOTHING`` are equal, except for knobs.
    """
    nothing = 0.0 if column == "value" else _NOTHING
    if is_empty(expected) or is_empty(found):
        return is_empty(expected) and is_empty(found)
    if isinstance(expected, str) and isinstance(found, str) and expected != found:
        sides = _from_json(expected), _from_json(found)
        return None not in sides and _same_value(*sides, nothing)
    return _same_value(expected, found, nothing)


def is_empty(cell: Any) -> bool:
    """Return whether a cell means n/a."""
    return cell is None or cell == "" or bool(pd.isna(cell))


def accuracy_allowance(samples: int) -> float:
    """Return the allowed difference, as a share, of two accuracies on ``samples`` test samples."""
    return max(ACCURACY_POINTS / 100, 1 / samples) * (1 + _ROUNDING)


def timestep_allowance(average: float, samples: int, timesteps: int) -> float:
    """Return the allowed difference of two average exit timesteps, one of them ``average``, of T = ``timesteps``."""
    return max(TIMESTEP_SHARE * average, (timesteps - 1) / samples) * (1 + _ROUNDING)


def near_threshold(scores: torch.Tensor, threshold: float) -> int:
    """Return how many samples have a score so close to the threshold that they may stop elsewhere.

    Args:
        scores: float64 [N, T - 1].
        threshold: of the score.
    """
    if not math.isfinite(threshold):
        return 0
    distance = (scores - threshold).abs()
    near = distance <= RELATIVE * scores.abs().clamp(min=abs(threshold))
    return int(near.any(1).sum()) if scores.shape[1] else 0


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _same_value(expected: Any, found: Any, nothing: float) -> bool:
    if isinstance(expected, dict) and isinstance(found, dict):
        names = expected.keys()
        return names == found.keys() and all(_same_value(expected[name], found[name], nothing) for name in names)
    if isinstance(expected, list) and isinstance(found, list):
        pairs = zip(expected, found, strict=False)
        return len(expected) == len(found) and all(_same_value(one, other, nothing) for one, other in pairs)
    if _is_number(expected) and _is_number(found) and (isinstance(expected, float) or isinstance(found, float)):
        return math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=nothing)
    return bool(expected == found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

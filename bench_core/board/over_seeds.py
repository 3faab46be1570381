"""Rows over training seeds: how stable a figure is when the same network is trained from other seeds.

With at least five seeds the interval of a mean is Student's t at 95 %, mean ± t s / √n with n - 1 degrees of freedom,
which assumes that the seeds are a sample of all seeds and their figures roughly normal. With fewer seeds no interval
is claimed; the smallest and the largest value are shown.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from bench_core.board.schema import SEED_COLUMNS

__all__ = ["FEWEST_FOR_INTERVAL", "REMARK", "over_seeds", "seed_table"]

FEWEST_FOR_INTERVAL = 5
REMARK = (
    "Means over networks that differ in their training seed only; in brackets a 95 % t interval of the mean where "
    f"there are at least {FEWEST_FOR_INTERVAL} seeds, else the smallest and the largest value. “Missed” counts the "
    "seeds where the row missed its target or went over its budget on test."
)
_FIGURES = ("accuracy", "delta_points", "average_exit_timestep")
_MISSED = ("missed target", "over budget on test")


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float, str]:
    """Return mean, low, high and the kind of interval of one figure at one or more seeds.

    The interval is Student's t for five or more values, otherwise the range; for a single value both ends are NaN.
    """
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return mean, float("nan"), float("nan"), ""
    if count < FEWEST_FOR_INTERVAL:
        return mean, float(min(values)), float(max(values)), "range"
    half = float(student.ppf((1 + confidence) / 2, count - 1)) * float(np.std(values, ddof=1)) / count**0.5
    return mean, mean - half, mean + half, f"{100 * confidence:.0f} % t"


def seed_table(rows: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame | None:
    """Return every strategy at every operating point over the seeds of each group, from rows.csv; None without groups.

    Args:
        rows: of the whole board.
        groups: by common name, the workloads that differ only in their seed.
    """
    records: list[dict[str, Any]] = []
    for name, workloads in groups.items():
        own = rows[rows["workload"].isin(list(workloads))]
        for (point, strategy), at_point in own.groupby(["operating_point", "strategy"], sort=False):
            records.append(
                {
                    "workload": name,
                    "operating_point": point,
                    "strategy": strategy,
                    **_figures(at_point[at_point["accuracy"].notna()]),
                }
            )
    if not groups:
        return None
    return pd.DataFrame(records, columns=list(SEED_COLUMNS)).astype({"seeds": "Int64", "missed": "Int64"})


def _figures(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of one strategy at one operating point, over the seeds that have figures."""
    found: dict[str, Any] = {"workloads": json.dumps(rows["workload"].tolist()), "seeds": len(rows)}
    if len(rows):
        for name in _FIGURES:
            mean, low, high, found["interval"] = over_seeds(rows[name].astype(float).tolist())
            found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        found["missed"] = sum(any(text in str(note) for text in _MISSED) for note in rows["note"])
    return found

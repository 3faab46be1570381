"""Additions to a board's page from traces and data: the oracle's curve, the easiest and the hardest samples.

Everything shown is verified: a trace must match the manifest, a replayed policy must stop as many samples at each
timestep as its row says, and a data set's split must have the digest that the network was tested on.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench_core.board.board import Board
from bench_core.board.traces import kept_trace, trace_path
from bench_core.data import Dataset, ImageSplit
from bench_core.errors import ExitBenchError
from bench_core.exits.strategy import ExitStrategy, Requirement
from bench_core.replay.controller import Outcome
from bench_core.replay.family import FamilyOnTrace
from bench_core.scoring.metrics import oracle_points
from bench_core.scoring.scores import Recorded, fit_family, halve
from bench_core.trace.trace import Trace
from bench_core.util.arrays import Array

__all__ = ["Extras", "Gallery", "Sample", "read_extras"]

_EACH = 12  # images for each of easiest and hardest
_MAY_BE_SHOWN = ("MIT", "CC0-1.0", "Apache-2.0", "BSD-3-Clause")  # licences that permit showing some of the images


@dataclass(frozen=True)
class Sample:
    """One test image and its result; ``png`` is base64."""

    sample_id: int
    label: int
    prediction: int
    exit_timestep: int
    png: str


@dataclass(frozen=True)
class Gallery:
    """Samples that one policy stopped first, most confident first, and last, least confident first."""

    strategy: str
    operating_point: str
    dataset: str
    licence: str
    easiest: list[Sample]
    hardest: list[Sample]


@dataclass(frozen=True)
class Extras:
    """Information on one workload beyond the board's tables; None if traces or data are unavailable."""

    oracle: tuple[Array, Array] | None = None
    gallery: Gallery | None = None


def read_extras(
    folder: Path, board: Board, point: str, strategies: Mapping[str, ExitStrategy], datasets: Mapping[str, Dataset]
) -> dict[str, Extras]:
    """Return extras by workload, from the traces available in ``folder``.

    Args:
        folder: of the board.
        board: the board.
        point: the operating point whose best-ranked policy orders the samples.
        strategies: by name.
        datasets: by name.

    Raises:
        UsageError: a trace differs from the manifest's.
    """
    specs = {spec["name"]: spec for spec in board.manifest["suite"]["workloads"]}
    found = {}
    for workload in board.workloads["workload"]:
        facts = board.manifest["workloads"].get(workload, {})
        calibration, test = (_trace(folder, workload, split, facts) for split in ("calibration", "test"))
        if test is None:
            found[workload] = Extras()
            continue
        oracle = oracle_points(test.correct)
        dataset = datasets.get(specs.get(workload, {}).get("dataset", ""))
        gallery = None
        if calibration is not None and dataset is not None and facts.get("licence") in _MAY_BE_SHOWN:
            split = _split(dataset, facts.get("data", {}).get("test"))
            rows = board.rows[(board.rows["workload"] == workload) & (board.rows["operating_point"] == point)]
            ran = _ordering_policy(rows, strategies, calibration, test)
            if split is not None and ran is not None:
                gallery = _gallery(ran, test, split, dataset)
        found[workload] = Extras(oracle, gallery)
    return found


def _trace(folder: Path, workload: str, split: str, facts: Mapping[str, Any]) -> Trace | None:
    path = trace_path(folder, workload, split)
    return kept_trace(path, facts.get(f"{split}_trace")) if path.exists() else None


def _split(dataset: Dataset, digest: str | None) -> ImageSplit | None:
    """Return the test split if it is readable and the one that was tested on."""
    try:
        split = dataset.split("test")
    except ExitBenchError:
        return None
    return split if split.digest == digest and split.images.shape[1] in (1, 3) else None


def _ordering_policy(
    rows: pd.DataFrame, strategies: Mapping[str, ExitStrategy], calibration: Trace, test: Trace
) -> tuple[str, str, Outcome] | None:
    """Return the best-ranked row that replays as recorded and stops samples at different timesteps."""
    fit, _ = halve(Recorded(calibration))
    for row in rows[rows["status"] == "ok"].sort_values("rank", kind="stable").to_dict("records"):
        strategy = strategies.get(str(row["strategy"]).partition("[")[0])
        counts = json.loads(row["exit_histogram"])
        if strategy is None or Requirement.INPUTS in strategy.requires or np.count_nonzero(counts) < 2:
            continue
        try:
            family = fit_family(strategy.with_parameters(json.loads(row["parameters"])), fit)
            outcome = FamilyOnTrace(family, test).outcome(row["value"])
        except Exception:  # a different version of a plugin: skip its samples
            continue
        if np.bincount(outcome.exit_timesteps.numpy(), minlength=len(counts) + 1)[1:].tolist() == counts:
            return str(row["strategy"]), str(row["operating_point"]), outcome
    return None


def _gallery(ran: tuple[str, str, Outcome], test: Trace, split: ImageSplit, dataset: Dataset) -> Gallery:
    strategy, point, outcome = ran
    positions = {int(sample): position for position, sample in enumerate(split.sample_ids)}
    order = pd.DataFrame({"t": outcome.exit_timesteps.numpy(), "margin": -_margins(test, outcome)})
    order = order.sort_values(["t", "margin"], kind="stable")
    first, last = order.index[:_EACH].tolist(), order.index[::-1][:_EACH].tolist()

    def sample(index: int) -> Sample:
        number = int(test.sample_ids[index])
        return Sample(
            number,
            int(test.labels[index]),
            int(outcome.predictions[index]),
            int(outcome.exit_timesteps[index]),
            _png(split.images[positions[number]]),
        )

    easiest, hardest = ([sample(index) for index in indices] for indices in (first, last))
    return Gallery(strategy, point, dataset.name, dataset.licence, easiest, hardest)


def _margins(test: Trace, outcome: Outcome) -> Array:
    """Return the margin of the mean readout's best class over its second at the exit, float64 [N]."""
    parts = []
    for start, totals in test.totals():
        exits = outcome.exit_timesteps[start : start + len(totals)]
        top = totals[torch.arange(len(totals)), exits - 1].sort(1, descending=True).values
        parts.append((top[:, 0] - top[:, 1]) / exits)
    return np.asarray(torch.cat(parts).numpy())


def _png(image: torch.Tensor) -> str:
    """Encode a uint8 image [C, H, W] as png, in base64."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).contiguous().numpy()
    stream = BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "png", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()

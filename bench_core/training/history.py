"""The training history of a network, epoch by epoch, from the metadata of its weights."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["training_log"]


def training_log(workload: str, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of ``training.csv`` per epoch, in the order of training; none for weights not trained here.

    Stages are ``branch``, before it ``trunk``, ``trunk 2``, …; without a trunk it is ``all``.

    Args:
        workload: its name.
        metadata: of the artifact ``networks``; loss and accuracy are means over augmented training batches.
    """
    if "trunk" not in metadata:
        return list(_epochs(workload, "all", metadata))
    rows, number, trunk = list(_epochs(workload, "branch", metadata)), 1, metadata.get("trunk")
    while trunk is not None:
        rows = [*_epochs(workload, "trunk" if number == 1 else f"trunk {number}", trunk), *rows]
        number, trunk = number + 1, trunk.get("trunk")
    return rows


def _epochs(workload: str, stage: str, metadata: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "history" not in metadata:
        return
    place = metadata.get("environment", {})  # the earliest weights have no environment
    parts = (
        ("processor",) if "processor" in place else ("device", "machine", "cpu_capability")
    )  # the names in older weights
    device = " ".join(str(place[name]) for name in parts if name in place)
    for record in metadata["history"]:
        figures = {name: record.get(name) for name in ("epoch", "loss", "accuracy", "seconds")}
        made_on = {"device": device, "threads": place.get("threads"), "torch": place.get("torch")}
        yield {"workload": workload, "stage": stage, **figures, **made_on}

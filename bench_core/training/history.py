"""What training a network took, epoch by epoch, from what the artifact of its weights remembers."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["training_log"]


def training_log(workload: str, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of ``training.csv`` per epoch, in the order of training; weights that were not trained here have none.

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
    place = metadata.get("environment", {})  # the first weights don't say where they were trained
    parts = (
        ("processor",) if "processor" in place else ("device", "machine", "cpu_capability")
    )  # as older weights have it
    device = " ".join(str(place[name]) for name in parts if name in place)
    for record in metadata["history"]:
        figures = {name: record.get(name) for name in ("epoch", "loss", "accuracy", "seconds")}
        made_on = {"device": device, "threads": place.get("threads"), "torch": place.get("torch")}
        yield {"workload": workload, "stage": stage, **figures, **made_on}

"""Make a small board, and reproduce boards, in a process of its own: under the kernels that its environment chooses.

python -m tests.helpers.reproducing make FOLDER          with the networks of FOLDER/home, into FOLDER/board
python -m tests.helpers.reproducing check FOLDER …       each from traces and from weights
python -m tests.helpers.reproducing change FOLDER        with one thing changed at a time
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pandas as pd

from bench_core.errors import ExitBenchError
from bench_core.run.artifacts import Workload
from bench_core.run.run import run_suite
from bench_core.store.local import Store
from bench_core.trace.files import load_trace, save_trace
from bench_core.workflows.reproduction.reproduce import reproduce_board
from tests.helpers.suites import CONVERTED, DIRECT, parsed_suite, tiny_registry

STRATEGIES = ("fixed", "seenn-i", "dt-snn", "dynamic-confidence", "margin", "spikecp")
SUITE = {"workloads": [DIRECT, CONVERTED], "strategies": [{"name": name} for name in STRATEGIES]}


def make(folder: Path) -> None:
    """Run the suite."""
    store = Store(folder / "home", zoo=None)
    run_suite(parsed_suite(**SUITE), registry=tiny_registry(), output=folder / "board", store=store, export_traces=True)


def check(folders: list[Path]) -> dict[str, object]:
    """Reproduce boards in both ways: what drifted, and what was said."""
    return {folder.name: {way: reproduced(folder, way) for way in ("traces", "weights")} for folder in folders}


def change(folder: Path) -> dict[str, object]:
    """Reproduce a board with each of the changes."""
    found = {}
    for name, (way, made) in CHANGES.items():
        changed = folder.parent / f"{folder.name}-changed-{os.getpid()}"
        shutil.copytree(folder, changed)
        made(changed)
        found[name] = reproduced(changed, way)
        shutil.rmtree(changed)
    return found


def reproduced(folder: Path, way: str) -> dict[str, list[str]]:
    """What a reproduction said, or the line that refused it as drift."""
    store = Store(folder / "home", zoo=None)
    try:
        outcome = reproduce_board(
            folder / "board", tiny_registry(), from_weights=way == "weights", store=store, verified=False
        )
    except ExitBenchError as error:
        return {"drift": [str(error)], "remarks": []}
    return {"drift": outcome.drift, "remarks": outcome.remarks}


def a_logit(folder: Path) -> None:
    """One logit by 1e-3, in the file alone."""
    path = folder / "board" / "traces" / "direct-test.safetensors"
    trace = load_trace(path)
    logits = trace.logits.clone()
    logits[7, 2, 1] += 1e-3
    changed = type(trace).of(logits, {"labels": trace.labels, "sample_ids": trace.sample_ids}, trace.header)
    save_trace(changed, path)


def a_logit_and_its_digest(folder: Path) -> None:
    """The same, with the digest in the manifest made to fit."""
    a_logit(folder)
    digest = load_trace(folder / "board" / "traces" / "direct-test.safetensors").digest
    manifest = json.loads((folder / "board" / "manifest.json").read_text())
    manifest["workloads"]["direct"]["test_trace"] = digest
    (folder / "board" / "manifest.json").write_text(json.dumps(manifest))


def a_label(folder: Path) -> None:
    """One label, with the digest made to fit."""
    path = folder / "board" / "traces" / "direct-test.safetensors"
    trace = load_trace(path)
    labels = trace.labels.clone()
    labels[3] = (labels[3] + 1) % trace.classes
    beside = {"labels": labels, "sample_ids": trace.sample_ids, **trace.counts}
    save_trace(type(trace).of(trace.logits, beside, trace.header), path)
    manifest = json.loads((folder / "board" / "manifest.json").read_text())
    manifest["workloads"]["direct"]["test_trace"] = load_trace(path).digest
    (folder / "board" / "manifest.json").write_text(json.dumps(manifest))


def a_knob(folder: Path) -> None:
    """One knob by a millionth."""
    path = folder / "board" / "rows.csv"
    rows = pd.read_csv(path)
    place = rows.index[(rows["strategy"] == "seenn-i") & (rows["status"] == "ok")][0]
    rows.loc[place, "value"] *= 1 + 1e-6
    rows.to_csv(path, index=False)


def a_weight(folder: Path) -> None:
    """One weight by 1 %, in an artifact that is whole."""
    store, registry = Store(folder / "home", zoo=None), tiny_registry()
    key = Workload.resolve(parsed_suite(workloads=[DIRECT]).workloads[0], registry).training_key
    artifact = store.get("networks", key)
    assert artifact is not None
    tensors = {name: tensor.clone() for name, tensor in artifact.tensors.items()}
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 4)
    tensors[name].view(-1)[0] *= 1.01
    store.put("networks", key, tensors, {})


CHANGES = {
    "a logit": ("traces", a_logit),
    "a logit and its digest": ("traces", a_logit_and_its_digest),
    "a label": ("traces", a_label),
    "a label, from weights": ("weights", a_label),
    "a knob": ("traces", a_knob),
    "a weight": ("weights", a_weight),
}


if __name__ == "__main__":
    command, *places = sys.argv[1], *map(Path, sys.argv[2:])
    if command == "make":
        make(places[0])
    else:
        sys.stdout.write(json.dumps(check(places) if command == "check" else change(places[0])))

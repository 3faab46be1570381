"""The stages of a run that create an artifact: train, convert, record. Each is a function of declared inputs."""

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench_core.conversion import converted_record, rebuilt
from bench_core.errors import StoreError, TraceError, one_line
from bench_core.recording.record import BATCH, PART, Part, Recording, record_part, recorded_tensors
from bench_core.run.provenance import code_digest
from bench_core.run.reuse import data_digest, refuse_or_note, stored_header
from bench_core.run.workload import Workload
from bench_core.snn import AnalogNetwork, SpikingNetwork
from bench_core.store.local import Artifact, Store
from bench_core.trace.trace import Trace, trace_from_tensors
from bench_core.training import train_network
from bench_core.util.device import compute_device
from bench_core.util.digests import canonical_json, json_digest
from bench_core.util.environment import environment, processor
from bench_core.util.progress import note, progress

__all__ = [
    "Workload",
    "conversion_key",
    "has_trace",
    "record_shard",
    "recorded_trace",
    "recording_key",
    "shards_of",
    "spiking_network",
    "stored_weights",
    "trained_weights",
]

CONVERSION_VERSION = 1
_LOOKED_AT = 8  # inputs, and timesteps, used to compare a stored network with the converted one
RECORDING_VERSION = 1


def trained_weights(workload: Workload, store: Store, *, retrain: bool = False, until: float = math.inf) -> Artifact:
    """Return the trained weights, from the store or the package's zoo, training them on the training split if missing.

    Raises:
        TrainingPausedError: ``until`` (``time.monotonic()``) is reached first; see ``train_network``.
    """
    key = workload.training_key
    artifact = store.obtain("networks", key, lambda: _train(workload, store, until), again=retrain)
    if not retrain and (problem := _other_data(workload, artifact)):
        refuse_or_note(store, f"{store.path('networks', key)}: {problem}")
        artifact = store.obtain("networks", key, lambda: _train(workload, store, until), again=True)
    store.remove("training", [key])  # also left over if a run was killed right after its last epoch
    return artifact


def stored_weights(workload: Workload, store: Store) -> Artifact | None:
    """Return the trained weights that ``trained_weights`` would take from the store or the zoo, or None."""
    found = store.get("networks", workload.training_key)
    return None if found is None or _other_data(workload, found) else found


def _other_data(workload: Workload, weights: Artifact) -> str:
    """Return why weights are not from the current training split, or ""; checked for plugins' data sets only.

    Files of shipped data sets are checked against their identity on reading.
    """
    if "datasets" not in workload.code:
        return ""
    now = workload.split_digest("train")
    then = weights.metadata.get("training_data")
    return "" if now in (None, then) else _changed_data(workload, "train", then, now)


def _changed_data(workload: Workload, split: str, then: Any, now: str | None) -> str:
    what = f"made from other data of {workload.dataset.name}, split {split}"
    return one_line(f"{what} (digest {str(then)[:16]}, now {str(now)[:16]})")


def _train(workload: Workload, store: Store, until: float) -> Artifact:
    key, device, made_with = workload.training_key, compute_device(), workload.made_with
    made_with.name_others(store, "networks", workload.declared_training)
    network = workload.fresh_network().to(device)
    trunk = None
    if workload.trunk is not None:
        trunk = trained_weights(workload.trunk, store, until=until)
        network.load_state_dict(trunk.tensors)
    split = workload.dataset.split("train")
    history = train_network(
        network,
        workload.dataset,
        split,
        timesteps=workload.spec.timesteps,
        recipe=workload.spec.recipe,
        seed=workload.spec.seed,
        store=store,
        key=key,
        title=f"train {workload.spec.name}" + (" (branch)" if workload.trunk else ""),
        regularizer=workload.regularizer,
        until=until,
        facts={"workload": workload.spec.name},
        before_keeping=made_with.refuse_changes,
    )
    made_with.refuse_changes()
    metadata: dict[str, Any] = {
        "workload": workload.spec.model_dump(),
        "history": [vars(record) for record in history],
        "training_samples": len(split),
        "training_data": split.digest,
        "environment": {**environment(device), "processor": processor(device)},
        **({"trunk": trunk.metadata} if trunk else {}),
        **made_with.record(workload.declared_training),
    }
    return store.put("networks", key, network.cpu().state_dict(), metadata)


def spiking_network(workload: Workload, weights: Artifact, store: Store) -> SpikingNetwork:
    """Return the spiking network with trained weights, converted if the workload requires it, ready for inference."""
    network = _trained_network(workload, weights)
    if isinstance(network, AnalogNetwork):
        network = _kept_conversion(workload, weights, store) or _converted(workload, network, weights, store)
    return network.prepare_for_inference()


def _trained_network(workload: Workload, weights: Artifact) -> SpikingNetwork | AnalogNetwork:
    network = workload.fresh_network()
    network.load_state_dict(weights.tensors)
    return network.eval()


def conversion_key(workload: Workload, weights: Artifact) -> str | None:
    """Return the digest of everything a converted network depends on; None without conversion or if undeterminable."""
    code = [code_digest(type(made)) for made in (workload.converter, workload.model) if made is not None]
    if workload.converter is None or None in code:
        return None
    try:
        return json_digest(
            {
                "stage": "convert",
                "version": CONVERSION_VERSION,
                **_conversion(workload, weights),
                "data": workload.dataset.identity,
                "converter": vars(workload.converter),
                "code": code,
                "environment": {name: value for name, value in environment().items() if name != "threads"},
            }
        )
    except (TypeError, ValueError, RecursionError):  # the converter's state is not JSON-able
        return None


def _conversion(workload: Workload, weights: Artifact) -> dict[str, Any]:
    """Return the identity of the network to convert."""
    return {"network": workload.training_key, "weights": weights.digest, "timesteps": workload.spec.timesteps}


def _converted(workload: Workload, network: AnalogNetwork, weights: Artifact, store: Store) -> SpikingNetwork:
    """Convert a trained network, and store the result if its weights and neurons describe it completely."""
    assert workload.converter is not None
    made_with, calibration = workload.made_with, workload.dataset.split("calibration")
    with progress(f"convert {workload.spec.name}", 1, "network") as advance:
        inputs = workload.dataset.encode(calibration.images, workload.spec.timesteps)
        converted = workload.converter.convert(network, inputs).eval()
        advance(1, workload.converter.name)
    key = conversion_key(workload, weights)
    if key is None or store.offline:
        return converted
    try:
        record = json.loads(canonical_json(converted_record(converted)))
    except (TypeError, ValueError, AttributeError):  # neurons of another kind
        return converted
    tensors = converted.state_dict()
    twin = _rebuilt(workload, weights, record, tensors)
    if twin is not None and _same_networks(twin, converted, inputs[:_LOOKED_AT], workload.spec.timesteps):
        made_with.refuse_changes()
        facts = {"workload": workload.spec.name, "data": calibration.digest, **_conversion(workload, weights)}
        try:
            store.put("converted", key, tensors, {**facts, **record})
        except StoreError as error:  # the run can continue without it
            note(f"{error}; the converted network of {workload.spec.name} is not kept")
    return converted


def _same_networks(one: SpikingNetwork, other: SpikingNetwork, inputs: torch.Tensor, timesteps: int) -> bool:
    """Return whether two networks have the same structure and, for a few inputs, bit-identical outputs."""
    with torch.inference_mode():
        said = [network.run(inputs, min(timesteps, _LOOKED_AT)) for network in (one, other)]
    other.reset()
    return repr(one) == repr(other) and torch.equal(*said)


def _kept_conversion(workload: Workload, weights: Artifact, store: Store) -> SpikingNetwork | None:
    key = conversion_key(workload, weights)
    found = None if key is None else store.get("converted", key)
    if found is None:
        return None
    now, then = workload.split_digest("calibration"), found.metadata.get("data")
    if None not in (now, then) and now != then:
        problem = _changed_data(workload, "calibration", then, now)
        note(f"store: {store.path('converted', str(key))}: {problem}; made again")
        return None
    network = _rebuilt(workload, weights, found.metadata, found.tensors)
    if network is None:
        note(f"store: {store.path('converted', str(key))}: no network of {workload.spec.name}; it is made again")
    return network


def _rebuilt(
    workload: Workload, weights: Artifact, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> SpikingNetwork | None:
    """Return the network described by a record and its tensors, or None if they describe none."""
    network = _trained_network(workload, weights)
    assert isinstance(network, AnalogNetwork)
    try:
        return rebuilt(network, record, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None


def recording_key(
    workload: Workload, weights: Artifact, split: str, dropout: float = 0.0, *, per_layer: bool = False
) -> str:
    """Return the digest of everything that the trace of a split depends on."""
    facts = _declared_recording(workload, split, dropout, per_layer)
    made_of = {"network": workload.training_key, "weights": weights.digest}
    return json_digest({**facts, **made_of, **workload.made_with.identity})


def _declared_recording(workload: Workload, split: str, dropout: float, per_layer: bool) -> dict[str, Any]:
    """Return what a trace is recorded from, apart from weights and code."""
    return {
        "stage": "record",
        "version": RECORDING_VERSION,
        "network": workload.declared_training,
        "data": workload.dataset.identity,
        "split": split,
        "timesteps": workload.spec.timesteps,
        "batch": BATCH,
        **({"dropout": dropout} if dropout else {}),
        **({"per_layer": True} if per_layer else {}),
    }


def has_trace(workload: Workload, weights: Artifact, split: str, store: Store) -> bool:
    """Return whether the store has the trace of a split, recorded on its current data; it may be damaged."""
    key = recording_key(workload, weights, split)
    if not store.has("traces", key):
        return False
    header = stored_header(store, "traces", key)
    return not header or workload.split_digest(split) in (None, data_digest(header))


def recorded_trace(
    workload: Workload,
    weights: Artifact,
    split_name: str,
    store: Store,
    *,
    network: SpikingNetwork | None = None,
    dropout: float = 0.0,
    per_layer: bool = False,
) -> Trace:
    """Return the trace of a workload on a split, recording it if missing, in parts that survive a killed run.

    A trace that is damaged, or was recorded on other data than the split's current data, is reported and recorded
    again.
    """
    key = recording_key(workload, weights, split_name, dropout, per_layer=per_layer)
    declared = json_digest(_declared_recording(workload, split_name, dropout, per_layer))
    made_with = workload.made_with

    def make() -> Artifact:
        made_with.name_others(store, "traces", declared)
        recorded = network or spiking_network(workload, weights, store)
        recording = _recording(workload, recorded, split_name, dropout, per_layer)
        provenance = {
            "recording": key,
            "dataset": workload.dataset.name,
            "weights": weights.digest,
            "data": recording.split.digest,
        }
        tensors, header = recorded_tensors(
            recording,
            title=f"record {workload.spec.name} {split_name}",
            header={"workload": workload.spec.name, "provenance": provenance},
            keep_part=_KeptParts(workload, recording, store, key),
        )
        made_with.refuse_changes()
        return store.put("traces", key, tensors, made_with.record(declared), header=header)

    place = str(store.path("traces", key))
    found = store.obtain("traces", key, make)
    if problem := _other_recording(workload, split_name, found):
        refuse_or_note(store, f"{place}: {problem}")
        found = store.obtain("traces", key, make, again=True)
    try:
        trace = trace_from_tensors(found.tensors, found.header, place)
    except TraceError as error:
        note(f"store: {error}; it is made again")
        found = store.obtain("traces", key, make, again=True)
        trace = trace_from_tensors(found.tensors, found.header, place)
    store.remove("trace-parts", [_part_key(key, number) for number in range(shards_of(len(trace)))])
    return trace


def _other_recording(workload: Workload, split: str, trace: Artifact) -> str:
    """Return why a trace is not of the current split, or ""."""
    now, then = workload.split_digest(split), data_digest(trace.header)
    return "" if now in (None, then) else _changed_data(workload, split, then, now)


def shards_of(samples: int) -> int:
    """Return how many parts a recording of this many samples has."""
    return -(-samples // PART)


def record_shard(
    workload: Workload, weights: Artifact, split_name: str, number: int, store: Store, *, network: SpikingNetwork
) -> None:
    """Record one part of a trace into the store for ``recorded_trace``; parts may be recorded in any order.

    Does nothing if the part or the whole trace already exists.
    """
    key = recording_key(workload, weights, split_name)
    if has_trace(workload, weights, split_name, store):
        return
    recording = _recording(workload, network, split_name)
    positions = recording.parts[number]
    title = f"record {workload.spec.name} {split_name} part {number + 1}/{len(recording.parts)}"
    with progress(title, len(positions), "samples") as advance:
        _KeptParts(workload, recording, store, key)(number, partial(record_part, recording, positions))
        advance(len(positions))


def _recording(
    workload: Workload, network: SpikingNetwork, split_name: str, dropout: float = 0.0, per_layer: bool = False
) -> Recording:
    split, timesteps, device = workload.dataset.split(split_name), workload.spec.timesteps, compute_device()
    if device.type != "cpu":
        network = copy.deepcopy(network).to(device)  # a copy: the given network is run live on its own device
    return Recording(network, workload.dataset, split, timesteps, dropout, per_layer, part=PART, device=device)


@dataclass(frozen=True)
class _KeptParts:
    """The parts of a trace, from the store or built and stored now; memory-mapped, so that they use no memory."""

    workload: Workload
    recording: Recording
    store: Store
    key: str

    def __call__(self, number: int, build: Callable[[], Part]) -> Part:
        """Return a part, building and storing it if missing or recorded on other data."""
        part, data = _part_key(self.key, number), self.recording.split.digest
        made_with = self.workload.made_with

        def make() -> Artifact:
            built = build()
            made_with.refuse_changes()
            facts = {"trace": self.key, "batch": built.batch, "data": data, "workload": self.workload.spec.name}
            return self.store.put("trace-parts", part, built.tensors, facts)

        found = self.store.obtain("trace-parts", part, make)
        if (then := found.metadata.get("data", data)) != data:
            problem = _changed_data(self.workload, self.recording.split.name, then, data)
            refuse_or_note(self.store, f"{self.store.path('trace-parts', part)}: {problem}")
            found = self.store.obtain("trace-parts", part, make, again=True)
        return Part(found.tensors, found.metadata.get("batch", BATCH))


def _part_key(key: str, number: int) -> str:
    return json_digest({"trace": key, "part": number, "size": PART})

"""The stages of a run that end in an artifact: train, convert, record. Each a function of declared inputs."""

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench_core.conversion import Converter, converted_record, rebuilt
from bench_core.data import Dataset
from bench_core.device import compute_device
from bench_core.digests import canonical_json, json_digest
from bench_core.environment import environment, processor
from bench_core.errors import StoreError, TraceError
from bench_core.foreign_code import is_ours
from bench_core.plugin_manager import Registry
from bench_core.progress import note, progress
from bench_core.provenance import code_digest
from bench_core.recording import BATCH, PART, Part, Recording, record_part, recorded_tensors
from bench_core.snn import AnalogNetwork, SpikingNetwork
from bench_core.snn.models import Model
from bench_core.store import Artifact, Store
from bench_core.suite import WorkloadSpec
from bench_core.trace import Trace, trace_from_tensors
from bench_core.training import Regularizer, train_network

__all__ = [
    "Workload",
    "conversion_key",
    "record_shard",
    "recorded_trace",
    "recording_key",
    "shards_of",
    "spiking_network",
    "trained_weights",
]

TRAINING_VERSION = 1
CONVERSION_VERSION = 1
_LOOKED_AT = 8  # inputs, and timesteps, by which a kept network is compared with the converted one
RECORDING_VERSION = 1


@dataclass(frozen=True)
class Workload:
    """A workload with its data set, model, converter and regulariser looked up."""

    spec: WorkloadSpec
    dataset: Dataset
    model: Model
    converter: Converter | None
    regularizer: Regularizer | None = None
    trunk: "Workload | None" = None  # what its training goes on from

    @classmethod
    def resolve(cls, spec: WorkloadSpec, registry: Registry) -> "Workload":
        """Look up what the specification names. Raises UsageError for an unknown name or knob."""
        dataset = registry.find("datasets", spec.dataset)
        model = registry.find("models", spec.model)
        converter = None
        if spec.conversion is not None:
            converter = registry.find("converters", spec.conversion.converter)
            converter = converter.with_parameters(spec.conversion.parameters)
        regularizer = None
        if (wanted := spec.recipe.regularizer) is not None:
            regularizer = registry.find("regularizers", wanted.name).with_parameters(wanted.parameters)
        trunk = None
        if (before := spec.recipe.trunk) is not None:
            earlier = {"recipe": before, "timesteps": before.timesteps or spec.timesteps}
            trunk = cls.resolve(spec.model_copy(update=earlier), registry)
        return cls(spec, dataset, model, converter, regularizer, trunk)

    @property
    def is_ours(self) -> bool:
        """Whether all code that it needs comes with this package."""
        made = (self.dataset, self.model, self.converter, self.regularizer)
        return all(one is None or is_ours(one) for one in made) and (self.trunk is None or self.trunk.is_ours)

    @property
    def training_key(self) -> str:
        """Digest of everything that the trained weights depend on."""
        conversion = None
        if self.converter is not None:
            conversion = {"name": self.converter.name, "parameters": self.converter.parameters}
        recipe = self.spec.recipe.identity
        if self.regularizer is not None:
            recipe["regularizer"] = {**recipe["regularizer"], "parameters": self.regularizer.parameters}
        if self.trunk is not None:
            recipe["trunk"] = self.trunk.training_key
        return json_digest(
            {
                "stage": "train",
                "version": TRAINING_VERSION,
                "data": self.dataset.identity,
                "model": self.model.name,
                "timesteps": 1 if conversion else self.spec.timesteps,
                "seed": self.spec.seed,
                "recipe": recipe,
                "conversion": conversion,
            }
        )

    def fresh_network(self) -> SpikingNetwork | AnalogNetwork:
        """The untrained network, initialised from the workload's seed."""
        torch.manual_seed(self.spec.seed)
        shape, classes = self.dataset.input_shape, self.dataset.classes
        if self.converter is not None:
            return self.model.analog(shape, classes, self.converter.activation)
        return self.model.spiking(
            shape,
            classes,
            constant_input=self.dataset.constant_input,
            normalization=self.spec.recipe.normalization,
            timesteps=self.spec.timesteps,
            neuron=self.spec.recipe.neuron,
            surrogate=self.spec.recipe.surrogate,
        )


def trained_weights(workload: Workload, store: Store, *, retrain: bool = False, until: float = math.inf) -> Artifact:
    """The trained weights: from the store, from the package's zoo, or trained now on the training split.

    Raises TrainingPausedError where ``until`` (``time.monotonic()``) comes first: see ``train_network``.
    """
    key = workload.training_key
    artifact = store.obtain("networks", key, lambda: _train(workload, store, until), again=retrain)
    store.remove("training", [key])  # also what a run left that was killed right behind its last epoch
    return artifact


def _train(workload: Workload, store: Store, until: float) -> Artifact:
    key, device = workload.training_key, compute_device()
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
    )
    metadata: dict[str, Any] = {
        "workload": workload.spec.model_dump(),
        "history": [vars(record) for record in history],
        "training_samples": len(split),
        "training_data": split.digest,
        "environment": {**environment(device), "processor": processor(device)},
        **({"trunk": trunk.metadata} if trunk else {}),
    }
    return store.put("networks", key, network.cpu().state_dict(), metadata)


def spiking_network(workload: Workload, weights: Artifact, store: Store) -> SpikingNetwork:
    """The spiking network with trained weights, converted where the workload says so, ready for inference."""
    network = _trained_network(workload, weights)
    if isinstance(network, AnalogNetwork):
        network = _kept_conversion(workload, weights, store) or _converted(workload, network, weights, store)
    return network.prepare_for_inference()


def _trained_network(workload: Workload, weights: Artifact) -> SpikingNetwork | AnalogNetwork:
    network = workload.fresh_network()
    network.load_state_dict(weights.tensors)
    return network.eval()


def conversion_key(workload: Workload, weights: Artifact) -> str | None:
    """Digest of everything that a converted network depends on; None where nothing is converted, or can't be told."""
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
    except (TypeError, ValueError, RecursionError):  # the converter holds more than JSON can
        return None


def _conversion(workload: Workload, weights: Artifact) -> dict[str, Any]:
    """What is converted."""
    return {"network": workload.training_key, "weights": weights.digest, "timesteps": workload.spec.timesteps}


def _converted(workload: Workload, network: AnalogNetwork, weights: Artifact, store: Store) -> SpikingNetwork:
    """Convert a trained network now, and keep what came out, if weights and neurons tell all there is to it."""
    assert workload.converter is not None
    calibration = workload.dataset.split("calibration")
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
        try:
            store.put(
                "converted", key, tensors, {"workload": workload.spec.name, **_conversion(workload, weights), **record}
            )
        except StoreError as error:  # one can do without
            note(f"{error}; the converted network of {workload.spec.name} is not kept")
    return converted


def _same_networks(one: SpikingNetwork, other: SpikingNetwork, inputs: torch.Tensor, timesteps: int) -> bool:
    """Whether two networks are made alike and say the same, to the bit, of a few inputs."""
    with torch.inference_mode():
        said = [network.run(inputs, min(timesteps, _LOOKED_AT)) for network in (one, other)]
    other.reset()
    return repr(one) == repr(other) and torch.equal(*said)


def _kept_conversion(workload: Workload, weights: Artifact, store: Store) -> SpikingNetwork | None:
    key = conversion_key(workload, weights)
    found = None if key is None else store.get("converted", key)
    if found is None:
        return None
    network = _rebuilt(workload, weights, found.metadata, found.tensors)
    if network is None:
        note(f"store: {store.path('converted', str(key))}: no network of {workload.spec.name}; it is made again")
    return network


def _rebuilt(
    workload: Workload, weights: Artifact, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> SpikingNetwork | None:
    """The network that a record and its tensors say; None where they say none."""
    network = _trained_network(workload, weights)
    assert isinstance(network, AnalogNetwork)
    try:
        return rebuilt(network, record, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None


def recording_key(
    workload: Workload, weights: Artifact, split: str, dropout: float = 0.0, *, per_layer: bool = False
) -> str:
    """Digest of everything that the trace of a split depends on."""
    return json_digest(
        {
            "stage": "record",
            "version": RECORDING_VERSION,
            "network": workload.training_key,
            "weights": weights.digest,
            "data": workload.dataset.identity,
            "split": split,
            "timesteps": workload.spec.timesteps,
            "batch": BATCH,
            **({"dropout": dropout} if dropout else {}),
            **({"per_layer": True} if per_layer else {}),
        }
    )


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
    """The trace of a workload on a split: from the store, or recorded now in parts that survive a killed run."""
    key = recording_key(workload, weights, split_name, dropout, per_layer=per_layer)

    def make() -> Artifact:
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
            keep_part=partial(_kept_part, store, key),
        )
        return store.put("traces", key, tensors, header=header)

    place = str(store.path("traces", key))
    found = store.obtain("traces", key, make)
    try:
        trace = trace_from_tensors(found.tensors, found.header, place)
    except TraceError as error:
        note(f"store: {error}; it is made again")
        found = store.obtain("traces", key, make, again=True)
        trace = trace_from_tensors(found.tensors, found.header, place)
    store.remove("trace-parts", [_part_key(key, number) for number in range(shards_of(len(trace)))])
    return trace


def shards_of(samples: int) -> int:
    """How many parts the recording of so many samples has."""
    return -(-samples // PART)


def record_shard(
    workload: Workload, weights: Artifact, split_name: str, number: int, store: Store, *, network: SpikingNetwork
) -> None:
    """Record one part of a trace into the store, where ``recorded_trace`` finds it; parts need not be made in order.

    Nothing is done where the part or the whole trace is there already.
    """
    key = recording_key(workload, weights, split_name)
    if store.has("traces", key):
        return
    recording = _recording(workload, network, split_name)
    positions = recording.parts[number]
    title = f"record {workload.spec.name} {split_name} part {number + 1}/{len(recording.parts)}"
    with progress(title, len(positions), "samples") as advance:
        _kept_part(store, key, number, partial(record_part, recording, positions))
        advance(len(positions))


def _recording(
    workload: Workload, network: SpikingNetwork, split_name: str, dropout: float = 0.0, per_layer: bool = False
) -> Recording:
    split, timesteps, device = workload.dataset.split(split_name), workload.spec.timesteps, compute_device()
    if device.type != "cpu":
        network = copy.deepcopy(network).to(device)  # the one that was given is run live where it is
    return Recording(network, workload.dataset, split, timesteps, dropout, per_layer, part=PART, device=device)


def _kept_part(store: Store, key: str, number: int, build: Callable[[], Part]) -> Part:
    """A part of a trace: from the store, or built now and kept there; mapped, so that it takes no memory."""
    part = _part_key(key, number)

    def make() -> Artifact:
        built = build()
        return store.put("trace-parts", part, built.tensors, {"trace": key, "batch": built.batch})

    found = store.obtain("trace-parts", part, make)
    return Part(found.tensors, found.metadata.get("batch", BATCH))


def _part_key(key: str, number: int) -> str:
    return json_digest({"trace": key, "part": number, "size": PART})

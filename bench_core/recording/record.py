"""Recording: run a network once over a split, and store its outputs and operation counts as a trace."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from bench_core.data import Dataset, ImageSplit
from bench_core.errors import RecordingError
from bench_core.isolation.failures import out_of_memory
from bench_core.recording.ledger import OperationLedger, UncountableLayerError
from bench_core.snn import SpikingNetwork
from bench_core.trace.trace import LAYER_COUNTS, SCHEMA, Trace
from bench_core.util.device import CPU, device_name
from bench_core.util.environment import environment
from bench_core.util.progress import note, progress
from bench_core.util.sample_rows import SampleRows

__all__ = [
    "BATCH",
    "HALVINGS",
    "PART",
    "Part",
    "RecordableNetwork",
    "Recording",
    "record",
    "record_part",
    "recorded_tensors",
]

BATCH = 100  # samples per forward pass; part of a trace's identity, since rounding may depend on it
FOLD = 1  # timesteps computed together; results agree up to rounding, and larger folds exceed the cache
HALVINGS = 3  # how often the batch is halved if memory runs out
PART = 2_500  # samples per part; the most that a killed run loses


@dataclass(frozen=True)
class Part:
    """A trace's tensors, without labels and ids, for some of its samples, recorded ``batch`` samples per pass."""

    tensors: dict[str, torch.Tensor]
    batch: int = BATCH


KeepPart = Callable[[int, Callable[[], Part]], Part]


class RecordableNetwork(Protocol):
    """The interface that recording needs of a network. Operations are counted for a ``SpikingNetwork`` only."""

    def reset(self) -> None:
        """Clear all state."""

    def run(self, inputs: torch.Tensor, timesteps: int, *, fold: int | None = None) -> torch.Tensor:
        """Return o_t of all timesteps of new samples, [T, B, K], for input from ``Dataset.encode``."""


@dataclass(frozen=True)
class Recording:
    """A network to be run over a split, and how.

    Attributes:
        network: prepared for inference.
        dataset: encodes the samples.
        split: the samples.
        timesteps: T.
        dropout: probability of dropping each output of every spiking layer while recording (seeded).
        per_layer: record accumulates and spikes of each layer as well.
        batch: samples per forward pass; fewer if memory doesn't suffice.
        part: samples per part.
        device: the network's device; traces are made in memory all the same.
    """

    network: RecordableNetwork
    dataset: Dataset
    split: ImageSplit
    timesteps: int
    dropout: float = 0.0
    per_layer: bool = False
    batch: int = BATCH
    part: int = PART
    device: torch.device = CPU

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """Return the positions of the samples in each part."""
        return torch.split(torch.arange(len(self.split)), self.part)

    def run(self, positions: torch.Tensor, batch: int) -> dict[str, torch.Tensor]:
        """Return a trace's tensors, without labels and ids, for the samples at ``positions``, in batches."""
        ledger = None if self.dropout else self._ledger()  # with dropout, the cost of a spike is undefined
        tensors: dict[str, torch.Tensor] = {}
        start = 0
        with ExitStack() as stack:
            stack.callback(self.network.reset)  # frees the neurons' memory
            stack.enter_context(torch.inference_mode())
            if self.dropout:
                assert isinstance(self.network, SpikingNetwork)
                stack.enter_context(_dropping(self.network, self.dropout, seed=int(positions[0])))
            collect = stack.enter_context(ledger.counting()) if ledger else None
            for chosen in torch.split(positions, batch):
                inputs = self.dataset.encode(self.split.images[chosen], self.timesteps).to(self.device)
                logits = self.network.run(inputs, self.timesteps, fold=FOLD).transpose(0, 1)
                for name, values in {"logits": logits, **(collect(inputs) if collect else {})}.items():
                    if name not in tensors:
                        with torch.inference_mode(False):  # an ordinary tensor
                            tensors[name] = torch.empty((len(positions), *values.shape[1:]), dtype=values.dtype)
                    tensors[name][start : start + len(chosen)] = values
                start += len(chosen)
        if ledger:
            shape = (len(positions), self.timesteps)
            tensors["macs"] = torch.zeros(shape, dtype=torch.int64)
            tensors["neuron_updates"] = torch.full(shape, ledger.neuron_updates, dtype=torch.int64)
            tensors["macs_once"] = torch.full((len(positions),), ledger.macs_once, dtype=torch.int64)
        return tensors

    def _ledger(self) -> OperationLedger | None:
        if not isinstance(self.network, SpikingNetwork):
            return None
        try:
            return OperationLedger(self.network, self.dataset.input_shape, per_layer=self.per_layer)
        except UncountableLayerError as layer:
            note(f"operation counts: no rule for layer {layer}; energies will be n/a")
            return None


def record(
    recording: Recording, *, title: str, header: Mapping[str, Any] | None = None, keep_part: KeepPart | None = None
) -> Trace:
    """Return the trace of a recording, with operation counts if the ledger can count every layer.

    Arguments and errors are those of ``recorded_tensors``.
    """
    tensors, strings = recorded_tensors(recording, title=title, header=header, keep_part=keep_part)
    logits = tensors.pop("logits")
    return Trace.of(logits, {name: rows.whole() for name, rows in tensors.items()}, strings)


def recorded_tensors(
    recording: Recording, *, title: str, header: Mapping[str, Any] | None = None, keep_part: KeepPart | None = None
) -> tuple[dict[str, SampleRows], dict[str, str]]:
    """Return the tensors of a recording's trace by their names in a file, in recorded parts, and the header.

    Args:
        recording: what to record.
        title: shown with the progress.
        header: JSON-able entries of the trace's header, such as workload and provenance.
        keep_part: called with a part's number and a function that records it; may return the part from a store,
            memory-mapped.

    Raises:
        RecordingError: there is too little memory even for the smallest batch.
    """
    parts: list[Part] = []
    with progress(title, len(recording.split), "samples") as advance:
        for number, positions in enumerate(recording.parts):
            build = partial(record_part, recording, positions)
            parts.append(build() if keep_part is None else keep_part(number, build))
            advance(len(positions))
    split = recording.split
    tensors = {name: SampleRows([part.tensors[name] for part in parts]) for name in parts[0].tensors}
    tensors |= {"labels": SampleRows([split.labels]), "sample_ids": SampleRows([split.sample_ids])}
    strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (header or {}).items()}
    smallest = min(part.batch for part in parts)
    return tensors, strings | _header(recording, smallest, by_layer=not tensors.keys().isdisjoint(LAYER_COUNTS))


def _header(recording: Recording, batch: int, *, by_layer: bool) -> dict[str, str]:
    """Return the header entries that describe a recording made with ``batch`` samples at a time."""
    device = device_name(recording.device)
    how = {
        "batch": batch,
        "dtype": "float32",
        "device": device,
        "layout": "channels_last",
        "dropout": recording.dropout,
    }
    strings = {"schema": SCHEMA, "split": recording.split.name, "variant": json.dumps(how)}
    strings["environment"] = json.dumps(environment(recording.device))
    if by_layer:
        assert isinstance(recording.network, SpikingNetwork)
        layers = OperationLedger(recording.network, recording.dataset.input_shape).layers
        strings["layers"] = json.dumps([dataclasses.asdict(layer) for layer in layers])
    return strings


def record_part(recording: Recording, positions: torch.Tensor) -> Part:
    """Return a part of a recording; if memory runs out, restart it with half the batch, at most ``HALVINGS`` times.

    A smaller batch may round differently; the trace's ``variant`` records it. Raises RecordingError if the smallest
    batch is still too large.
    """
    for batch in dict.fromkeys(max(1, recording.batch >> halvings) for halvings in range(HALVINGS + 1)):
        try:
            return Part(recording.run(positions, batch), batch)
        except (MemoryError, RuntimeError) as error:  # torch has several types, all derived from RuntimeError
            if not out_of_memory(error):
                raise
            note(f"record {recording.split.name}: out of memory at batch {batch}")
    raise RecordingError(f"out of memory even at batch {batch}")


@contextmanager
def _dropping(network: SpikingNetwork, probability: float, *, seed: int) -> Iterator[None]:
    """Drop outputs of every spiking layer at random, as in training with dropout."""

    def drop(_neuron: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, probability, training=True)

    hooks = [neuron.register_forward_hook(drop) for neuron in network.neurons()]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

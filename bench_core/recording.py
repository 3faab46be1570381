"""Recording: run a network once over a split, and keep what it said and spent as a trace."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from bench_core.costs.ledger import OperationLedger, UncountableLayerError
from bench_core.data import Dataset, ImageSplit
from bench_core.errors import RecordingError
from bench_core.failures import out_of_memory
from bench_core.progress import note, progress
from bench_core.snn import SpikingNetwork
from bench_core.trace import LAYER_COUNTS, SCHEMA, Trace

__all__ = ["BATCH", "HALVINGS", "PART", "Part", "RecordableNetwork", "record", "record_part", "record_within_memory"]

BATCH = 100  # samples per forward pass; part of a trace's identity, since rounding may depend on it
FOLD = 2  # timesteps computed together; no result depends on it, and more of them lose to the cache
HALVINGS = 3  # so often is the batch halved where memory runs out
PART = 2_500  # samples per part; what a killed run loses at most


@dataclass(frozen=True)
class Part:
    """A trace's tensors, without labels and ids, for some of its samples; ``batch`` of them went in one pass."""

    tensors: dict[str, torch.Tensor]
    batch: int = BATCH


class RecordableNetwork(Protocol):
    """What recording needs of a network. Operations are counted of a ``SpikingNetwork`` only."""

    def reset(self) -> None:
        """Forget all state."""

    def run(self, inputs: torch.Tensor, timesteps: int, *, fold: int | None = None) -> torch.Tensor:
        """o_t of all timesteps of new samples, [T, B, K], from what ``Dataset.encode`` gives."""


def record(
    network: RecordableNetwork,
    dataset: Dataset,
    split: ImageSplit,
    timesteps: int,
    *,
    title: str,
    dropout: float = 0.0,
    per_layer: bool = False,
    batch: int = BATCH,
    part: int = PART,
    header: dict[str, Any] | None = None,
    keep_part: Callable[[int, Callable[[], Part]], Part] | None = None,
) -> Trace:
    """The trace of ``network`` on ``split``, with operation counts where the ledger knows every layer.

    Args:
        network: prepared for inference.
        title: shown with the progress.
        dropout: probability with which the output of every spiking layer is dropped while recording (seeded).
        per_layer: keep accumulates and spikes of each layer as well, and what the layers are in the header.
        batch: samples per forward pass.
        part: samples per part.
        header: JSON-able entries of the trace's header, such as workload and provenance.
        keep_part: called with a part's number and a function that records it; may return the part from a store.

    Raises:
        RecordingError: there is too little memory even for the smallest batch.
    """
    parts = []
    with progress(title, len(split), "samples") as advance:
        for number, positions in enumerate(torch.split(torch.arange(len(split)), part)):

            def build(positions: torch.Tensor = positions) -> Part:
                return record_within_memory(
                    network, dataset, split, positions, timesteps, dropout=dropout, per_layer=per_layer, batch=batch
                )

            parts.append(build() if keep_part is None else keep_part(number, build))
            advance(len(positions))
    smallest = min(one.batch for one in parts)
    variant = {"batch": smallest, "dtype": "float32", "device": "cpu", "layout": "channels_last", "dropout": dropout}
    tensors = {name: torch.cat([one.tensors[name] for one in parts]) for name in parts[0].tensors}
    logits = tensors.pop("logits")
    once = tensors.pop("macs_once", None)
    strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (header or {}).items()}
    strings |= {"schema": SCHEMA, "split": split.name, "variant": json.dumps(variant)}
    layer_counts = {name: tensors.pop(name) for name in LAYER_COUNTS if name in tensors}
    if layer_counts:
        assert isinstance(network, SpikingNetwork)
        ledger = OperationLedger(network, dataset.input_shape)
        strings["layers"] = json.dumps([dataclasses.asdict(layer) for layer in ledger.layers])
    return Trace(logits, split.labels, split.sample_ids, tensors, once, strings, layer_counts)


def record_within_memory(
    network: RecordableNetwork,
    dataset: Dataset,
    split: ImageSplit,
    positions: torch.Tensor,
    timesteps: int,
    *,
    dropout: float = 0.0,
    per_layer: bool = False,
    batch: int = BATCH,
) -> Part:
    """``record_part``, from the start with half the batch where memory runs out, at most ``HALVINGS`` times.

    A smaller batch may round differently, which the trace's ``variant`` tells. Raises RecordingError where the
    smallest batch is still too large.
    """
    for size in dict.fromkeys(max(1, batch >> halvings) for halvings in range(HALVINGS + 1)):
        try:
            tensors = record_part(
                network, dataset, split, positions, timesteps, dropout=dropout, per_layer=per_layer, batch=size
            )
            return Part(tensors, size)
        except Exception as error:
            network.reset()  # lets go of what the neurons hold
            if not out_of_memory(error):
                raise
            note(f"record {split.name}: out of memory at batch {size}")
    raise RecordingError(f"out of memory even at batch {size}")


def record_part(
    network: RecordableNetwork,
    dataset: Dataset,
    split: ImageSplit,
    positions: torch.Tensor,
    timesteps: int,
    *,
    dropout: float = 0.0,
    per_layer: bool = False,
    batch: int = BATCH,
) -> dict[str, torch.Tensor]:
    """A trace's tensors, without labels and ids, for the samples at ``positions``, ``batch`` of them at a time."""
    ledger = None if dropout else _ledger(network, dataset, per_layer)  # what is dropped costs nothing that can be told
    chunks: dict[str, list[torch.Tensor]] = {"logits": []}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if dropout:
            assert isinstance(network, SpikingNetwork)
            stack.enter_context(_dropping(network, dropout, seed=int(positions[0])))
        collect = stack.enter_context(ledger.counting()) if ledger else None
        for chosen in torch.split(positions, batch):
            inputs = dataset.encode(split.images[chosen], timesteps)
            logits = network.run(inputs, timesteps, fold=FOLD)
            chunks["logits"].append(logits.transpose(0, 1).contiguous())
            if ledger and collect:
                for name, values in collect(inputs).items():
                    chunks.setdefault(name, []).append(values)
    network.reset()
    tensors = {name: torch.cat(values) for name, values in chunks.items()}
    if ledger:
        shape = (len(positions), timesteps)
        tensors["macs"] = torch.zeros(shape, dtype=torch.int64)
        tensors["neuron_updates"] = torch.full(shape, ledger.neuron_updates, dtype=torch.int64)
        tensors["macs_once"] = torch.full((len(positions),), ledger.macs_once, dtype=torch.int64)
    return tensors


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


def _ledger(network: RecordableNetwork, dataset: Dataset, per_layer: bool) -> OperationLedger | None:
    if not isinstance(network, SpikingNetwork):
        return None
    try:
        return OperationLedger(network, dataset.input_shape, per_layer=per_layer)
    except UncountableLayerError as layer:
        note(f"operation counts: no rule for layer {layer}; energies will be n/a")
        return None

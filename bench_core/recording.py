"""Recording: run a network once over a split, and keep what it said and spent as a trace."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from bench_core.costs.ledger import OperationLedger, UncountableLayerError
from bench_core.data import Dataset, ImageSplit
from bench_core.progress import note, progress
from bench_core.snn import SpikingNetwork
from bench_core.trace import LAYER_COUNTS, SCHEMA, Trace

__all__ = ["BATCH", "PART", "record", "record_part"]

BATCH = 100  # samples per forward pass; part of a trace's identity, since rounding may depend on it
FOLD = 2  # timesteps computed together; no result depends on it, and more of them lose to the cache
PART = 2_500  # samples per part; what a killed run loses at most


def record(
    network: SpikingNetwork,
    dataset: Dataset,
    split: ImageSplit,
    timesteps: int,
    *,
    title: str,
    dropout: float = 0.0,
    per_layer: bool = False,
    header: dict[str, Any] | None = None,
    keep_part: Callable[[int, Callable[[], dict[str, torch.Tensor]]], dict[str, torch.Tensor]] | None = None,
) -> Trace:
    """The trace of ``network`` on ``split``, with operation counts where the ledger knows every layer.

    Args:
        network: prepared for inference.
        title: shown with the progress.
        dropout: probability with which the output of every spiking layer is dropped while recording (seeded).
        per_layer: keep accumulates and spikes of each layer as well, and what the layers are in the header.
        header: JSON-able entries of the trace's header, such as workload and provenance.
        keep_part: called with a part's number and a function that records it; may return the part from a store.
    """
    variant = {"batch": BATCH, "dtype": "float32", "device": "cpu", "layout": "channels_last", "dropout": dropout}
    starts = range(0, len(split), PART)
    parts = []
    with progress(title, len(split), "samples") as advance:
        for number, start in enumerate(starts):
            positions = torch.arange(start, min(start + PART, len(split)))

            def build(positions: torch.Tensor = positions) -> dict[str, torch.Tensor]:
                return record_part(network, dataset, split, positions, timesteps, dropout=dropout, per_layer=per_layer)

            parts.append(build() if keep_part is None else keep_part(number, build))
            advance(len(positions))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    logits = tensors.pop("logits")
    once = tensors.pop("macs_once", None)
    strings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (header or {}).items()}
    strings |= {"schema": SCHEMA, "split": split.name, "variant": json.dumps(variant)}
    layer_counts = {name: tensors.pop(name) for name in LAYER_COUNTS if name in tensors}
    if layer_counts:
        ledger = OperationLedger(network, dataset.input_shape)
        strings["layers"] = json.dumps([dataclasses.asdict(layer) for layer in ledger.layers])
    return Trace(logits, split.labels, split.sample_ids, tensors, once, strings, layer_counts)


def record_part(
    network: SpikingNetwork,
    dataset: Dataset,
    split: ImageSplit,
    positions: torch.Tensor,
    timesteps: int,
    *,
    dropout: float = 0.0,
    per_layer: bool = False,
) -> dict[str, torch.Tensor]:
    """A trace's tensors, without labels and ids, for the samples at ``positions``."""
    ledger = None if dropout else _ledger(network, dataset, per_layer)  # what is dropped costs nothing that can be told
    chunks: dict[str, list[torch.Tensor]] = {"logits": []}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if dropout:
            stack.enter_context(_dropping(network, dropout, seed=int(positions[0])))
        collect = stack.enter_context(ledger.counting()) if ledger else None
        for batch in torch.split(positions, BATCH):
            inputs = dataset.encode(split.images[batch], timesteps)
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


def _ledger(network: SpikingNetwork, dataset: Dataset, per_layer: bool) -> OperationLedger | None:
    try:
        return OperationLedger(network, dataset.input_shape, per_layer=per_layer)
    except UncountableLayerError as layer:
        note(f"operation counts: no rule for layer {layer}; energies will be n/a")
        return None

"""The training loop: seeded, resumable after any epoch, the last epoch kept."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bench_core.data.base import Dataset, ImageSplit
from bench_core.progress import progress
from bench_core.snn.network import SpikingNetwork
from bench_core.store import Store
from bench_core.training.augmentation import augment
from bench_core.training.losses import LOSSES
from bench_core.training.recipe import Recipe

__all__ = ["EpochRecord", "train_network"]

@dataclass(frozen=True)
class EpochRecord:
    """What an epoch of training saw: mean loss and accuracy on the augmented training batches."""

    epoch: int
    loss: float
    accuracy: float


def train_network(
    network: nn.Module,
    dataset: Dataset,
    split: ImageSplit,
    *,
    timesteps: int,
    recipe: Recipe,
    seed: int,
    store: Store,
    key: str,
    title: str,
) -> list[EpochRecord]:
    """Train ``network`` in place, on the training split only.

    After every epoch weights and optimiser state go to the store under ``key``; a run that was stopped goes on behind
    the last one and ends with the same weights. The order and augmentation of epoch e depend on (seed, e) alone.

    Returns:
        One record per epoch.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    history = _resume(network, optimizer, store, key)
    batches = len(split) // recipe.batch_size
    total = recipe.epochs * batches
    with progress(title, total, "batches") as advance:
        advance(len(history) * batches)
        for epoch in range(len(history), recipe.epochs):

            def set_rate(batch: int, epoch: int = epoch) -> None:
                done = (epoch * batches + batch) / total
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

            history.append(
                _train_epoch(network, optimizer, dataset, split, timesteps, recipe, seed, epoch, set_rate, advance)
            )
            _save(network, optimizer, history, store, key)
    return history


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    dataset: Dataset,
    split: ImageSplit,
    timesteps: int,
    recipe: Recipe,
    seed: int,
    epoch: int,
    set_rate: Callable[[int], None],
    advance: Callable[..., None],
) -> EpochRecord:
    network.train()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(split), generator=generator)
    loss_of = LOSSES[recipe.loss]
    batches = len(split) // recipe.batch_size
    losses = correct = 0.0
    for batch in range(batches):
        set_rate(batch)
        index = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        images = augment(split.images[index], generator, shift=recipe.shift, flip=recipe.flip)
        logits = _logits(network, dataset.encode(images, timesteps), timesteps)
        labels = split.labels[index]
        loss = loss_of(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.item()
        correct += (logits.detach().sum(0).argmax(1) == labels).float().mean().item()
        advance(1, f"epoch {epoch + 1}: loss {losses / (batch + 1):.3f}, accuracy {100 * correct / (batch + 1):.1f} %")
    return EpochRecord(epoch + 1, losses / batches, correct / batches)


def _logits(network: nn.Module, inputs: torch.Tensor, timesteps: int) -> torch.Tensor:
    """Logits [T, B, K]; an ANN counts as one timestep."""
    if isinstance(network, SpikingNetwork):
        return network.run(inputs, timesteps)
    return network(inputs.contiguous(memory_format=torch.channels_last)).unsqueeze(0)


def _save(
    network: nn.Module, optimizer: torch.optim.SGD, history: list[EpochRecord], store: Store, key: str
) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    store.put("training", key, tensors, {"history": [dataclasses.asdict(record) for record in history]})


def _resume(network: nn.Module, optimizer: torch.optim.SGD, store: Store, key: str) -> list[EpochRecord]:
    saved = store.get("training", key)
    if saved is None:
        return []
    state = {n.removeprefix("network."): t for n, t in saved.tensors.items() if n.startswith("network.")}
    network.load_state_dict(state)
    for name, parameter in network.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = saved.tensors[f"momentum.{name}"].clone()
    return [EpochRecord(**record) for record in saved.metadata["history"]]

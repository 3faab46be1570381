"""The training loop: seeded, resumable after any epoch, the last epoch kept."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bench_core.data.base import Dataset, ImageSplit
from bench_core.errors import TrainingPausedError, UsageError
from bench_core.progress import Advance, progress
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.store import Store
from bench_core.training.augmentation import augment, augment_frames
from bench_core.training.losses import LOSSES
from bench_core.training.recipe import Recipe
from bench_core.training.regularizers import LayerRecord, Regularizer, TrainingBatch, layer_records

__all__ = ["EpochRecord", "train_network"]

_BATCHES_BETWEEN_REMARKS = 10


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch of training saw, mean loss and accuracy on the augmented training batches, and took in seconds."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float | None = dataclasses.field(default=None, compare=False)


def train_network(
    network: SpikingNetwork | AnalogNetwork,
    dataset: Dataset,
    split: ImageSplit,
    *,
    timesteps: int,
    recipe: Recipe,
    seed: int,
    store: Store,
    key: str,
    title: str,
    regularizer: Regularizer | None = None,
    until: float = math.inf,
) -> list[EpochRecord]:
    """Train ``network`` in place and on the device that it is on, with the training split only.

    After every epoch weights and optimiser state go to the store under ``key``; a run that was stopped goes on behind
    the last one and ends with the same weights. The order and augmentation of epoch e depend on (seed, e) alone.
    ``regularizer`` is the one that the recipe names; its term is part of the reported loss.

    Args:
        until: ``time.monotonic()`` at which it has to have stopped: no epoch is begun that would take longer, if it
            takes as long as the one before. At least one is trained.

    Returns:
        One record per epoch.

    Raises:
        TrainingPausedError: ``until`` came before the last epoch.
    """
    training = _Training(network, dataset, split, regularizer, timesteps=timesteps, recipe=recipe, seed=seed)
    history = _resume(training.trained, training.optimizer, store, key)
    with progress(title, recipe.epochs * training.batches, "batches") as advance:
        advance(len(history) * training.batches)
        for epoch in range(done := len(history), recipe.epochs):
            if epoch > done and time.monotonic() + (history[-1].seconds or 0.0) > until:
                stopped = f"{title}: stopped after epoch {epoch} of {recipe.epochs}"
                raise TrainingPausedError(f"{stopped}; the same command goes on")
            with layer_records(network, wanted=regularizer is not None) as records:
                history.append(training.run_epoch(epoch, records, advance))
            _save(training.trained, training.optimizer, history, store, key)
    return history


class _Training:
    """What stays the same from epoch to epoch."""

    def __init__(
        self,
        network: SpikingNetwork | AnalogNetwork,
        dataset: Dataset,
        split: ImageSplit,
        regularizer: Regularizer | None,
        *,
        timesteps: int,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.network, self.dataset, self.regularizer = network, dataset, regularizer
        self.device = next(network.parameters()).device
        images = split.images
        self.images = images.to(self.device) if isinstance(images, torch.Tensor) else images  # all there, if they fit
        self.labels = split.labels.to(self.device)
        self.timesteps, self.recipe, self.seed = timesteps, recipe, seed
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.companion = _companion(regularizer, dataset, timesteps, seed)
        self.trained: dict[str, nn.Module] = {"network": network}
        if self.companion is not None:
            self.trained["companion"] = self.companion.to(self.device).train()
        self.optimizer = torch.optim.SGD(
            [parameter for module in self.trained.values() for parameter in module.parameters()],
            lr=self.recipe.learning_rate,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
        )
        if recipe.autoaugment and dataset.recorded:
            raise UsageError(f"autoaugment: it changes images, but {dataset.name} holds recordings of events")
        self.samples = len(split)
        self.batches = self.samples // recipe.batch_size
        if not self.batches:
            raise UsageError(
                f"batch_size = {recipe.batch_size} is larger than the training split ({self.samples} samples)"
            )

    def run_epoch(self, epoch: int, records: list[LayerRecord], advance: Advance) -> EpochRecord:
        recipe = self.recipe
        self.network.train()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.samples, generator=generator)
        seen = torch.zeros(2, dtype=torch.float64, device=self.device)  # stays there, so that the device needn't wait
        start, shown = time.perf_counter(), 0
        for batch in range(self.batches):
            self.optimizer.param_groups[0]["lr"] = self._rate(epoch * self.batches + batch)
            index = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
            records.clear()
            seen += self._step(index, generator, records)
            done = batch + 1
            if done % _BATCHES_BETWEEN_REMARKS == 0 or done == self.batches:
                loss, accuracy = (seen / done).tolist()
                remark = f"epoch {epoch + 1}: loss {loss:.3f}, accuracy {100 * accuracy:.1f} %"
                advance(done - shown, remark)
                shown = done
        seconds = time.perf_counter() - start
        return EpochRecord(epoch + 1, loss, accuracy, seconds)

    def _step(self, index: torch.Tensor, generator: torch.Generator, records: list[LayerRecord]) -> torch.Tensor:
        """One step on the samples at ``index`` [B]: mean loss and share of right answers, float64 [2]."""
        recipe = self.recipe
        inputs, labels = self._inputs(self.images[index].to(self.device), generator), self.labels[index]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = _logits(self.network, inputs, self.timesteps)
        logits = logits.float()
        loss = LOSSES[recipe.loss](logits, labels)
        if self.regularizer is not None and recipe.regularizer is not None:
            first = inputs if self.dataset.constant_input else inputs[0]
            batch = TrainingBatch(first, records, logits, labels, self.companion)
            loss = loss + recipe.regularizer.weight * self.regularizer.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        right = (logits.detach().sum(0).argmax(1) == labels).float().mean()
        return torch.stack((loss.detach(), right)).double()

    def _inputs(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Augmented network input: images are changed before they are encoded, recordings afterwards."""
        recipe, dataset = self.recipe, self.dataset
        if dataset.recorded:
            frames = dataset.encode(images, self.timesteps)
            return augment_frames(frames, generator, shift=recipe.shift, flip=recipe.flip, cutout=recipe.cutout)
        images = augment(
            images,
            generator,
            shift=recipe.shift,
            flip=recipe.flip,
            autoaugment=recipe.autoaugment,
            cutout=recipe.cutout,
            fill=dataset.mean_color,
        )
        return dataset.encode(images, self.timesteps)

    def _rate(self, step: int) -> float:
        share = step / (self.recipe.epochs * self.batches)
        return self.recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


def _logits(network: SpikingNetwork | AnalogNetwork, inputs: torch.Tensor, timesteps: int) -> torch.Tensor:
    """Logits [T, B, K]; an ANN counts as one timestep."""
    if isinstance(network, SpikingNetwork):
        return network.run(inputs, timesteps)
    logits: torch.Tensor = network(inputs.contiguous(memory_format=torch.channels_last))
    return logits.unsqueeze(0)


def _companion(regularizer: Regularizer | None, dataset: Dataset, timesteps: int, seed: int) -> nn.Module | None:
    if regularizer is None:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return regularizer.companion(dataset.input_shape, timesteps)


def _save(
    trained: Mapping[str, nn.Module], optimizer: torch.optim.SGD, history: list[EpochRecord], store: Store, key: str
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for part, module in trained.items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
        for name, parameter in module.named_parameters():
            if (buffer := optimizer.state[parameter].get("momentum_buffer")) is not None:
                tensors[f"momentum.{part}.{name}"] = buffer
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    store.put("training", key, tensors, {"history": [dataclasses.asdict(record) for record in history]})


def _resume(trained: Mapping[str, nn.Module], optimizer: torch.optim.SGD, store: Store, key: str) -> list[EpochRecord]:
    saved = store.get("training", key)
    if saved is None:
        return []
    for part, module in trained.items():
        prefix = f"{part}."
        module.load_state_dict({n.removeprefix(prefix): t for n, t in saved.tensors.items() if n.startswith(prefix)})
        for name, parameter in module.named_parameters():
            if (buffer := saved.tensors.get(f"momentum.{part}.{name}")) is not None:
                optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device, copy=True)
    return [EpochRecord(**record) for record in saved.metadata["history"]]

"""The training loop: seeded, resumable after any epoch; the last epoch's weights are the result."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from bench_core.data.base import Dataset, ImageSplit
from bench_core.errors import TrainingPausedError, UsageError
from bench_core.snn.network import AnalogNetwork, SpikingNetwork
from bench_core.store.local import Store
from bench_core.training.augmentation import augment, augment_frames
from bench_core.training.averaging import WeightAverage, estimate_statistics
from bench_core.training.compilation import compiled
from bench_core.training.losses import LOSSES
from bench_core.training.recipe import Recipe
from bench_core.training.regularizers import LayerRecord, Regularizer, TrainingBatch, layer_records
from bench_core.training.schedule import rate_factor
from bench_core.util.progress import Advance, note, progress

__all__ = ["EpochRecord", "train_network"]

_BATCHES_BETWEEN_REMARKS = 10
_STATISTICS_BATCHES = 64  # for estimating the batch-norm statistics of averaged weights
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_clock = time.perf_counter


@dataclass(frozen=True)
class EpochRecord:
    """Mean loss and accuracy of an epoch on the augmented training batches, and its duration in seconds."""

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
    facts: Mapping[str, Any] | None = None,
    before_keeping: Callable[[], None] | None = None,
) -> list[EpochRecord]:
    """Train ``network`` in place and on its own device, with the training split only.

    After every epoch, weights and optimiser state go to the store under ``key``; an interrupted run continues after the
    last finished epoch and ends with the same weights. The order and augmentation of epoch e depend on (seed, e) alone.

    Args:
        network: changed in place.
        dataset: encodes the images.
        split: the training split.
        timesteps: T.
        recipe: how to train.
        seed: of order and augmentation.
        store: for the training state.
        key: of the training state in the store.
        title: shown with the progress.
        regularizer: the one that the recipe names; its term is part of the reported loss.
        until: value of ``time.monotonic()`` by which to stop: an epoch that would exceed it, if it takes as long as the
            previous one, is not started. At least one epoch is trained.
        facts: further metadata of the training state.
        before_keeping: called before anything goes to the store; an exception from it ends the training.

    Returns:
        One record per epoch.

    Raises:
        TrainingPausedError: ``until`` came before the last epoch.
    """
    training = _Training(network, dataset, split, regularizer, timesteps=timesteps, recipe=recipe, seed=seed)
    history = training.resume(store, key)
    with progress(title, recipe.epochs * training.batches, "batches") as advance:
        advance(len(history) * training.batches)
        done = len(history)
        while not training.is_over(history):
            if (epoch := len(history)) > done and time.monotonic() + (history[-1].seconds or 0.0) > until:
                stopped = f"{title}: stopped after epoch {epoch} of {recipe.epochs}"
                raise TrainingPausedError(f"{stopped}; the same command goes on")
            with layer_records(network, wanted=regularizer is not None) as records:
                history.append(training.run_epoch(history, records, advance))
            if before_keeping is not None:
                before_keeping()
            training.save(history, store, key, facts or {})
    training.finish()
    return history


class _Training:
    """State that stays the same from epoch to epoch."""

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
        self.network, self.dataset, self.split, self.regularizer = network, dataset, split, regularizer
        self.device = next(network.parameters()).device
        images = split.images
        self.images = images.to(self.device) if isinstance(images, torch.Tensor) else images  # preloaded if in memory
        self.labels = split.labels.to(self.device)
        self.timesteps, self.recipe, self.seed = timesteps, recipe, seed
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.companion = _companion(regularizer, dataset, timesteps, seed)
        self.trained: dict[str, nn.Module] = {"network": network}
        if self.companion is not None:
            self.trained["companion"] = self.companion.to(self.device).train()
        self.average = WeightAverage(network, recipe.average) if recipe.average else None
        self.forward = _forward(network, timesteps, compile_for=self.device if recipe.compile else None)
        self.optimizer = torch.optim.SGD(
            _parameter_groups(self.trained.values(), recipe),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
        )
        if recipe.autoaugment and dataset.recorded:
            raise UsageError(f"autoaugment: it changes images, but {dataset.name} holds recordings of events")
        self.samples = len(split)
        coins = torch.Generator().manual_seed(seed)
        self.turns = torch.randint(2, (self.samples,), generator=coins)  # 0: mirrored in epochs 0, 2, …, 1: in 1, 3, …
        self.batches = self.samples // recipe.batch_size
        if not self.batches:
            raise UsageError(
                f"batch_size = {recipe.batch_size} is larger than the training split ({self.samples} samples)"
            )

    def is_over(self, history: list[EpochRecord]) -> bool:
        """Return whether all epochs are trained or the time budget is used up."""
        return self._share(len(history) * self.batches, _seconds(history)) >= 1.0

    def run_epoch(self, history: list[EpochRecord], records: list[LayerRecord], advance: Advance) -> EpochRecord:
        """Train the epoch after those of ``history``, or the part of it that the time budget allows."""
        epoch, before = len(history), _seconds(history)
        recipe = self.recipe
        self.network.train()
        generator = self._generator(epoch)
        order = torch.randperm(self.samples, generator=generator)
        seen = torch.zeros(2, dtype=torch.float64, device=self.device)  # stays on the device to avoid synchronisation
        start, done, shown = _clock(), 0, 0
        while done < self.batches:
            step = epoch * self.batches + done
            share = self._share(step, before + _clock() - start)
            if done and share >= 1.0:
                break
            self._set_rate(share)
            index = order[done * recipe.batch_size : (done + 1) * recipe.batch_size]
            records.clear()
            seen += self._step(index, epoch, generator, records)
            if self.average is not None:
                self.average.update(step)
            done += 1
            if done % _BATCHES_BETWEEN_REMARKS == 0 or done == self.batches:
                advance(done - shown, f"epoch {epoch + 1}: {_remark(seen / done)}")
                shown = done
        loss, accuracy = (seen / done).tolist()
        return EpochRecord(epoch + 1, loss, accuracy, _clock() - start)

    def finish(self) -> None:
        """Finalise the network: apply the weight average and re-estimate its batch-norm statistics, if there is one."""
        if self.average is not None:
            self.average.apply()
            uncompiled = _forward(self.network, self.timesteps, compile_for=None)
            estimate_statistics(self.network, partial(self._run, uncompiled), self._statistics_inputs())

    def _step(
        self, index: torch.Tensor, epoch: int, generator: torch.Generator, records: list[LayerRecord]
    ) -> torch.Tensor:
        """Train one step on the samples at ``index`` [B]; return mean loss and accuracy as float64 [2]."""
        recipe = self.recipe
        inputs, labels = self._inputs(index, epoch, generator), self.labels[index]
        logits = self._run(self.forward, inputs).float()
        loss = LOSSES[recipe.loss](logits, labels, recipe.label_smoothing)
        if self.regularizer is not None and recipe.regularizer is not None:
            first = inputs if self.dataset.constant_input else inputs[0]
            batch = TrainingBatch(first, records, logits, labels, self.companion)
            loss = loss + recipe.regularizer.weight * self.regularizer.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        right = (logits.detach().sum(0).argmax(1) == labels).float().mean()
        return torch.stack((loss.detach(), right)).double()

    def _run(self, forward: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return logits [T, B, K], computed in the recipe's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            return forward(inputs)

    def _inputs(self, index: torch.Tensor, epoch: int, generator: torch.Generator) -> torch.Tensor:
        """Return augmented network input: images are augmented before encoding, recordings afterwards."""
        recipe, dataset = self.recipe, self.dataset
        images = self.images[index].to(self.device)
        flip = recipe.flip if isinstance(recipe.flip, bool) else (self.turns[index] + epoch) % 2 == 0
        reflect = recipe.border == "reflection"
        if dataset.recorded:
            frames = dataset.encode(images, self.timesteps)
            return augment_frames(
                frames, generator, shift=recipe.shift, flip=flip, reflect=reflect, cutout=recipe.cutout
            )
        images = augment(
            images,
            generator,
            shift=recipe.shift,
            flip=flip,
            reflect=reflect,
            autoaugment=recipe.autoaugment,
            cutout=recipe.cutout,
            fill=dataset.mean_color,
        )
        return dataset.encode(images, self.timesteps)

    def _statistics_inputs(self) -> Iterator[torch.Tensor]:
        """Yield augmented batches of a further epoch."""
        epoch, size = self.recipe.epochs, self.recipe.batch_size
        generator = self._generator(epoch)
        order = torch.randperm(self.samples, generator=generator)
        for batch in range(min(self.batches, _STATISTICS_BATCHES)):
            yield self._inputs(order[batch * size : (batch + 1) * size], epoch, generator)

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)

    def _share(self, step: int, seconds: float) -> float:
        """Return the finished share of the training, by steps or by the clock, whichever is larger."""
        share = step / (self.recipe.epochs * self.batches)
        return share if self.recipe.minutes is None else max(share, seconds / (60.0 * self.recipe.minutes))

    def _set_rate(self, share: float) -> None:
        recipe = self.recipe
        rate = recipe.learning_rate * rate_factor(share, schedule=recipe.schedule, warmup=recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def save(self, history: list[EpochRecord], store: Store, key: str, facts: Mapping[str, Any]) -> None:
        """Put weights, optimiser state and average into the store."""
        tensors: dict[str, torch.Tensor] = {}
        for part, module in self.trained.items():
            tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
            for name, parameter in module.named_parameters():
                if (buffer := self.optimizer.state[parameter].get("momentum_buffer")) is not None:
                    tensors[f"momentum.{part}.{name}"] = buffer
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        records = [dataclasses.asdict(record) for record in history]
        store.put("training", key, tensors, {**facts, "history": records, "data": self.split.digest})

    def resume(self, store: Store, key: str) -> list[EpochRecord]:
        """Restore the state that ``save`` stored, if any; return the records of the finished epochs."""
        saved = store.get("training", key)
        if saved is None:
            return []
        if saved.metadata.get("data", self.split.digest) != self.split.digest:
            place = store.path("training", key)
            note(f"store: {place}: begun on other data of {self.dataset.name}; it begins again")
            return []
        for part, module in self.trained.items():
            module.load_state_dict(_below(f"{part}.", saved.tensors))
            momenta = _below(f"momentum.{part}.", saved.tensors)
            for name, parameter in module.named_parameters():
                if (buffer := momenta.get(name)) is not None:
                    self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device, copy=True)
        if self.average is not None:
            for name, tensor in _below("average.", saved.tensors).items():
                self.average.tensors[name].copy_(tensor)
        return [EpochRecord(**record) for record in saved.metadata["history"]]


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with ``prefix``, with the prefix removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _seconds(history: list[EpochRecord]) -> float:
    return sum(record.seconds or 0.0 for record in history)


def _remark(seen: torch.Tensor) -> str:
    loss, accuracy = seen.tolist()
    return f"loss {loss:.3f}, accuracy {100 * accuracy:.1f} %"


def _forward(
    network: SpikingNetwork | AnalogNetwork, timesteps: int, *, compile_for: torch.device | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from inputs to logits [T, B, K]; an ANN counts as one timestep."""
    if isinstance(network, SpikingNetwork):
        if compile_for is not None:
            raise UsageError("compile: it is for networks that are converted; this one is trained directly")
        return lambda inputs: network.run(inputs, timesteps)
    call = network if compile_for is None else compiled(network, compile_for)
    return lambda inputs: call(inputs.contiguous(memory_format=torch.channels_last)).unsqueeze(0)


def _parameter_groups(modules: Iterable[nn.Module], recipe: Recipe) -> list[dict[str, Any]]:
    """Return the optimiser's groups: parameters with weight decay, and parameters without."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in modules:
        weights = {id(part.weight) for part in module.modules() if isinstance(part, _WEIGHTED)}
        for parameter in module.parameters():
            spare = recipe.decayed == "weights" and id(parameter) not in weights
            (spared if spare else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _companion(regularizer: Regularizer | None, dataset: Dataset, timesteps: int, seed: int) -> nn.Module | None:
    if regularizer is None:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return regularizer.companion(dataset.input_shape, timesteps)

"""A moving average of the weights during training, and batch-norm statistics that fit it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["WeightAverage", "estimate_statistics"]


class WeightAverage:
    """Exponential moving average of a network's parameters.

    Args:
        network: the network whose parameters are averaged; the average starts with their current values.
        decay: share of the old average that a step keeps, below 1. Early steps keep at most (1 + step) / (10 + step),
            so that the initial weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start the average with the network's current parameters."""
        self._network, self._decay = network, decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after ``step`` (0-based) to the average."""
        kept = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._network.named_parameters():
            self.tensors[name].lerp_(parameter, 1.0 - kept)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the network's parameters with their average."""
        for name, parameter in self._network.named_parameters():
            parameter.copy_(self.tensors[name])


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, forward: Callable[[torch.Tensor], object], inputs: Iterable[torch.Tensor]
) -> None:
    """Re-estimate mean and variance of every batch normalisation, as the plain mean over batches.

    Args:
        network: changed in place; it computes in training mode, and its mode is restored afterwards.
        forward: runs the network on one batch.
        inputs: the batches.
    """
    with _plain_means(network):
        for batch in inputs:
            forward(batch)


@contextmanager
def _plain_means(network: nn.Module) -> Iterator[None]:
    """Reset batch-norm statistics, and weight all batches equally inside the block."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta, training = [norm.momentum for norm in norms], network.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(training)

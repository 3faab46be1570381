"""Chain networks: 3 x 3 convolutions, each followed by neurons, 2 x 2 average pools, and one linear layer."""

from typing import ClassVar

from torch import nn

from bench_core.errors import UsageError
from bench_core.snn.layers import AveragePool, Flatten, Synapse
from bench_core.snn.models.base import Model, Parts

__all__ = ["POOL", "Chain"]

POOL = "pool"


class Chain(Model):
    """Base of the chain networks.

    Attributes:
        plan: in order, the channels of each convolution, and ``POOL`` for each halving of height and width.
    """

    plan: ClassVar[tuple[int | str, ...]]

    def layers(self, input_shape: tuple[int, int, int], classes: int, parts: Parts) -> list[nn.Module]:
        """Return the layers of the plan. Raises UsageError if the frames are too small for its pools."""
        channels, height, width = input_shape
        shrink = 2 ** self.plan.count(POOL)
        if min(height, width) < shrink:
            raise UsageError(f"{self.name} needs frames of at least {shrink} x {shrink}, not {height} x {width}")
        layers: list[nn.Module] = []
        for entry in self.plan:
            if isinstance(entry, str):
                layers.append(AveragePool(2))
            else:
                layers += [*parts.synapse(nn.Conv2d(channels, entry, 3, padding=1, bias=False)), parts.node()]
                channels = entry
        features = channels * (height // shrink) * (width // shrink)
        return [*layers, Flatten(), Synapse(nn.Linear(features, classes))]

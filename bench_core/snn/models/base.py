"""What a model is to this project: one definition that gives a spiking network and its ANN twin."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import nn

from bench_core.snn.network import AnalogNetwork, SpikingNetwork

__all__ = ["Model"]


class Model(ABC):
    """Base of every model that ``bench_models`` returns: a ``name``, a ``reference``, and two builders."""

    name: ClassVar[str]
    reference: ClassVar[str]

    @abstractmethod
    def spiking(self, input_shape: tuple[int, int, int], classes: int, *, constant_input: bool) -> SpikingNetwork:
        """A freshly initialised spiking network for frames of ``input_shape`` (C, H, W)."""

    @abstractmethod
    def analog(
        self, input_shape: tuple[int, int, int], classes: int, activation: Callable[[], nn.Module]
    ) -> AnalogNetwork:
        """The ANN twin, with ``activation()`` where the spiking network has neurons."""

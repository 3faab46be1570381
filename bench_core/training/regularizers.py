"""What a regulariser is to this project: a loss on what the layers did, added to the task's loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from bench_core.knobs import Configurable

__all__ = ["LayerRecord", "Regularizer"]


@dataclass(frozen=True)
class LayerRecord:
    """What one layer of neurons (or activations) saw and did in a batch.

    Attributes:
        current: its input, [T, B, ...]; for an ANN the pre-activation with T = 1.
        output: its output, [T, B, ...]; spikes, or activations with T = 1.
        potential: membrane potential after the reset, [T, B, ...]; None in an ANN.
    """

    current: torch.Tensor
    output: torch.Tensor
    potential: torch.Tensor | None


class Regularizer(Configurable, ABC):
    """Base of every regulariser that ``bench_regularizers`` returns."""

    @abstractmethod
    def loss(self, layers: list[LayerRecord], logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The term to add, a scalar with gradient.

        Args:
            layers: one record per layer of neurons, input to output.
            logits: o_t [T, B, K], T = 1 for an ANN.
            labels: int64 [B].
        """

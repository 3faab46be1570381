"""QCFS conversion: train with a clip-floor-shift activation, run with integrate-and-fire neurons.

Source: Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural Networks",
ICLR 2022.  ANN: a = lambda * clip(floor(z L / lambda + 1/2) / L, 0, 1) with lambda learnt and the floor's gradient
taken as 1.  SNN: integrate and fire, threshold lambda, u(0) = lambda / 2, reset by subtraction, spikes carry lambda.
"""

from typing import ClassVar

import torch
from torch import nn

from bench_core import AnalogNetwork, Converter, Knob, SpikingNetwork, hookimpl, if_neuron, replace_activations


class QCFSActivation(nn.Module):
    """The quantised activation of one layer, with its learnt ceiling ``scale`` (lambda)."""

    def __init__(self, levels: int, initial_scale: float) -> None:
        """Create an activation with L = ``levels`` and lambda = ``initial_scale``."""
        super().__init__()
        self.levels = levels
        self.scale = nn.Parameter(torch.tensor(initial_scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the quantised activations of ``x``, in its shape."""
        share = (x / self.scale).clamp(0.0, 1.0)
        quantised = torch.floor(share * self.levels + 0.5) / self.levels
        return (share + (quantised - share).detach()) * self.scale  # straight-through estimator


class QCFS(Converter):
    """Clip-floor-shift conversion."""

    name: ClassVar[str] = "qcfs"
    reference: ClassVar[str] = "Bu et al., ICLR 2022"
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("levels", "int", 4, low=1, help="quantisation levels L of the activation"),
        Knob("initial_scale", "float", 8.0, low=0.0, open_low=True, help="lambda at the start of training"),
    )

    def activation(self) -> nn.Module:
        """Return a quantised activation for one layer."""
        levels, scale = self.parameters["levels"], self.parameters["initial_scale"]
        assert isinstance(levels, int) and isinstance(scale, float)
        return QCFSActivation(levels, scale)

    def convert(self, ann: AnalogNetwork, inputs: torch.Tensor) -> SpikingNetwork:
        """Return the network with the learnt lambdas as thresholds."""
        del inputs  # nothing is measured: the thresholds are learnt
        scales = [layer.scale for layer in ann.activations if isinstance(layer, QCFSActivation)]
        neurons = [if_neuron(float(scale.detach())) for scale in scales]
        return replace_activations(ann, neurons, constant_input=True)


@hookimpl
def bench_converters() -> list[Converter]:
    """Return the QCFS converter."""
    return [QCFS()]

"""Surrogate gradients: replacements of the spike's derivative in the backward pass.

Each is the derivative of a smooth step, elementwise on ``distance`` = u - threshold, returned as a new tensor.
"""

import math
from collections.abc import Callable
from typing import Final

import torch

__all__ = ["SURROGATES", "Surrogate", "arctan", "dspike", "rectangle", "triangle"]

Surrogate = Callable[[torch.Tensor], torch.Tensor]


def triangle(distance: torch.Tensor, width: float = 1.0) -> torch.Tensor:
    """Return max(0, width - |u - threshold|) / width**2, elementwise on ``distance`` = u - threshold.

    Source: Bellec et al., NeurIPS 2018; the form and width 1 as in SEENN's and TET's training.
    """
    return (width - distance.abs()).clamp_(min=0.0).div_(width * width)


def rectangle(distance: torch.Tensor, width: float = 1.0) -> torch.Tensor:
    """Return 1 / width if |u - threshold| < width / 2, else 0.

    Source: Wu et al., Frontiers in Neuroscience 2018 (STBP).
    """
    return (distance.abs() < width / 2).to(distance.dtype).div_(width)


def arctan(distance: torch.Tensor, sharpness: float = 2.0) -> torch.Tensor:
    """Return the derivative of a scaled arc tangent, with slope parameter a = ``sharpness``.

    The step is arctan(pi / 2 * a * (u - threshold)) / pi + 1 / 2. Source: Fang et al., ICCV 2021, with its a = 2.
    """
    return sharpness / 2 / (math.pi / 2 * sharpness * distance).square_().add_(1.0)


def dspike(distance: torch.Tensor, region: float = 3.0, temperature: float = 3.0) -> torch.Tensor:
    """Return the derivative of tanh(k clip(u - threshold, -r, r)) / (2 tanh(k r)) + 1 / 2.

    k is the temperature and r the region. Source: Li et al., NeurIPS 2021; r = 3 and k = 3 as in SEENN's training.
    """
    height = temperature / (2 * math.tanh(temperature * region))
    slope = (1.0 - torch.tanh(temperature * distance).square_()).mul_(height)
    return slope.mul_(distance.abs() < region)


SURROGATES: Final[dict[str, Surrogate]] = {
    "triangle": triangle,
    "rectangle": rectangle,
    "arctan": arctan,
    "dspike": dspike,
}

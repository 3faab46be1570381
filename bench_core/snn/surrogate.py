"""Surrogate gradients: what stands in for the derivative of the spike in the backward pass."""

import torch

__all__ = ["triangle"]


def triangle(distance: torch.Tensor, width: float = 1.0) -> torch.Tensor:
    """max(0, width - |u - threshold|) / width**2, elementwise on ``distance`` = u - threshold.

    Source: Bellec et al., NeurIPS 2018; the form and width 1 as in SEENN's and TET's training.
    """
    return (width - distance.abs()).clamp_(min=0.0).div_(width * width)

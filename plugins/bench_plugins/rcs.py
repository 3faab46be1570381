"""RCS, "Regularising Cosine Similarity": aligns layers' early activity with their final activity.

Source: Wu, Jin, Yu, Yi and Huang, "Optimising Event-Driven Spiking Neural Network with Regularisation and Cutoff",
arXiv 2301.09522 (Frontiers in Neuroscience 19, 2025), with the settings of the authors' code. With f(i, l), one number
per sample i and layer l, the loss is

    L = mean_l max_i m_i f(i, l),   m_i = 1 for samples that the network gets right, else 0

``rcs-ann`` (before conversion), on the pre-activations z, z+ = max(z, 0):

    f(i, l) = max over batch and layer of z+ / sqrt(mean over C, H, W of z+(i)^2 + 1e-5)

``rcs-snn`` (direct training), on r_t = s_t + max(u_t / v_th, 0), u after the reset:

    f(i, l) = 1 / (mean_t cos(r_t, r_d) + 1e-5),   r_d = mean of r_t over the last int(n T) timesteps, without gradient

Here m_i requires the right label at each of those last timesteps, by the logits o_t of the timestep alone. int(n T) is
at least 1 here; in the authors' code 0 turns into all T.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F

from bench_core import Knob, Regularizer, TrainingBatch, UsageError, hookimpl

SMALL = 1e-5


class RCSForANN(Regularizer):
    """Peak over root mean square of each sample's positive pre-activations."""

    name: ClassVar[str] = "rcs-ann"
    reference: ClassVar[str] = "Wu et al., arXiv 2301.09522"

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        """Return the loss of a batch, a scalar."""
        right = batch.logits.detach().sum(0).argmax(1) == batch.labels
        terms = []
        for layer in batch.layers:
            positive = layer.current[0].relu().flatten(1)  # [B, C H W]
            terms.append(positive.max() / (positive.square().mean(1) + SMALL).sqrt())
        return _worst(terms, right)


class RCSForSNN(Regularizer):
    """Reciprocal of the mean cosine between a layer's activity at each timestep and at the end."""

    name: ClassVar[str] = "rcs-snn"
    reference: ClassVar[str] = "Wu et al., arXiv 2301.09522"
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("n", "float", 0.3, low=0.0, open_low=True, high=1.0, help="share of the timesteps that are the end"),
    )

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        """Return the loss of a batch, a scalar; raise UsageError for an ANN, which lacks membrane potentials."""
        share = self.parameters["n"]
        assert isinstance(share, float)
        last = max(1, int(share * len(batch.logits)))
        right = (batch.logits[-last:].detach().argmax(2) == batch.labels).all(0)
        terms = []
        for layer in batch.layers:
            if layer.potential is None or layer.threshold is None:
                raise UsageError(f"{self.name}: it needs membrane potentials; for an ANN take rcs-ann")
            activity = (layer.output + (layer.potential / layer.threshold).relu()).flatten(2)  # [T, B, C H W]
            end = activity[-last:].mean(0).detach()
            similarity = F.cosine_similarity(activity, end.unsqueeze(0), dim=2).mean(0)
            terms.append((similarity + SMALL).reciprocal())
        return _worst(terms, right)


def _worst(terms: list[torch.Tensor], right: torch.Tensor) -> torch.Tensor:
    """Return mean_l max_i m_i f(i, l); ``terms``: f of each layer [B]; ``right``: m [B]."""
    return torch.stack([(term * right).max() for term in terms]).mean()


@hookimpl
def bench_regularizers() -> list[Regularizer]:
    """Return both regularisers."""
    return [RCSForANN(), RCSForSNN()]

"""The readout that a confidence is computed on: sum or mean of the logits so far, divided by alpha.

The prediction is the same whichever is taken, the confidence is not: softmax of the sum grows surer with t by itself.
Papers and their authors' code differ here, so it is a knob that every such strategy offers and every row records.
"""

import torch

from bench_core import Evidence, Knob, Operations, Overhead

ACCUMULATE = Knob("accumulate", "choice", "sum", choices=("sum", "mean"), help="softmax of S_t, or of S_t / t")
ALPHA = Knob("alpha", "float", 1.0, low=0.0, open_low=True, help="divides the readout before the softmax")

NOTHING = Operations()


def readout(evidence: Evidence, accumulate: object, alpha: object = 1.0) -> torch.Tensor:
    """S_t / alpha or S_t / (t alpha), up to a shift per sample that a softmax doesn't see, float64 [B, K]."""
    chosen = evidence.mean if accumulate == "mean" else evidence.total
    assert isinstance(alpha, float)
    if alpha == 1.0:
        return chosen
    return (chosen - chosen.amax(1, keepdim=True)) / alpha  # shifted first, so that a small alpha can't overflow


def largest_probability(values: torch.Tensor) -> torch.Tensor:
    """max softmax over the last dimension: 1 / sum exp(x - max x)."""
    return torch.exp(values - values.amax(-1, keepdim=True)).sum(-1).reciprocal()


def top_two(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest and the second largest of the last dimension (equal where they tie)."""
    first, place = values.max(-1, keepdim=True)
    second = values.scatter(-1, place, -torch.inf).amax(-1)
    return first.squeeze(-1), second


def softmax_overhead(classes: int, *, scaled: bool, more: Operations = NOTHING) -> Overhead:
    """A softmax over K classes and the comparison with a threshold, plus ``more``, per decision.

    Maximum (K - 1 comparisons), K subtractions, K exponentials, K - 1 additions, one division; K multiplications where
    the readout is scaled. Accumulating S_t is the network's own readout and not charged to the controller.
    """
    return Overhead(
        per_decision=Operations(
            additions=2 * classes - 1 + more.additions,
            multiplications=1 + (classes if scaled else 0) + more.multiplications,
            comparisons=classes + more.comparisons,
            exponentials=classes + more.exponentials,
            logarithms=more.logarithms,
        )
    )

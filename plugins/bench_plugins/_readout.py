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
    """S_t / alpha or S_t / (t alpha), less the largest of each sample, which a softmax doesn't see: float64 [B, K].

    A new tensor, which may be written over. Shifted before it is divided, so that a small alpha can't overflow.
    """
    below = below_top(evidence.mean if accumulate == "mean" else evidence.total)
    assert isinstance(alpha, float)
    return below if alpha == 1.0 else below.div_(alpha)


def below_top(values: torch.Tensor) -> torch.Tensor:
    """Values less the largest of the last dimension, anew: at most 0."""
    return values - values.amax(-1, keepdim=True)


def largest_probability(below: torch.Tensor) -> torch.Tensor:
    """max softmax over the last dimension, 1 / sum exp(x - max x), from x - max x, which it writes over."""
    return below.exp_().sum(-1).reciprocal()


def runner_up(values: torch.Tensor) -> torch.Tensor:
    """The second largest of the last dimension (the largest where two tie), NaN beside NaN.

    ``values`` must be contiguous; the largest of them are written over and put back.
    """
    flat = values.view(-1, values.shape[-1])
    places = torch.from_numpy(flat.numpy().argmax(1))[:, None]  # many times faster than torch's
    top = flat.gather(1, places)
    second = flat.scatter_(1, places, -torch.inf).amax(1, keepdim=True)
    flat.scatter_(1, places, top)
    return second.where(~top.isnan(), torch.nan).view(values.shape[:-1])


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

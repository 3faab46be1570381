"""The knobs of the readout that a confidence is computed on, ``Evidence.readout``, and what its softmax costs.

The prediction is the same whichever is taken, the confidence is not: softmax of the sum grows surer with t by itself.
Papers and their authors' code differ here, so it is a knob that every such strategy offers and every row records.
"""

from bench_core import Evidence, Knob, Operations, Overhead, Readout
from bench_core.knobs import KnobValue

ACCUMULATE = Knob("accumulate", "choice", "sum", choices=("sum", "mean"), help="softmax of S_t, or of S_t / t")
ALPHA = Knob("alpha", "float", 1.0, low=0.0, open_low=True, help="divides the readout before the softmax")

NOTHING = Operations()


def readout(evidence: Evidence, accumulate: KnobValue | None, alpha: KnobValue | None = 1.0) -> Readout:
    """What the values of those knobs say."""
    assert isinstance(accumulate, str) and isinstance(alpha, float)
    return evidence.readout(accumulate, alpha)


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

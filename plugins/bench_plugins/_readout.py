"""Knobs of the readout (``Evidence.readout``) from which a confidence is computed, and the cost of its softmax.

The prediction does not depend on them, but the confidence does: the softmax of the sum becomes more confident with t
by itself. Papers and their authors' code differ here, so every such strategy offers the knobs and every row records
them.
"""

from bench_core import Evidence, Knob, KnobValue, Operations, Overhead, Readout

ACCUMULATE = Knob("accumulate", "choice", "sum", choices=("sum", "mean"), help="softmax of S_t, or of S_t / t")
ALPHA = Knob("alpha", "float", 1.0, low=0.0, open_low=True, help="divides the readout before the softmax")

NOTHING = Operations()


def readout(evidence: Evidence, accumulate: KnobValue | None, alpha: KnobValue | None = 1.0) -> Readout:
    """Return the readout for the values of these knobs."""
    assert isinstance(accumulate, str) and isinstance(alpha, float)
    return evidence.readout(accumulate, alpha)


def softmax_overhead(classes: int, *, scaled: bool, more: Operations = NOTHING) -> Overhead:
    """Return the cost per decision of a softmax over K classes and a threshold comparison, plus ``more``.

    Maximum (K - 1 comparisons), K subtractions, K exponentials, K - 1 additions, one division; K multiplications if the
    readout is scaled. Accumulating S_t is part of the network's readout and not charged to the controller.
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

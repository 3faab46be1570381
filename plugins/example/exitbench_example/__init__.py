"""Stop when the two largest accumulated logits are far apart for the time they had: gap(S_t) / sqrt(t) > threshold."""

from bench_core import Knob, Operations, Overhead, ScoreStrategy, hookimpl


class ScaledGap(ScoreStrategy):
    name = "scaled-gap"
    reference = "exitbench-example"
    family_knob = Knob("threshold", low=0.0, help="stop when the gap over sqrt(t) is above it")

    def score(self, evidence):
        top = evidence.total.topk(2, dim=1).values
        return (top[:, 0] - top[:, 1]) / evidence.t**0.5

    def overhead(self, classes):
        return Overhead(per_decision=Operations(additions=1, multiplications=1, comparisons=2 * classes - 2))


@hookimpl
def bench_exit_strategies():
    return [ScaledGap()]

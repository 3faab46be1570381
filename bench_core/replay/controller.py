"""Replay: a policy and a trace give exit timesteps, by the same calls that the live engine makes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch

from bench_core.errors import PluginError
from bench_core.exits.evidence import Evidence, InputFrames, Look, read_together, samples_together
from bench_core.exits.strategy import ExitPolicy, ScoreStrategy, State, checked_score
from bench_core.isolation.foreign_code import end_stray_child
from bench_core.trace.trace import Trace

__all__ = [
    "ExitController",
    "InputFrames",
    "Outcome",
    "first_positions",
    "outcome_at",
    "replay_policy",
    "score_table",
    "score_tables",
    "static_outcome",
]


@lru_cache(maxsize=128)
def first_positions(count: int) -> torch.Tensor:
    """0 .. count - 1, int64; not to be written to."""
    with torch.inference_mode(False):
        return torch.arange(count)


@dataclass(frozen=True)
class Outcome:
    """Where a policy stopped each sample, in the trace's order.

    Attributes:
        exit_timesteps: t-hat, int64 [N].
        predictions: argmax of S at t-hat, int64 [N].
        forced: stopped at T without a decision, bool [N].
    """

    exit_timesteps: torch.Tensor
    predictions: torch.Tensor
    forced: torch.Tensor


class Parting(NamedTuple):
    """Which of the samples that were asked stop and which go on: indices among them, int64, ascending."""

    stop: torch.Tensor
    go_on: torch.Tensor


class ExitController:
    """Asks a policy, step by step, which of the unfinished samples stop. Replay and live runs share it.

    Args:
        policy: the decision rule.
        sample_ids: int64 [B], of the samples that start now.
        timesteps: T.
        classes: K.
        inputs: gives network input by position among the B samples; None where the strategy declares none.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        sample_ids: torch.Tensor,
        timesteps: int,
        classes: int,
        inputs: InputFrames | None = None,
    ) -> None:
        batch = sample_ids.shape[0]  # len() of a tensor takes longer, and a single sample notices
        self.timesteps = timesteps
        self.unfinished = first_positions(batch)  # positions of the samples still running
        self._batch = batch
        self._stopped: list[tuple[torch.Tensor, int, torch.Tensor, bool]] = []  # positions, t, predictions, forced
        self._policy = policy
        self._keys = sample_ids
        self._inputs = inputs
        self._t = 0
        self._total: torch.Tensor | None = None
        self._state: State = {}
        if type(policy).start is not ExitPolicy.start:  # most policies have nothing to begin with
            nothing = torch.zeros(2, batch, classes, dtype=torch.float64)
            self._state = self._checked(policy.start(self._evidence(*nothing)))

    @property
    def outcome(self) -> Outcome:
        """Where the samples stopped; zeros for those that still run."""
        if len(self._stopped) == 1 and not self.unfinished.shape[0]:  # all at once, which at batch 1 is every time
            _, t, predictions, forced = self._stopped[0]
            return Outcome(torch.full_like(predictions, t), predictions, torch.full(predictions.shape, forced))
        exits, answers = torch.zeros(2, self._batch, dtype=torch.int64)
        outcome = Outcome(exits, answers, torch.zeros(self._batch, dtype=torch.bool))
        for positions, t, predictions, forced in self._stopped:
            outcome.exit_timesteps[positions] = t
            outcome.predictions[positions] = predictions
            outcome.forced[positions] = forced
        return outcome

    def observe(self, step_logits: torch.Tensor) -> Parting | None:
        """Take in o_t [B', K] of the unfinished samples; None where all of them go on."""
        self._t += 1
        step = step_logits.to("cpu", torch.float64, copy=True)
        if step.requires_grad:
            step = step.detach()
        total = step if self._total is None else self._total + step  # new: evidence of before stays what it was
        if self._t == self.timesteps:
            return self._finish_all(total, forced=True)
        batch = step.shape[0]
        stop, state = self._policy.should_exit(self._evidence(step, total), self._state)
        end_stray_child()
        if not isinstance(stop, torch.Tensor) or stop.dtype != torch.bool or stop.shape != (batch,):
            raise PluginError(type(self._policy).__name__, f"should_exit must give bool [{batch}]")
        self._state = self._checked(state)
        stopping = stop.numpy()
        stopped = np.count_nonzero(stopping)
        if stopped == batch:
            return self._finish_all(total, forced=False)
        self._total = total
        return self._finish(stopping, total) if stopped else None

    def _evidence(self, step: torch.Tensor, total: torch.Tensor) -> Evidence:
        read = None if self._inputs is None else partial(self._inputs, self.unfinished, max(self._t, 1))
        return Evidence(self._t, self.timesteps, step, total, self._keys, read)

    def _checked(self, state: State) -> State:
        """The state, if every tensor of it has a row for each unfinished sample. Raises PluginError."""
        if isinstance(state, dict) and not state:
            return state  # most policies have none
        batch = len(self.unfinished)
        if not isinstance(state, dict) or any(
            not isinstance(value, torch.Tensor) or value.dim() == 0 or len(value) != batch for value in state.values()
        ):
            raise PluginError(
                type(self._policy).__name__, f"its state must be a dict of tensors with {batch} rows each"
            )
        return state

    def _finish(self, stopping: "np.ndarray[tuple[int], np.dtype[np.bool_]]", total: torch.Tensor) -> Parting:
        """Record the samples that stop, of bool [B'], and compact everything to the others."""
        stop, go_on = (torch.from_numpy(np.flatnonzero(which)) for which in (stopping, ~stopping))
        answers = total.index_select(0, stop).argmax(1)
        self._stopped.append((self.unfinished.index_select(0, stop), self._t, answers, False))
        self.unfinished = self.unfinished.index_select(0, go_on)
        self._total, self._keys = total.index_select(0, go_on), self._keys.index_select(0, go_on)
        self._state = {name: values[go_on] for name, values in self._state.items()}
        return Parting(stop, go_on)

    def _finish_all(self, total: torch.Tensor, *, forced: bool) -> Parting:
        """The same where none goes on, so that nothing is left to compact."""
        self._stopped.append((self.unfinished, self._t, total.argmax(1), forced))
        self.unfinished = first_positions(0)
        return Parting(first_positions(total.shape[0]), self.unfinished)


def replay_policy(
    policy: ExitPolicy, trace: Trace, inputs: InputFrames | None = None, *, batch: int | None = None
) -> Outcome:
    """Where ``policy`` stops every sample of ``trace``.

    Args:
        policy: any exit policy; it is asked exactly as in a live run.
        trace: recorded logits.
        inputs: network input by position in the trace, for policies that look at it.
        batch: samples in flight at once; no result depends on it.
    """
    batch = batch or samples_together(trace.classes)
    parts = []
    for start, logits in trace.rows.pieces(batch):
        read = None if inputs is None else _shifted(inputs, start)
        controller = ExitController(
            policy, trace.sample_ids[start : start + batch], trace.timesteps, trace.classes, read
        )
        for t in range(trace.timesteps):
            controller.observe(logits[controller.unfinished, t])
            if not len(controller.unfinished):
                break
        parts.append(controller.outcome)
    return Outcome(
        torch.cat([part.exit_timesteps for part in parts]),
        torch.cat([part.predictions for part in parts]),
        torch.cat([part.forced for part in parts]),
    )


def static_outcome(trace: Trace) -> Outcome:
    """What ``NeverExit`` comes to: every sample is forced at T."""
    return outcome_at(trace, torch.full((len(trace),), trace.timesteps, dtype=torch.int64))


def outcome_at(trace: Trace, exits: torch.Tensor) -> Outcome:
    """The outcome that has these exit timesteps, int64 [N]: at T samples are forced, since no policy is asked there."""
    predictions = trace.predictions.gather(1, exits[:, None] - 1).flatten()
    return Outcome(exits, predictions, exits == trace.timesteps)


def score_tables(
    strategies: Sequence[ScoreStrategy],
    trace: Trace,
    inputs: Sequence[InputFrames | None] | None = None,
    *,
    batch: int | None = None,
) -> list[torch.Tensor | Exception]:
    """The scores of all strategies from one read of the trace, at t = 1 .. T-1, as ``should_exit`` would see them.

    Args:
        inputs: for each strategy network input by position in the trace, or None where it doesn't look at any.
        batch: samples scored together; no result depends on it.

    Returns:
        For each strategy float64 [N, T-1], or what it raised, which no other strategy notices.
    """

    def look(strategy: ScoreStrategy, frames: InputFrames | None) -> Look:
        return Look(lambda evidence, _labels: checked_score(strategy, evidence), frames)

    looks = list(map(look, strategies, inputs or [None] * len(strategies)))
    return read_together(trace, looks, trace.timesteps - 1, batch=batch)


def score_table(
    strategy: ScoreStrategy, trace: Trace, inputs: InputFrames | None = None, *, batch: int | None = None
) -> torch.Tensor:
    """The scores of one strategy, float64 [N, T-1]. Whatever it raises comes through."""
    (found,) = score_tables([strategy], trace, [inputs], batch=batch)
    if isinstance(found, Exception):
        raise found
    return found


def _shifted(inputs: InputFrames, start: int) -> InputFrames:
    return lambda positions, frames: inputs(positions + start, frames)

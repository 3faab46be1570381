"""Replay: exit timesteps of a policy on a trace, computed with the same calls as in the live engine."""

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
    """Return 0 .. count - 1, int64; do not modify the result."""
    with torch.inference_mode(False):
        return torch.arange(count)


@dataclass(frozen=True)
class Outcome:
    """Exit timestep and prediction of each sample, in the trace's order.

    Attributes:
        exit_timesteps: t-hat, int64 [N].
        predictions: argmax of S at t-hat, int64 [N].
        forced: stopped at T without a decision, bool [N].
    """

    exit_timesteps: torch.Tensor
    predictions: torch.Tensor
    forced: torch.Tensor


class Parting(NamedTuple):
    """Which of the queried samples stop and which continue: indices among them, int64, ascending."""

    stop: torch.Tensor
    go_on: torch.Tensor


class ExitController:
    """Query a policy at each timestep for the samples that stop. Replay and live runs share this class.

    Args:
        policy: the decision rule.
        sample_ids: int64 [B], of the samples that start now.
        timesteps: T.
        classes: K.
        inputs: network input by position among the B samples; None if the strategy declares none.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        sample_ids: torch.Tensor,
        timesteps: int,
        classes: int,
        inputs: InputFrames | None = None,
    ) -> None:
        """Start B samples; see the class for the arguments."""
        batch = sample_ids.shape[0]  # len() is slower, noticeably so at batch 1
        self.timesteps = timesteps
        self.unfinished = first_positions(batch)  # positions of the unfinished samples
        self._batch = batch
        self._stopped: list[tuple[torch.Tensor, int, torch.Tensor, bool]] = []  # positions, t, predictions, forced
        self._policy = policy
        self._keys = sample_ids
        self._inputs = inputs
        self._t = 0
        self._total: torch.Tensor | None = None
        self._state: State = {}
        if type(policy).start is not ExitPolicy.start:  # most policies have no initial state
            nothing = torch.zeros(2, batch, classes, dtype=torch.float64)
            self._state = self._checked(policy.start(self._evidence(*nothing)))

    @property
    def outcome(self) -> Outcome:
        """Outcome so far; zeros for unfinished samples."""
        if len(self._stopped) == 1 and not self.unfinished.shape[0]:  # all at once, as always at batch 1
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
        """Add o_t [B', K] of the unfinished samples; return which of them stop, or None if all continue."""
        self._t += 1
        step = step_logits.to("cpu", torch.float64, copy=True)
        if step.requires_grad:
            step = step.detach()
        total = step if self._total is None else self._total + step  # a new tensor: earlier evidence is unaffected
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
        """Return the state; raise PluginError unless each of its tensors has a row per unfinished sample."""
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
        """Record the samples that stop, bool [B'], and compact everything to the others."""
        stop, go_on = (torch.from_numpy(np.flatnonzero(which)) for which in (stopping, ~stopping))
        answers = total.index_select(0, stop).argmax(1)
        self._stopped.append((self.unfinished.index_select(0, stop), self._t, answers, False))
        self.unfinished = self.unfinished.index_select(0, go_on)
        self._total, self._keys = total.index_select(0, go_on), self._keys.index_select(0, go_on)
        self._state = {name: values[go_on] for name, values in self._state.items()}
        return Parting(stop, go_on)

    def _finish_all(self, total: torch.Tensor, *, forced: bool) -> Parting:
        """Record that all samples stop, so that nothing needs compacting."""
        self._stopped.append((self.unfinished, self._t, total.argmax(1), forced))
        self.unfinished = first_positions(0)
        return Parting(first_positions(total.shape[0]), self.unfinished)


def replay_policy(
    policy: ExitPolicy, trace: Trace, inputs: InputFrames | None = None, *, batch: int | None = None
) -> Outcome:
    """Return where ``policy`` stops every sample of ``trace``.

    Args:
        policy: any exit policy; called exactly as in a live run.
        trace: recorded logits.
        inputs: network input by position in the trace, for policies that use it.
        batch: samples processed at a time; no result depends on it.
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
    """Return the outcome of ``NeverExit``: every sample is forced at T."""
    return outcome_at(trace, torch.full((len(trace),), trace.timesteps, dtype=torch.int64))


def outcome_at(trace: Trace, exits: torch.Tensor) -> Outcome:
    """Return the outcome with these exit timesteps, int64 [N]. Samples are forced at T, where no policy decides."""
    predictions = trace.predictions.gather(1, exits[:, None] - 1).flatten()
    return Outcome(exits, predictions, exits == trace.timesteps)


def score_tables(
    strategies: Sequence[ScoreStrategy],
    trace: Trace,
    inputs: Sequence[InputFrames | None] | None = None,
    *,
    batch: int | None = None,
) -> list[torch.Tensor | Exception]:
    """Return the scores of all strategies at t = 1 .. T-1, as ``should_exit`` would compute them, from one trace read.

    Args:
        strategies: the fitted strategies.
        trace: recorded logits.
        inputs: for each strategy, network input by position in the trace, or None if it uses none.
        batch: samples scored at a time; no result depends on it.

    Returns:
        For each strategy float64 [N, T-1], or the exception it raised, which does not affect the others.
    """

    def look(strategy: ScoreStrategy, frames: InputFrames | None) -> Look:
        return Look(lambda evidence, _labels: checked_score(strategy, evidence), frames)

    looks = list(map(look, strategies, inputs or [None] * len(strategies)))
    return read_together(trace, looks, trace.timesteps - 1, batch=batch)


def score_table(
    strategy: ScoreStrategy, trace: Trace, inputs: InputFrames | None = None, *, batch: int | None = None
) -> torch.Tensor:
    """Return the scores of one strategy, float64 [N, T-1]. Its exceptions propagate."""
    (found,) = score_tables([strategy], trace, [inputs], batch=batch)
    if isinstance(found, Exception):
        raise found
    return found


def _shifted(inputs: InputFrames, start: int) -> InputFrames:
    return lambda positions, frames: inputs(positions + start, frames)

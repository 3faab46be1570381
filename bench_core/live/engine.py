"""The live engine: networks that really stop early, so that earlier exits save time.

Samples that start together form a cohort with its own ``ExitController``, the class that replay uses. After every
timestep the finished samples leave the batch: queued samples replace them (refill), or the network's state is
compacted to the rest. Samples of a batch may be at different timesteps; those of a cohort never are.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from bench_core.data import Dataset, ImageSplit
from bench_core.errors import UsageError
from bench_core.exits.strategy import ExitPolicy
from bench_core.replay.controller import ExitController, Outcome, first_positions

__all__ = ["LiveSamples", "SteppingNetwork", "run_live"]


class SteppingNetwork(Protocol):
    """What the live engine needs from a network. For refill it also calls ``renew``, as in ``SpikingNetwork``."""

    def reset(self) -> None:
        """Start new samples."""

    def step(self, frame: torch.Tensor) -> torch.Tensor:
        """Return o_t [B, K] for this timestep's input [B, C, H, W], which must not be modified."""

    def keep(self, index: torch.Tensor) -> None:
        """Continue with only the samples at ``index``."""


@dataclass(frozen=True)
class LiveSamples:
    """The samples of a live run.

    Attributes:
        inputs: network input, [N, C, H, W] if constant, otherwise [T, N, C, H, W].
        sample_ids: int64 [N].
        timesteps: T.
        classes: K.
        constant_input: every timestep gets the same frame.
    """

    inputs: torch.Tensor
    sample_ids: torch.Tensor
    timesteps: int
    classes: int
    constant_input: bool

    @classmethod
    def of_split(cls, dataset: Dataset, split: ImageSplit, positions: torch.Tensor, timesteps: int) -> "LiveSamples":
        """Return the encoded samples at ``positions`` [N] of a split."""
        inputs = dataset.encode(split.images[positions], timesteps)
        return cls(inputs, split.sample_ids[positions], timesteps, dataset.classes, dataset.constant_input)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.sample_ids.shape[0]

    def at(self, positions: torch.Tensor) -> "LiveSamples":
        """Return the samples at ``positions`` [N'], in that order."""
        inputs = self.inputs[positions] if self.constant_input else self.inputs[:, positions]
        return LiveSamples(inputs, self.sample_ids[positions], self.timesteps, self.classes, self.constant_input)

    def to(self, where: torch.device | torch.dtype) -> "LiveSamples":
        """Return the samples with inputs on another device or of another dtype."""
        return LiveSamples(self.inputs.to(where), self.sample_ids, self.timesteps, self.classes, self.constant_input)

    def frames(self, positions: torch.Tensor, count: int) -> torch.Tensor:
        """Return network input for policies that use it, float32 [B, F, C, H, W] (``replay.InputFrames``)."""
        if self.constant_input:
            return self.inputs[positions].unsqueeze(1).to("cpu", torch.float32)
        return self.inputs[:count, positions].transpose(0, 1).to("cpu", torch.float32)


def run_live(
    network: SteppingNetwork,
    samples: LiveSamples,
    policy: ExitPolicy,
    *,
    batch: int | None = None,
    refill: bool = False,
    seen: torch.Tensor | None = None,
) -> Outcome:
    """Step the network, query the policy and drop finished samples until none is left.

    Args:
        network: in the dtype and on the device of the inputs.
        samples: in the order in which they start.
        policy: queried by the code that replay uses.
        batch: maximum number of samples in flight; default all.
        refill: replace each finished sample by a waiting one; otherwise a batch finishes before the next starts.
        seen: float [N, T, K], receives the logits given to the policy; entries of timesteps not run are unchanged.

    Raises:
        UsageError: refill is requested for a network that cannot take new samples.
    """
    count = len(samples)
    size = max(1, min(batch or count, count))
    refill = refill and size < count
    if refill and not hasattr(network, "renew"):
        raise UsageError(f"network {type(network).__name__} has no `renew`, so it can't take in new samples: no refill")
    with torch.inference_mode():
        flight = _Flight(network, samples, policy, seen)
        started = 0
        while started < count or flight.cohorts:
            if not flight.cohorts:
                members = first_positions(min(size, count - started))
                flight.start(members + started if started else members)
                started += size
            free = flight.step()
            if free is not None and refill and started < count:
                new = torch.arange(started, min(started + free.shape[0], count))
                flight.renew(free[: len(new)], new)
                free, started = free[len(new) :], started + len(new)
            if free is not None and flight.cohorts and free.shape[0]:
                flight.drop(free)
        return flight.outcome()


class _Cohort:
    """Samples that started together. ``rows``: batch indices, ascending, of the ``left`` unfinished ones."""

    def __init__(
        self, samples: LiveSamples, policy: ExitPolicy, members: torch.Tensor, rows: torch.Tensor | None = None
    ) -> None:
        def frames(positions: torch.Tensor, count: int) -> torch.Tensor:
            return samples.frames(members[positions], count)

        ids = samples.sample_ids
        everybody = members.shape == ids.shape  # then member i is sample i
        self.members = members
        self.timesteps_done = 0
        own = ids if everybody else ids[members]
        self.controller = ExitController(policy, own, samples.timesteps, samples.classes, frames)
        self.rows = self.controller.unfinished if rows is None else rows  # the whole batch, or some of its rows
        self.left = members.shape[0]

    def observe(self, logits: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor | None:
        """Add o_t of the whole batch; return the rows that finish, or None."""
        told = logits if self.left == logits.shape[0] else logits.index_select(0, self.rows)
        if seen is not None:
            seen[self.members[self.controller.unfinished], self.timesteps_done] = told.to(seen.dtype)
        self.timesteps_done += 1
        parting = self.controller.observe(told)
        if parting is None:
            return None
        before, self.left = self.rows, parting.go_on.shape[0]
        if not self.left:
            return before
        self.rows = before.index_select(0, parting.go_on)
        return before.index_select(0, parting.stop)


class _Flight:
    """The samples in flight: rows of the network's batch, in cohorts."""

    def __init__(
        self, network: SteppingNetwork, samples: LiveSamples, policy: ExitPolicy, seen: torch.Tensor | None
    ) -> None:
        """Prepare a run with no samples in flight."""
        self.cohorts: list[_Cohort] = []
        self._network = network
        self._samples = samples
        self._policy = policy
        self._seen = seen
        self._sample_of_row = first_positions(0)  # [R]
        self._frames: torch.Tensor | None = None  # of all samples, timestep by timestep
        self._parts: list[tuple[torch.Tensor, Outcome]] = []

    def start(self, members: torch.Tensor) -> None:
        """Start new samples when none is in flight."""
        self._network.reset()
        self._sample_of_row = members
        self.cohorts = [_Cohort(self._samples, self._policy, members)]

    def step(self) -> torch.Tensor | None:
        """Run one timestep; return the rows of the samples that finish, ascending, or None.

        Finished samples leave their cohorts.
        """
        logits = self._network.step(self._frame()).to("cpu")
        free, ended = [], False
        for cohort in self.cohorts:
            rows = cohort.observe(logits, self._seen)
            if rows is None:
                continue
            free.append(rows)
            if not cohort.left:
                ended = True
                self._parts.append((cohort.members, cohort.controller.outcome))
        if ended:
            self.cohorts = [cohort for cohort in self.cohorts if cohort.left]
        if not free:
            return None
        return free[0] if len(free) == 1 else torch.cat(free).sort().values

    def renew(self, rows: torch.Tensor, members: torch.Tensor) -> None:
        """Start new samples at the rows of finished ones."""
        samples = self._samples
        frames = samples.inputs[members] if samples.constant_input else samples.inputs[0, members]
        self._network.renew(rows.to(frames.device), frames)  # type: ignore[attr-defined]  # asked for by run_live
        self._sample_of_row = self._sample_of_row.index_copy(0, rows, members)
        self.cohorts.append(_Cohort(samples, self._policy, members, rows))

    def drop(self, rows: torch.Tensor) -> None:
        """Compact everything to the rows still in use."""
        needed = torch.ones(len(self._sample_of_row), dtype=torch.bool)
        needed[rows] = False
        keep = needed.nonzero().flatten()
        self._network.keep(keep.to(self._samples.inputs.device))
        self._sample_of_row = self._sample_of_row[keep]
        places = needed.cumsum(0) - 1
        for cohort in self.cohorts:
            cohort.rows = places[cohort.rows]

    def outcome(self) -> Outcome:
        """Return the outcome of all samples, in their order."""
        if len(self._parts) == 1:
            return self._parts[0][1]
        order = torch.cat([members for members, _ in self._parts]).argsort()
        return Outcome(
            torch.cat([part.exit_timesteps for _, part in self._parts])[order],
            torch.cat([part.predictions for _, part in self._parts])[order],
            torch.cat([part.forced for _, part in self._parts])[order],
        )

    def _frame(self) -> torch.Tensor:
        """Return this timestep's input, row by row [R, C, H, W]."""
        if self._samples.constant_input:
            return self._rows_of(self._samples.inputs)
        if len(self.cohorts) == 1:
            return self._rows_of(self._samples.inputs[self.cohorts[0].timesteps_done])
        if self._frames is None:
            self._frames = self._samples.inputs.flatten(0, 1)
        places = self._sample_of_row.clone()
        for cohort in self.cohorts:
            places[cohort.rows] += cohort.timesteps_done * len(self._samples)
        return self._frames.index_select(0, places.to(self._frames.device))

    def _rows_of(self, frames: torch.Tensor) -> torch.Tensor:
        """Select from one frame of every sample [N, C, H, W] those of the samples in flight."""
        rows = self._sample_of_row
        if rows.shape == self._samples.sample_ids.shape:  # then row i is sample i
            return frames
        return frames.index_select(0, rows.to(frames.device))

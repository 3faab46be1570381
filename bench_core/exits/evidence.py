"""Evidence for exit decisions: what a policy may use at one timestep, and a single trace read shared by many readers.

Each reader gets its own ``Evidence``. All evidence of one timestep shares S_t, and every requested readout is computed
once. Shared tensors are never exposed: ``Evidence`` returns copies, so writing to them cannot affect other readers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from bench_core.errors import PluginError
from bench_core.isolation.foreign_code import end_stray_child
from bench_core.trace.trace import Trace
from bench_core.util.portable_math import FEW, exponential, logarithm, one_exponential, row_sum, row_sums
from bench_core.util.sample_rows import samples_in_cache
from bench_core.util.stable_random import uniform

__all__ = ["Evidence", "InputFrames", "Look", "Readout", "read_together", "samples_together"]

InputFrames = Callable[[torch.Tensor, int], torch.Tensor]
"""(positions [B], frames presented F) -> network input [B, F, C, H, W]."""


_FEW = 1024  # sorting is faster than several passes for up to this many values


class Evidence:
    """What a decision may use at timestep t, for B unfinished samples: no labels, no ids, nothing after t.

    Valid only during the decision. When a trace is read for several readers, requesting something new afterwards raises
    PluginError.

    Args:
        t: the timestep just computed, 1-based; 0 before the first (``ExitPolicy.start``).
        T: the timestep at which the network always stops.
        step_logits: o_t, float64 [B, K]; zeros at t = 0. Do not modify it or ``total`` while the evidence is in use.
        total: S_t = o_1 + … + o_t, float64 [B, K]; zeros at t = 0.
        keys: int64 [B]; seeds ``uniform``.
        inputs: returns the network input presented so far, for strategies that declare ``Requirement.INPUTS``.
    """

    __slots__ = ("T", "_inputs", "_keys", "_moment", "_step", "_total", "t")

    t: int
    T: int

    def __init__(  # noqa: PLR0917  # in order of availability
        self,
        t: int,
        T: int,  # uppercase, as in the literature
        step_logits: torch.Tensor,
        total: torch.Tensor,
        keys: torch.Tensor,
        inputs: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        """Create the evidence of one timestep; see the class for the arguments."""
        self._look_at(_Moment(t, step_logits, total), T, keys, inputs)

    @classmethod
    def _of(
        cls, moment: "_Moment", timesteps: int, keys: torch.Tensor, inputs: Callable[[], torch.Tensor] | None
    ) -> "Evidence":
        """Return evidence that shares its timestep with other readers."""
        evidence = cls.__new__(cls)
        evidence._look_at(moment, timesteps, keys, inputs)
        return evidence

    def _look_at(
        self, moment: "_Moment", timesteps: int, keys: torch.Tensor, inputs: Callable[[], torch.Tensor] | None
    ) -> None:
        self.t, self.T = moment.t, timesteps
        self._moment, self._keys, self._inputs = moment, keys, inputs
        self._step: torch.Tensor | None = None
        self._total: torch.Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return self._moment.shape[0]

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return self._moment.shape[1]

    @property
    def step_logits(self) -> torch.Tensor:
        """Logits o_t of this timestep, float64 [B, K]; zeros at t = 0."""
        if self._step is None:
            self._step = self._moment.step.clone()
        return self._step

    @property
    def total(self) -> torch.Tensor:
        """Accumulated logits S_t = o_1 + … + o_t, float64 [B, K]; zeros at t = 0."""
        if self._total is None:
            self._total = self._moment.total.clone()
        return self._total

    @property
    def mean(self) -> torch.Tensor:
        """Mean logits m_t = S_t / t, float64 [B, K]."""
        return self._moment.total / max(self.t, 1)

    def readout(self, accumulate: str = "sum", alpha: float = 1.0) -> "Readout":
        """Return the softmax readout of S_t / alpha, or of S_t / (t alpha) with ``accumulate="mean"``.

        When a trace is read for several readers, each readout is computed once.

        Raises:
            ValueError: ``accumulate`` is neither "sum" nor "mean", or alpha is not positive.
        """
        return self._moment.readout(accumulate, alpha)

    @property
    def inputs(self) -> torch.Tensor:
        """Network input presented so far, float32 [B, F, C, H, W], for strategies that require ``inputs``.

        F is 1 for constant input; for event frames it is t, or 1 (the first frame) at t = 0.

        Raises:
            PluginError: the strategy does not declare ``Requirement.INPUTS``.
        """
        if self._inputs is None:
            raise PluginError("exit strategy", "looks at inputs without declaring Requirement.INPUTS in `requires`")
        return self._inputs()

    def uniform(self, salt: int) -> torch.Tensor:
        """Return a number in [0, 1) per sample, float64 [B], independent of order, batch and engine."""
        return uniform(self._keys, salt)


class Readout:
    """Readout R_t = S_t / alpha or S_t / (t alpha) of B samples, with statistics of its softmax.

    Every result is a new tensor, float64 [B], identical on every processor (``bench_core.util.portable_math``); NaN if
    R_t contains NaN or its maximum is infinite. The maximum is subtracted before dividing by alpha, so a small alpha
    cannot cause overflow.
    """

    __slots__ = ("_alpha", "_largest", "_mean", "_moment", "_weighted")

    def __init__(self, moment: "_Moment", accumulate: str, alpha: float) -> None:
        """Create the readout; raise ValueError for an unknown ``accumulate`` or a non-positive alpha."""
        if accumulate not in ("sum", "mean") or not alpha > 0:
            raise ValueError(f"no readout: accumulate = {accumulate!r}, alpha = {alpha!r}")
        self._moment, self._mean, self._alpha = moment, accumulate == "mean", alpha
        self._largest: torch.Tensor | None = None
        self._weighted: torch.Tensor | None = None

    @property
    def runner_up(self) -> torch.Tensor:
        """Second largest value of R_t minus the largest: 0 for a tie, otherwise negative."""
        second = self._moment.second  # first: computing it may also compute the largest
        return self._less_largest(second)

    def of(self, classes: torch.Tensor) -> torch.Tensor:
        """Return R_t of one class per sample, ``classes`` int64 [B], minus the largest value of R_t."""
        return self._less_largest(self._moment.total.gather(1, classes[:, None]))

    @property
    def largest_probability(self) -> torch.Tensor:
        """Largest probability max p, with p = softmax(R_t)."""
        largest = self._softmax()[0]
        if self._moment.shared:
            return largest.clone()
        self._largest = None  # returned without a copy, so recompute it next time
        return largest

    @property
    def mean_log_probability(self) -> torch.Tensor:
        """Negative entropy sum p log p, with p = softmax(R_t); NaN if a logit is infinite."""
        self._moment.workspace.weighted.add((self._mean, self._alpha))
        largest, weighted = self._softmax()  # log p = x + log max p, with x = R_t - max R_t
        assert weighted is not None
        return weighted + _log(largest)

    @property
    def log_largest_probability(self) -> torch.Tensor:
        """Log of the largest probability, max log p, with p = softmax(R_t)."""
        return _log(self._softmax()[0])

    def _less_largest(self, values: torch.Tensor) -> torch.Tensor:
        """Return R_t minus its largest value, [B], for values of S_t [B, 1]."""
        moment = self._moment
        largest = moment.read_out(moment.largest, self._mean)
        below = moment.read_out(values, self._mean) - largest
        below += largest - largest  # NaN if the largest is infinite, otherwise 0
        return (below if self._alpha == 1.0 else below / self._alpha).squeeze(1)

    def _softmax(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return max p and, if ever requested, sum p x over classes with x = R_t - max R_t, [B] each."""
        wanted = (self._mean, self._alpha) in self._moment.workspace.weighted
        if self._largest is None or (wanted and self._weighted is None):
            self._largest, self._weighted = self._moment.softmax(self._mean, self._alpha, weighted=wanted)
        return self._largest, self._weighted


class _Workspace:
    """Buffers and requests that persist across timesteps; reusing buffers avoids page faults.

    Attributes:
        weighted: readouts for which sum p x was requested; from then on it is computed together with max p.
    """

    def __init__(self) -> None:
        """Create an empty workspace."""
        self._free: list[torch.Tensor] = []
        self.weighted: set[tuple[bool, float]] = set()

    def take(self, shape: torch.Size) -> torch.Tensor:
        """Return a contiguous, uninitialized float64 tensor of this shape."""
        free = self._free.pop() if self._free else None
        return free if free is not None and free.shape == shape else torch.empty(shape, dtype=torch.float64)

    def give_back(self, *tensors: torch.Tensor) -> None:
        """Return tensors to the pool of free buffers."""
        self._free += tensors


class _Moment:
    """One timestep of a batch: the data shared by everyone's evidence.

    Args:
        t: the timestep.
        step: o_t, float64 [B, K]; not modified.
        total: S_t, float64 [B, K], possibly the same tensor as ``step`` at t = 1; modified only briefly, in ``second``.
        workspace: shared by all readers; None for a single strategy.
    """

    def __init__(self, t: int, step: torch.Tensor, total: torch.Tensor, workspace: _Workspace | None = None) -> None:
        self.t, self.shape = t, total.shape
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = (step, total)
        self.shared = workspace is not None
        self._workspace = workspace
        self._below: dict[bool, torch.Tensor] = {}
        self._readouts: dict[tuple[str, float], Readout] = {}

    def close(self) -> None:
        """End the timestep: its tensors are about to be reused."""
        self._tensors = None
        self.workspace.give_back(*self._below.values())
        self._below = {}

    @property
    def step(self) -> torch.Tensor:
        return self._open()[0]

    @property
    def total(self) -> torch.Tensor:
        return self._open()[1]

    @property
    def workspace(self) -> _Workspace:
        if self._workspace is None:
            self._workspace = _Workspace()
        return self._workspace

    def readout(self, accumulate: str, alpha: float) -> Readout:
        key = accumulate, alpha
        if key not in self._readouts:
            self._readouts[key] = Readout(self, accumulate, alpha)
        return self._readouts[key]

    @cached_property
    def places(self) -> torch.Tensor:
        """Index of the largest S_t (the first in a tie), [B, 1]; NaN counts as largest."""
        return torch.from_numpy(self.total.numpy().argmax(1))[:, None]  # many times faster than torch's

    @cached_property
    def largest(self) -> torch.Tensor:
        """Largest value of S_t, [B, 1]."""
        return self.total.gather(1, self.places) if "places" in vars(self) else self.total.amax(1, keepdim=True)

    @cached_property
    def second(self) -> torch.Tensor:
        """Second largest value of S_t (equal to the largest in a tie), [B, 1]."""
        if self.total.numel() <= _FEW:
            return self.total.kthvalue(self.shape[1] - 1, 1, keepdim=True).values
        places, total = self.places, self.total
        largest = self.largest
        second = total.scatter_(1, places, -torch.inf).amax(1, keepdim=True)
        total.scatter_(1, places, largest)
        return second

    def read_out(self, values: torch.Tensor, mean: bool, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return S_t, or S_t / t if ``mean``."""
        return torch.div(values, max(self.t, 1), out=out) if mean else values

    def below(self, mean: bool) -> torch.Tensor:
        """Return S_t or S_t / t minus its largest value, [B, K]; do not modify the result."""
        if mean not in self._below:
            place = self.workspace.take(self.shape)
            values = self.read_out(self.total, mean, place)
            largest = self.read_out(self.largest, mean)
            self._below[mean] = torch.sub(values, largest, out=values if mean else place)
        return self._below[mean]

    def softmax(self, mean: bool, alpha: float, *, weighted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the largest probability max p and, if ``weighted``, sum p x, [B] each.

        Here p is the softmax of S_t / alpha, or of S_t / (t alpha) if ``mean``.
        """
        if self.total.numel() <= FEW:
            return _softmax_of_few(self.total.tolist(), max(self.t, 1) if mean else 1, alpha, weighted=weighted)
        workspace, below = self.workspace, self.below(mean)
        place = torch.div(below, alpha, out=workspace.take(self.shape))
        powers = exponential(place.numpy())
        product = None
        if weighted:
            products = torch.mul(place, below, out=workspace.take(self.shape))
            product = row_sums(products.numpy()) / alpha
            workspace.give_back(products)
        largest = 1.0 / row_sums(powers)  # the largest R_t is shifted to 0
        workspace.give_back(place)
        return torch.from_numpy(largest), None if product is None else torch.from_numpy(product * largest)

    def _open(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tensors is None:
            raise PluginError("exit strategy", f"asks for evidence of timestep {self.t} when that is over")
        return self._tensors


def _softmax_of_few(
    totals: list[list[float]], steps: int, alpha: float, *, weighted: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute ``_Moment.softmax`` for few values of S_t, for which plain Python numbers are faster."""
    largest, products = [], []
    for total in totals:
        values = total if steps == 1 else [value / steps for value in total]
        top = max(values)
        below = [value - top for value in values]
        powers = [one_exponential(x) for x in (below if alpha == 1.0 else [x / alpha for x in below])]
        product = [power * x for power, x in zip(powers, below, strict=True)] if weighted else []
        largest.append(1.0 / row_sum(powers))
        if weighted:
            products.append(row_sum(product) / alpha * largest[-1])
    found = torch.tensor(largest, dtype=torch.float64)
    return found, torch.tensor(products, dtype=torch.float64) if weighted else None


def _log(values: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(logarithm(values.numpy()))


def samples_together(classes: int) -> int:
    """Return how many samples of K classes to process at a time."""
    return min(4096, samples_in_cache(classes, least=16))


@dataclass(frozen=True)
class Look:
    """A function evaluated on every sample's evidence in a shared trace read.

    Attributes:
        see: (evidence, labels int64 [B]) -> float64 [B].
        inputs: network input by position in the trace, if the function uses it.
    """

    see: Callable[[Evidence, torch.Tensor], torch.Tensor]
    inputs: InputFrames | None = None


def read_together(
    trace: Trace, looks: Sequence[Look], timesteps: int, *, batch: int | None = None
) -> list[torch.Tensor | Exception]:
    """Evaluate all ``looks`` on every sample of a trace at t = 1 .. ``timesteps``, in one read.

    Args:
        trace: recorded logits.
        looks: the functions to evaluate.
        timesteps: the last timestep to evaluate.
        batch: samples processed at a time; results must not depend on it.

    Returns:
        For each look its values, float64 [N, timesteps], or the exception it raised. A look that raised is not called
        again; the others are unaffected.
    """
    found: list[torch.Tensor | Exception] = [
        torch.empty(len(trace), timesteps, dtype=torch.float64) for _ in range(len(looks))
    ]
    if not looks:
        return found
    batch = batch or samples_together(trace.classes)
    workspace = _Workspace()
    for start, logits in trace.rows.pieces(batch):
        rows = slice(start, start + len(logits))
        keys, labels = trace.sample_ids[rows], trace.labels[rows]
        for moment in _moments(logits, timesteps, workspace):
            for place, look in enumerate(looks):
                column = found[place]
                if isinstance(column, Exception):
                    continue
                evidence = Evidence._of(moment, trace.timesteps, keys, _frames(look.inputs, rows, moment.t))
                try:
                    column[rows, moment.t - 1] = look.see(evidence, labels.clone())
                except Exception as error:  # a plugin may raise anything
                    found[place] = error
                end_stray_child()
    return found


def _moments(logits: torch.Tensor, timesteps: int, workspace: _Workspace) -> Iterator[_Moment]:
    """Yield the timesteps of a batch of logits o_t [B, T, K] in turn, reusing the same memory."""
    step, total = torch.empty(2, logits.shape[0], logits.shape[2], dtype=torch.float64)
    for t in range(1, timesteps + 1):
        step.copy_(logits[:, t - 1])
        total = total.copy_(step) if t == 1 else total.add_(step)
        moment = _Moment(t, step, total, workspace)
        yield moment
        moment.close()


def _frames(inputs: InputFrames | None, rows: slice, t: int) -> Callable[[], torch.Tensor] | None:
    """Return a function that reads the network input of these samples up to t, or None without inputs."""
    return None if inputs is None else lambda: inputs(torch.arange(rows.start, rows.stop), t)

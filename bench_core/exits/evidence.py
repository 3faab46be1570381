"""What a decision may see at one timestep, and the one read of a trace that shows it to many.

Whoever looks gets an ``Evidence`` of their own. Behind those of one timestep stands the same S_t, and what was asked
of its readouts is computed once for all. Nothing that is shared is handed out: the tensors that evidence gives are
new, so that writing into them harms nobody else.
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


_FEW = 1024  # values of which a sort is quicker than several passes


class Evidence:
    """What a decision may see at timestep t, for a batch of B unfinished samples. No labels, no ids, nothing after t.

    It is good for as long as the decision takes. Asking for what wasn't asked for by then raises PluginError where
    a trace is read for many at once.

    Args:
        t: the timestep just computed, 1-based; 0 before the first (``ExitPolicy.start``).
        T: timesteps at which the network stops in any case.
        step_logits: o_t, float64 [B, K]; zeros at t = 0. It and ``total`` must not be written to while this is used.
        total: S_t = o_1 + … + o_t, float64 [B, K]; zeros at t = 0.
        keys: what ``uniform`` depends on, int64 [B].
        inputs: gives the network input presented so far, for strategies that declare that they look at it.
    """

    __slots__ = ("T", "_inputs", "_keys", "_moment", "_step", "_total", "t")

    t: int
    T: int

    def __init__(  # noqa: PLR0917  # what a decision may see, in the order it comes about
        self,
        t: int,
        T: int,  # the field's own name
        step_logits: torch.Tensor,
        total: torch.Tensor,
        keys: torch.Tensor,
        inputs: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        self._look_at(_Moment(t, step_logits, total), T, keys, inputs)

    @classmethod
    def _of(
        cls, moment: "_Moment", timesteps: int, keys: torch.Tensor, inputs: Callable[[], torch.Tensor] | None
    ) -> "Evidence":
        """Evidence that shares what is behind it with others."""
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
        """B, the number of samples."""
        return self._moment.shape[0]

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return self._moment.shape[1]

    @property
    def step_logits(self) -> torch.Tensor:
        """o_t, float64 [B, K]; zeros at t = 0."""
        if self._step is None:
            self._step = self._moment.step.clone()
        return self._step

    @property
    def total(self) -> torch.Tensor:
        """S_t = o_1 + … + o_t, float64 [B, K]; zeros at t = 0."""
        if self._total is None:
            self._total = self._moment.total.clone()
        return self._total

    @property
    def mean(self) -> torch.Tensor:
        """m_t = S_t / t, float64 [B, K]."""
        return self._moment.total / max(self.t, 1)

    def readout(self, accumulate: str = "sum", alpha: float = 1.0) -> "Readout":
        """Softmax of S_t / alpha, or with ``accumulate="mean"`` of S_t / (t alpha).

        Where a trace is read for many it is computed once for all who ask.

        Raises ValueError for another ``accumulate``, or where alpha isn't above 0.
        """
        return self._moment.readout(accumulate, alpha)

    @property
    def inputs(self) -> torch.Tensor:
        """The network input presented so far, float32 [B, F, C, H, W], for strategies that require ``inputs``.

        F is 1 under constant input; for event frames it is t, and at t = 0 the first frame stands alone. Raises
        PluginError where the strategy doesn't declare that it looks at inputs.
        """
        if self._inputs is None:
            raise PluginError("exit strategy", "looks at inputs without declaring Requirement.INPUTS in `requires`")
        return self._inputs()

    def uniform(self, salt: int) -> torch.Tensor:
        """A number in [0, 1) per sample, float64 [B], the same in any order, batch and engine."""
        return uniform(self._keys, salt)


class Readout:
    """R_t = S_t / alpha or S_t / (t alpha) of B samples, and what its softmax comes to.

    Whatever it gives is a new tensor, float64 [B], NaN where R_t has NaN or its largest is infinite, and the same on
    every processor (``bench_core.util.portable_math``). Values are shifted by the largest before they are divided by
    alpha, so that a small one can't make them overflow.
    """

    __slots__ = ("_alpha", "_largest", "_mean", "_moment", "_weighted")

    def __init__(self, moment: "_Moment", accumulate: str, alpha: float) -> None:
        if accumulate not in ("sum", "mean") or not alpha > 0:
            raise ValueError(f"no readout: accumulate = {accumulate!r}, alpha = {alpha!r}")
        self._moment, self._mean, self._alpha = moment, accumulate == "mean", alpha
        self._largest: torch.Tensor | None = None
        self._weighted: torch.Tensor | None = None

    @property
    def runner_up(self) -> torch.Tensor:
        """The second largest of R_t less the largest: 0 where two tie, else below 0."""
        second = self._moment.second  # first, because the largest may come with it
        return self._less_largest(second)

    def of(self, classes: torch.Tensor) -> torch.Tensor:
        """R_t of one class a sample, ``classes`` int64 [B], less the largest of R_t."""
        return self._less_largest(self._moment.total.gather(1, classes[:, None]))

    @property
    def largest_probability(self) -> torch.Tensor:
        """max p, for p = softmax(R_t)."""
        largest = self._softmax()[0]
        if self._moment.shared:
            return largest.clone()
        self._largest = None  # it is handed out, so it is computed anew for whoever asks again
        return largest

    @property
    def mean_log_probability(self) -> torch.Tensor:
        """sum p log p for p = softmax(R_t), which is minus its entropy; NaN where a logit is infinite."""
        self._moment.workspace.weighted.add((self._mean, self._alpha))
        largest, weighted = self._softmax()  # log p = x + log max p, for x = R_t less its largest
        assert weighted is not None
        return weighted + _log(largest)

    @property
    def log_largest_probability(self) -> torch.Tensor:
        """max log p, for p = softmax(R_t)."""
        return _log(self._softmax()[0])

    def _less_largest(self, values: torch.Tensor) -> torch.Tensor:
        """R_t from S_t [B, 1], less the largest, [B]."""
        moment = self._moment
        largest = moment.read_out(moment.largest, self._mean)
        below = moment.read_out(values, self._mean) - largest
        below += largest - largest  # NaN where it is infinite, else nothing
        return (below if self._alpha == 1.0 else below / self._alpha).squeeze(1)

    def _softmax(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """max p, and where anybody ever wanted it sum p x over classes, x = R_t less its largest, [B] each."""
        wanted = (self._mean, self._alpha) in self._moment.workspace.weighted
        if self._largest is None or (wanted and self._weighted is None):
            self._largest, self._weighted = self._moment.softmax(self._mean, self._alpha, weighted=wanted)
        return self._largest, self._weighted


class _Workspace:
    """What outlives a timestep: tensors to compute in (new ones cost page faults every time), and what is wanted.

    Attributes:
        weighted: the readouts of which sum p x is wanted; it is made along with max p from then on.
    """

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self.weighted: set[tuple[bool, float]] = set()

    def take(self, shape: torch.Size) -> torch.Tensor:
        """A contiguous float64 tensor of that shape with anything in it."""
        free = self._free.pop() if self._free else None
        return free if free is not None and free.shape == shape else torch.empty(shape, dtype=torch.float64)

    def give_back(self, *tensors: torch.Tensor) -> None:
        """Tensors that nobody needs any more."""
        self._free += tensors


class _Moment:
    """One timestep of a batch: what stands behind the evidence of all who look at it.

    Args:
        step, total: o_t and S_t, float64 [B, K], one tensor at t = 1 perhaps; not written to but for a moment, in
            ``second``.
        workspace: of those who look at it together; without one a single strategy does.
    """

    def __init__(self, t: int, step: torch.Tensor, total: torch.Tensor, workspace: _Workspace | None = None) -> None:
        self.t, self.shape = t, total.shape
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = (step, total)
        self.shared = workspace is not None
        self._workspace = workspace
        self._below: dict[bool, torch.Tensor] = {}
        self._readouts: dict[tuple[str, float], Readout] = {}

    def close(self) -> None:
        """The timestep is over: from now on its tensors hold something else."""
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
        """Where S_t is largest, the first of several, [B, 1]; NaN counts as largest."""
        return torch.from_numpy(self.total.numpy().argmax(1))[:, None]  # many times faster than torch's

    @cached_property
    def largest(self) -> torch.Tensor:
        """The largest of S_t, [B, 1]."""
        return self.total.gather(1, self.places) if "places" in vars(self) else self.total.amax(1, keepdim=True)

    @cached_property
    def second(self) -> torch.Tensor:
        """The second largest of S_t (the largest where two tie), [B, 1]."""
        if self.total.numel() <= _FEW:
            return self.total.kthvalue(self.shape[1] - 1, 1, keepdim=True).values
        places, total = self.places, self.total
        largest = self.largest
        second = total.scatter_(1, places, -torch.inf).amax(1, keepdim=True)
        total.scatter_(1, places, largest)
        return second

    def read_out(self, values: torch.Tensor, mean: bool, out: torch.Tensor | None = None) -> torch.Tensor:
        """S_t, or S_t / t."""
        return torch.div(values, max(self.t, 1), out=out) if mean else values

    def below(self, mean: bool) -> torch.Tensor:
        """S_t or S_t / t less its largest, [B, K]; not to be written to."""
        if mean not in self._below:
            place = self.workspace.take(self.shape)
            values = self.read_out(self.total, mean, place)
            largest = self.read_out(self.largest, mean)
            self._below[mean] = torch.sub(values, largest, out=values if mean else place)
        return self._below[mean]

    def softmax(self, mean: bool, alpha: float, *, weighted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """For p = softmax(S_t / alpha) or softmax(S_t / (t alpha)): max p, and where wanted sum p x, [B] each."""
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
        largest = 1.0 / row_sums(powers)  # the largest of R_t is shifted to 0
        workspace.give_back(place)
        return torch.from_numpy(largest), None if product is None else torch.from_numpy(product * largest)

    def _open(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tensors is None:
            raise PluginError("exit strategy", f"asks for evidence of timestep {self.t} when that is over")
        return self._tensors


def _softmax_of_few(
    totals: list[list[float]], steps: int, alpha: float, *, weighted: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What ``_Moment.softmax`` gives for a few values of S_t, which plain numbers are quicker for."""
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
    """How many samples of K classes are looked at together."""
    return min(4096, samples_in_cache(classes, least=16))


@dataclass(frozen=True)
class Look:
    """What somebody makes of the evidence when a trace is read for many.

    Attributes:
        see: (evidence, labels int64 [B]) -> float64 [B].
        inputs: network input by position in the trace, for whoever looks at it.
    """

    see: Callable[[Evidence, torch.Tensor], torch.Tensor]
    inputs: InputFrames | None = None


def read_together(
    trace: Trace, looks: Sequence[Look], timesteps: int, *, batch: int | None = None
) -> list[torch.Tensor | Exception]:
    """Show every sample of a trace at t = 1 .. ``timesteps`` to all who look, in one read.

    Args:
        batch: samples that are looked at together; no result may depend on it.

    Returns:
        For each look what it made of the evidence, float64 [N, timesteps], or what it raised. One that raised is
        not asked again, and the others don't notice.
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
    """The timesteps of a batch, of o_t [B, T, K], one after the other in the same memory."""
    step, total = torch.empty(2, logits.shape[0], logits.shape[2], dtype=torch.float64)
    for t in range(1, timesteps + 1):
        step.copy_(logits[:, t - 1])
        total = total.copy_(step) if t == 1 else total.add_(step)
        moment = _Moment(t, step, total, workspace)
        yield moment
        moment.close()


def _frames(inputs: InputFrames | None, rows: slice, t: int) -> Callable[[], torch.Tensor] | None:
    """What reads the network input of some samples up to t."""
    return None if inputs is None else lambda: inputs(torch.arange(rows.start, rows.stop), t)

"""Spiking neurons that run over any number of timesteps at once and can drop finished samples.

A neuron always receives current with two leading dimensions, [T, B, ...]; T is the number of timesteps in the call: all
of them (folded execution) or one (stepwise). Its potential carries over from call to call until ``reset``, so both give
the same spikes by the same code.
"""

from typing import Any, Final, Literal

import torch
from torch import nn

from bench_core.snn.state_rows import kept_rows, overwrite_rows
from bench_core.snn.surrogate import SURROGATES, Surrogate

__all__ = ["NEURONS", "SpikingNeuron", "if_neuron", "lif_neuron", "trained_neuron"]

ResetMode = Literal["hard", "soft"]
SpikeMemory = Literal["new", "current", "own"]


class SpikingNeuron(nn.Module):
    """A leaky or perfect integrator that spikes at a threshold.

    Per timestep: u <- decay * u + I;  s = 1 if u >= threshold;  then, if it spiked, u <- 0 (hard reset), or
    u <- u - threshold * s (soft reset). The output is ``amplitude * s``.

    Args:
        decay: share of the potential kept from step to step; 1 integrates perfectly.
        threshold: potential at which the neuron spikes, in units of its input current.
        reset: ``hard`` or ``soft``.
        initial: potential before the first step.
        amplitude: value that a spike carries to the next layer.
        surrogate: replacement of the spike's derivative, one of ``bench_core.snn.surrogate.SURROGATES``.

    Attributes:
        spike_memory: where spikes are written without gradients: to ``new`` memory; over the ``current`` that they come
            from; or to the neurons' ``own`` memory, over those of the previous call. The latter two are faster.
        keeps_potentials: store the potential after every timestep of a training pass, for regularisers.
        potentials: the stored potentials, after the reset, [T, B, ...], with gradient; else None.
    """

    def __init__(
        self,
        *,
        decay: float,
        threshold: float = 1.0,
        reset: ResetMode = "hard",
        initial: float = 0.0,
        amplitude: float = 1.0,
        surrogate: str = "triangle",
    ) -> None:
        """Create a layer of neurons; see the class. Raises ValueError for an unknown reset."""
        super().__init__()
        if reset not in ("hard", "soft"):
            raise ValueError(f"reset is hard or soft, not {reset!r}")
        self.decay = decay
        self.threshold = threshold
        self.reset_mode: ResetMode = reset
        self.initial = initial
        self.amplitude = amplitude
        self.surrogate = surrogate
        self.potential: torch.Tensor | None = None  # [B, ...], updated in every step
        self.spike_memory: SpikeMemory = "new"
        self._spikes: torch.Tensor | None = None  # the ``own`` memory
        self.keeps_potentials = False
        self.potentials: torch.Tensor | None = None

    def reset(self) -> None:
        """Clear the potential: the next call starts new samples."""
        own = self.__dict__  # as below: nn.Module's __setattr__ takes longer than a small layer's step
        own["potential"] = own["potentials"] = own["_spikes"] = None

    def keep(self, index: torch.Tensor) -> None:
        """Continue with the samples at ``index`` [B'] only."""
        if self.potential is not None:
            self.potential = kept_rows(self.potential, index)

    def renew(self, index: torch.Tensor) -> None:
        """Set the potential at ``index`` [R] to the initial one, for new samples. Inference only."""
        if self.potential is not None:
            overwrite_rows(self.potential, index, self.initial)

    def forward(self, current: torch.Tensor) -> torch.Tensor:
        """Map current [T, B, ...] to spikes [T, B, ...], the next T timesteps of the current samples."""
        if torch.is_grad_enabled() and current.requires_grad:
            before = self.potential
            spikes: torch.Tensor
            spikes, after = _SpikingSequence.apply(  # type: ignore[no-untyped-call]  # torch's own
                current,
                torch.full_like(current[0], self.initial) if before is None else before,
                self.decay,
                self.threshold,
                self.reset_mode,
                SURROGATES[self.surrogate],
                self.keeps_potentials,
            )
            self.potential = after[-1]
            self.potentials = after if self.keeps_potentials else None
            return spikes if self.amplitude == 1.0 else spikes * self.amplitude
        return self._infer(current)

    def _infer(self, current: torch.Tensor) -> torch.Tensor:
        potential = self.potential
        spikes = self._memory_for_spikes(current)
        for step, fired in zip(current, spikes, strict=True):
            place = potential  # allocating new memory would cost more than the sum
            if potential is None:
                potential = torch.full_like(step, self.initial)
                place = potential
            elif (
                potential.requires_grad
                or potential.is_inference() != torch.is_inference_mode_enabled()
                or potential.dtype != step.dtype
            ):
                place = None  # it was created in another mode
            potential = torch.add(step, potential, alpha=self.decay, out=place)
            torch.ge(potential, self.threshold, out=fired)
            if self.reset_mode == "hard":
                potential.addcmul_(potential, fired, value=-1.0)  # u - u s
            else:
                potential.sub_(fired, alpha=self.threshold)
            if self.amplitude != 1.0:
                fired.mul_(self.amplitude)
        self.__dict__["potential"] = potential
        return spikes

    def _memory_for_spikes(self, current: torch.Tensor) -> torch.Tensor:
        if self.spike_memory == "current":
            return current
        if self.spike_memory == "new" or torch.is_grad_enabled():  # a gradient may need the spikes
            return _laid_out_like(current)
        spikes = self._spikes
        if (
            spikes is None
            or spikes.shape != current.shape
            or spikes.dtype != current.dtype
            or spikes.is_inference() != torch.is_inference_mode_enabled()
        ):
            spikes = _laid_out_like(current)
            self.__dict__["_spikes"] = spikes
        return spikes

    def extra_repr(self) -> str:
        """Return decay, threshold and reset, for PyTorch's ``repr``."""
        return f"decay={self.decay}, threshold={self.threshold}, reset={self.reset_mode}"


def _laid_out_like(current: torch.Tensor) -> torch.Tensor:
    """Return new memory [T, B, ...] with the strides of ``current`` at every timestep, so that no layer reorders it."""
    first = current[0]
    return torch.empty_strided(
        current.shape, (first.numel(), *first.stride()), dtype=current.dtype, device=current.device
    )


def lif_neuron() -> SpikingNeuron:
    """Return leaky integrate-and-fire neurons: decay 0.5, threshold 1, hard reset (SEENN, DT-SNN, Top-K cutoff)."""
    return SpikingNeuron(decay=0.5)


def if_neuron(threshold: float) -> SpikingNeuron:
    """Return integrate-and-fire neurons as QCFS conversion uses them.

    Soft reset, u(0) = threshold / 2, spikes carry the threshold. Source: Bu et al., ICLR 2022.
    """
    return SpikingNeuron(decay=1.0, threshold=threshold, reset="soft", initial=threshold / 2, amplitude=threshold)


NEURONS: Final[dict[str, float]] = {"lif": 0.5, "if": 1.0}  # decay, of neurons that are trained directly


def trained_neuron(kind: str = "lif", surrogate: str = "triangle") -> SpikingNeuron:
    """Return neurons for direct training: one of ``NEURONS``, threshold 1, hard reset, spikes that carry 1."""
    return SpikingNeuron(decay=NEURONS[kind], surrogate=surrogate)


class _SpikingSequence(torch.autograd.Function):
    """The neuron's loop over time with a hand-written backward pass (surrogate gradient, reset not detached).

    Equal to autograd through the loop (a test compares), with a fraction of its memory traffic. Returns the spikes
    [T, B, ...] and the potential after every timestep [T, B, ...], or after the last one only [1, B, ...].
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # torch passes them by position
        ctx: Any,
        current: torch.Tensor,
        initial: torch.Tensor,
        decay: float,
        threshold: float,
        reset: ResetMode,
        surrogate: Surrogate,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spikes = torch.empty_like(current)
        potentials = torch.empty_like(current)  # before the reset
        kept = torch.empty_like(current) if keep else None
        after = initial
        for t, step in enumerate(current):
            before = torch.add(step, after, alpha=decay, out=potentials[t])
            fired = torch.ge(before, threshold, out=spikes[t])
            if reset == "hard":
                after = torch.addcmul(before, before, fired, value=-1.0)  # u - u s
            else:
                after = torch.sub(before, fired, alpha=threshold)
            if kept is not None:
                kept[t] = after
        ctx.save_for_backward(potentials)
        ctx.constants = decay, threshold, reset, surrogate
        return spikes, after.unsqueeze(0) if kept is None else kept

    @staticmethod
    def backward(
        ctx: Any, spikes_gradient: torch.Tensor, after_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None, None, None]:
        (potentials,) = ctx.saved_tensors
        decay, threshold, reset, surrogate = ctx.constants
        current_gradient = torch.empty_like(potentials)
        carried = after_gradient[-1]
        for t in range(len(potentials) - 1, -1, -1):
            before = potentials[t]
            slope = surrogate(before - threshold)
            if reset == "hard":
                through_reset = torch.lt(before, threshold, out=torch.empty_like(before)).sub_(before * slope)
            else:
                through_reset = 1.0 - threshold * slope
            gradient = torch.addcmul(slope.mul_(spikes_gradient[t]), carried, through_reset, out=current_gradient[t])
            carried = decay * gradient
            if t and len(after_gradient) > 1:
                carried = carried + after_gradient[t - 1]
        return current_gradient, carried, None, None, None, None, None

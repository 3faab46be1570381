"""Adapters for user networks, one timestep at a time: the protocol, and modules of snnTorch and SpikingJelly.

Neither library is imported here unless the module's author has imported it already.
"""

import importlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench_core.errors import UsageError, one_line
from bench_core.isolation.failures import out_of_memory
from bench_core.util.progress import note

__all__ = ["PROTOCOL", "SteppedNetwork", "what_happened"]

PROTOCOL = (
    "give it reset() and step(x_t) -> o_t [B, K], or build it of neurons of snnTorch or SpikingJelly (docs/networks.md)"
)
_LOGIT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HARNESS = Path(__file__).parent
_NOT_THE_AUTHORS = tuple(str(Path(place).parent) for place in (torch.__file__, _HARNESS, importlib.__file__))


@dataclass(frozen=True)
class _Way:
    """How a module is reset and stepped.

    Attributes:
        kind: ``protocol``, ``snntorch`` or ``spikingjelly``.
        reset, step: functions to call; ``step`` may return the library's own output.
        method: the author's method that ``step`` calls, named in errors.
        remedy: for a step that fails.
    """

    kind: str
    reset: Callable[[], object]
    step: Callable[[torch.Tensor], object]
    method: str
    remedy: str


class SteppedNetwork:
    """A user's module, adapted for recording.

    The module is put into evaluation mode. Its output is checked at every step; it receives a copy of each frame, and
    the logits are copied, so that a module may work in place.

    Args:
        module: has ``reset()`` and ``step(x_t) -> o_t [B, K]``, or contains neurons of snnTorch (``forward`` is one
            timestep; the first element of a tuple is o_t) or SpikingJelly (``forward``, put into step mode ``s``).
        name: named in errors.
        classes: K.
        constant_input: the same frame is presented at every timestep.

    Raises:
        UsageError: the module can't be stepped.

    Attributes:
        kind: ``protocol``, ``snntorch`` or ``spikingjelly``.
    """

    def __init__(self, module: nn.Module, name: str, *, classes: int, constant_input: bool) -> None:
        """Adapt a module; see the class."""
        self._name = name
        self._classes = classes
        self._constant_input = constant_input
        self._way = _way_of(module.eval(), name)
        self._dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        self._told_of_tuple = False
        self.kind = self._way.kind

    def reset(self) -> None:
        """Clear all state. Raises UsageError if the module's own reset raises."""
        try:
            self._way.reset()
        except Exception as error:  # user code may raise anything
            raise UsageError(f"{self._name}: its reset raised {what_happened(error)}") from error

    def step(self, frame: torch.Tensor) -> torch.Tensor:
        """Return o_t [B, K] for one timestep's input [B, C, H, W]. Raises UsageError if the module fails."""
        try:
            output = self._way.step(frame.to(self._dtype, copy=True))
        except Exception as error:  # user code may raise anything
            if out_of_memory(error):  # recording then retries with a smaller batch
                raise
            raise UsageError(
                f"{self._name}: its {self._way.method} on a frame {list(frame.shape)} raised {what_happened(error)}; "
                f"{self._way.remedy}"
            ) from error
        return self._logits(output, len(frame))

    def run(self, inputs: torch.Tensor, timesteps: int, *, fold: int | None = None) -> torch.Tensor:
        """Compute all timesteps of new samples, one after the other.

        Args:
            inputs: [B, C, H, W] under constant input, else [T, B, C, H, W].
            timesteps: T.
            fold: ignored.

        Returns:
            o_t per timestep, [T, B, K].
        """
        del fold
        self.reset()
        frames = [inputs] * timesteps if self._constant_input else inputs
        return torch.stack([self.step(frame).clone() for frame in frames])

    def _logits(self, output: object, samples: int) -> torch.Tensor:
        """Return a step's output if it is o_t. Raises UsageError otherwise."""
        if isinstance(output, tuple | list) and output and self._way.kind != "protocol":
            if not self._told_of_tuple:
                note(f"{self._name}: {self._way.method} gives {len(output)} things; the first is taken as o_t")
            self._told_of_tuple, output = True, output[0]
        expected = f"expected [{samples}, {self._classes}]: one timestep's logits, a row per sample"
        given = f"{self._name}: its {self._way.method} gave"
        if not isinstance(output, torch.Tensor) or output.is_complex():
            what = output.dtype if isinstance(output, torch.Tensor) else type(output).__name__
            raise UsageError(f"{given} {what}, {expected}")
        if output.dim() != 2 or len(output) != samples:
            raise UsageError(f"{given} {list(output.shape)}, {expected}; {self._way.remedy}")
        if output.shape[1] != self._classes:
            raise UsageError(
                f"{given} {output.shape[1]} classes, the data set has {self._classes}: "
                "record it on the data set that it was trained on"
            )
        return output if output.dtype in _LOGIT_TYPES else output.to(torch.float32)


def what_happened(error: BaseException) -> str:
    """Return a user-code exception as one line: its type, its text, and the author's last line that led to it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_the_authors(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return one_line(f"{text:.300}{place}")


def _is_the_authors(filename: str) -> bool:
    return not filename.startswith(("<", *_NOT_THE_AUTHORS))


def _way_of(module: nn.Module, name: str) -> _Way:
    step, reset = (getattr(module, method, None) for method in ("step", "reset"))
    if callable(step) and callable(reset):
        return _Way("protocol", reset, step, "step", "it is given one timestep's frames [B, C, H, W]")
    if callable(step):
        raise UsageError(f"{name}: {type(module).__name__} has step but no reset; {PROTOCOL}")
    found = _of_snntorch(module, name) or _of_spikingjelly(module, name)
    if found is None:
        raise UsageError(f"{name}: {type(module).__name__} can't be run step by step; {PROTOCOL}")
    return found


def _of_snntorch(module: nn.Module, name: str) -> _Way | None:
    library: Any = sys.modules.get("snntorch")
    if library is None:
        return None
    kinds = (library.SpikingNeuron, library.LeakyParallel)
    neurons = {place: part for place, part in module.named_modules() if isinstance(part, kinds)}
    for place, neuron in neurons.items():
        if not hasattr(neuron, "reset_mem"):
            raise UsageError(
                f"{name}: neuron {place} ({type(neuron).__name__}) takes all timesteps at once; {PROTOCOL}"
            )

    def reset() -> None:  # snntorch.utils.reset covers direct children only, and resets other networks' neurons too
        for neuron in neurons.values():
            neuron.reset_mem()

    remedy = "forward must be one timestep, with neurons that keep their state (init_hidden=True); or " + PROTOCOL
    return _Way("snntorch", reset, module, "forward", remedy) if neurons else None


def _of_spikingjelly(module: nn.Module, name: str) -> _Way | None:
    base: Any = sys.modules.get("spikingjelly.activation_based.base")
    if base is None:
        return None
    parts = {place: part for place, part in module.named_modules() if isinstance(part, base.StepModule)}
    if not parts:
        return None
    for place, part in parts.items():
        if "s" not in part.supported_step_mode():
            raise UsageError(f"{name}: module {place} ({type(part).__name__}) has no step mode 's'; {PROTOCOL}")
    functional: Any = importlib.import_module("spikingjelly.activation_based.functional")
    functional.set_step_mode(module, "s")

    def reset() -> None:
        functional.reset_net(module)

    remedy = "forward must be one timestep, in step mode 's'; or " + PROTOCOL
    return _Way("spikingjelly", reset, module, "forward", remedy)

"""A strategy under examination: fitted on made-up recordings and asked step by step, always under a stated seed."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from bench_core.conformance.synthetic import Recording, record
from bench_core.errors import PluginError
from bench_core.exits.strategy import Evidence, ExitPolicy, ExitStrategy, PolicyFamily, Requirement
from bench_core.knobs import KnobValue
from bench_core.replay.controller import InputFrames
from bench_core.replay.family import FamilyOnTrace
from bench_core.scoring.scores import Artifacts, Recorded, fit_family

__all__ = ["Check", "ConformanceError", "Subject", "exits_of"]

POLICIES = 5  # of a family that are looked at
CLOSE = 1e-6  # a network's two largest outputs may change places where they differ by less


class ConformanceError(AssertionError):
    """A strategy breaks a rule of the kit; the message is one line."""


class Subject:
    """One strategy, and what the checks ask of it.

    The strategy is copied before every fit, so that nothing is left over from one fit in the next. Random generators
    are set to the same seed before a fit and before a replay: whether a strategy depends on them is one check's matter
    (``determinism``), and the others stay out of it.
    """

    def __init__(self, strategy: ExitStrategy) -> None:
        self.strategy = copy.deepcopy(strategy)
        self.calibration = record(1)
        self.test = record(2)

    @cached_property
    def family(self) -> PolicyFamily:
        """What it learns from the calibration recording."""
        return self.fit(self.calibration)

    @cached_property
    def values(self) -> list[KnobValue]:
        """A few values of the family's knob, from one end of the family to the other."""
        return self.values_of(self.family, self.calibration)

    def fit(self, recording: Recording, artifacts: Artifacts | None = None, *, seed: int = 0) -> PolicyFamily:
        """Fit a fresh copy. Raises PluginError for anything but a family; what the strategy raises comes through."""
        with _seeded(seed):
            recorded = Recorded(recording.trace, self.inputs(recording))
            return fit_family(copy.deepcopy(self.strategy), recorded, artifacts, private=False)

    def values_of(self, family: PolicyFamily, recording: Recording, most: int = POLICIES) -> list[KnobValue]:
        """At most so many values of the knob, evenly from those that make a difference on a recording."""
        with _seeded(0):
            values = FamilyOnTrace(family, recording.trace, self.inputs(recording)).values()
        if not values:
            raise PluginError(self.strategy.name, "its family has no policy")
        places = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
        return [values[place] for place in places]

    def policy(self, family: PolicyFamily, value: KnobValue) -> ExitPolicy:
        """The policy of one knob value, made under the seed that a fit is made under."""
        with _seeded(0):
            return family.policy(value)

    def exits(
        self,
        value: KnobValue,
        recording: Recording,
        family: PolicyFamily | None = None,
        *,
        batch: int | None = None,
        seed: int = 0,
        watch: bool = False,
    ) -> torch.Tensor:
        """Where a fresh policy stops each sample, int64 [N]: asked about all samples of a batch at every t < T.

        Args:
            value: of the family's knob.
            family: by default the one learnt from the calibration recording.
            batch: samples asked about at once; default all.
            watch: refuse changes to what the policy is shown.
        """
        policy = self.policy(self.family if family is None else family, value)
        with _seeded(seed):
            parts = [
                exits_of(policy, part, part.read if self.looks_at_inputs else None, watch=watch)
                for part in (recording.select(index) for index in torch.arange(len(recording)).split(batch or 10_000))
            ]
        return torch.cat(parts)

    def undecided(self, value: KnobValue, recording: Recording) -> torch.Tensor:
        """Samples for which a network inside the policy has two outputs that are closer than rounding, bool [N].

        Such a network may answer differently where the same samples come in other batches.
        """
        with _network_outputs() as outputs:
            self.exits(value, recording)
        close = torch.zeros(len(recording), dtype=torch.bool)
        for output in outputs:
            if output.dim() == 2 and len(output) == len(recording) and output.shape[1] > 1:
                top = output.to("cpu", torch.float64).sort(1, descending=True).values
                close |= top[:, 0] - top[:, 1] < CLOSE
        return close

    def inputs(self, recording: Recording) -> InputFrames | None:
        """A recording's frames, for a strategy that declares that it looks at them."""
        return recording.read if self.looks_at_inputs else None

    @property
    def looks_at_inputs(self) -> bool:
        return Requirement.INPUTS in self.strategy.requires

    def compare(
        self,
        value: KnobValue,
        expected: torch.Tensor,
        found: torch.Tensor,
        when: str,
        excused: torch.Tensor | None = None,
    ) -> None:
        """Raise ConformanceError where exit timesteps differ, naming the first such sample."""
        differ = expected != found
        if excused is not None:
            differ &= ~excused
        if differ.any():
            sample = int(differ.nonzero()[0])
            raise ConformanceError(
                f"{self.at(value)} stops sample {sample} at t = {int(found[sample])} instead of "
                f"{int(expected[sample])} {when}"
            )

    def at(self, value: KnobValue) -> str:
        """A policy of the family in words."""
        return f"{self.strategy.family_knob.name} = {value}"


@dataclass(frozen=True)
class Check:
    """One rule, with one reason to fail. Call it with a strategy; it raises where the rule is broken.

    Attributes:
        name: as ``exitbench plugin check`` prints it.
        rule: one sentence.
        test: raises ConformanceError; what the strategy itself raises comes through.
    """

    name: str
    rule: str
    test: Callable[[Subject], None]

    def __call__(self, strategy: ExitStrategy) -> None:
        self.test(Subject(strategy))


def exits_of(
    policy: ExitPolicy, recording: Recording, inputs: InputFrames | None, *, watch: bool = False
) -> torch.Tensor:
    """Where a policy first says yes, T where it never does, int64 [N].

    No sample leaves the batch: what goes wrong when samples do is another check's matter than what goes wrong here.
    """
    trace = recording.trace
    samples, timesteps, everyone = len(trace), trace.timesteps, torch.arange(len(trace))
    total = torch.zeros(samples, trace.classes, dtype=torch.float64)
    exits = torch.full((samples,), timesteps)
    state = {}
    for t in range(timesteps):
        step = trace.logits[:, t - 1].to(torch.float64, copy=True) if t else torch.zeros_like(total)
        total = total + step
        shown = None if inputs is None else inputs(everyone, max(t, 1))
        read = None if shown is None else lambda shown=shown: shown
        evidence = Evidence(t, timesteps, step, total.clone(), trace.sample_ids.clone(), read)
        before = _tensors(evidence, shown) if watch else {}
        if t == 0:
            state = policy.start(evidence)
        else:
            stop, state = policy.should_exit(evidence, state)
            if not isinstance(stop, torch.Tensor) or stop.dtype != torch.bool or tuple(stop.shape) != (samples,):
                raise PluginError(type(policy).__name__, f"should_exit must give bool [{samples}]")
            exits = torch.where(stop & (exits == timesteps), t, exits)
        after = _tensors(evidence, shown, copied=False)
        if changed := [name for name, values in before.items() if not torch.equal(values, after[name])]:
            raise ConformanceError(f"changes evidence.{changed[0]} at t = {t}; work on a copy")
    return exits


def _tensors(evidence: Evidence, shown: torch.Tensor | None, *, copied: bool = True) -> dict[str, torch.Tensor]:
    tensors = {"step_logits": evidence.step_logits, "total": evidence.total}
    if shown is not None:
        tensors["inputs"] = shown
    return {name: values.clone() for name, values in tensors.items()} if copied else tensors


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Every global random generator at one seed, and back where it was afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # what a strategy may use
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _network_outputs() -> Iterator[list[torch.Tensor]]:
    """What networks say while the block runs: outputs of the outermost modules, in the order of the calls."""
    outputs: list[torch.Tensor] = []
    depth = 0

    def enter(_module: nn.Module, _inputs: object) -> None:
        nonlocal depth
        depth += 1

    def leave(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0 and isinstance(output, torch.Tensor):
            outputs.append(output.detach())

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()

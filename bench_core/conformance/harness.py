"""Test harness for one strategy: fits it on synthetic recordings and steps its policies, always under a fixed seed."""

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

POLICIES = 5  # policies examined per family
CLOSE = 1e-6  # a network's two largest outputs may swap if they differ by less


class ConformanceError(AssertionError):
    """A strategy breaks a rule of the kit; the message is one line."""


class Subject:
    """One strategy, with the operations that the checks need.

    The strategy is copied before every fit, so that no state carries over. Random generators are set to the same seed
    before a fit and before a replay: only the check ``determinism`` tests whether a strategy depends on them.
    """

    def __init__(self, strategy: ExitStrategy) -> None:
        """Copy the strategy and make its recordings."""
        self.strategy = copy.deepcopy(strategy)
        self.calibration = record(1)
        self.test = record(2)

    @cached_property
    def family(self) -> PolicyFamily:
        """The family fitted on the calibration recording."""
        return self.fit(self.calibration)

    @cached_property
    def values(self) -> list[KnobValue]:
        """A few values of the family's knob, from one end of the family to the other."""
        return self.values_of(self.family, self.calibration)

    def fit(self, recording: Recording, artifacts: Artifacts | None = None, *, seed: int = 0) -> PolicyFamily:
        """Fit a fresh copy; raise PluginError if it returns no family. Exceptions of the strategy propagate."""
        with _seeded(seed):
            recorded = Recorded(recording.trace, self.inputs(recording))
            return fit_family(copy.deepcopy(self.strategy), recorded, artifacts, private=False)

    def values_of(self, family: PolicyFamily, recording: Recording, most: int = POLICIES) -> list[KnobValue]:
        """Return at most ``most`` knob values, evenly chosen from those that make a difference on a recording."""
        with _seeded(0):
            values = FamilyOnTrace(family, recording.trace, self.inputs(recording)).values()
        if not values:
            raise PluginError(self.strategy.name, "its family has no policy")
        places = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
        return [values[place] for place in places]

    def policy(self, family: PolicyFamily, value: KnobValue) -> ExitPolicy:
        """Return the policy of one knob value, created under the seed used for fitting."""
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
        """Return where a fresh policy stops each sample, int64 [N], querying all samples of a batch at every t < T.

        Args:
            value: of the family's knob.
            recording: the samples.
            family: by default the one fitted on the calibration recording.
            batch: samples per query; default all.
            seed: of the random generators.
            watch: reject modification of the policy's evidence.
        """
        policy = self.policy(self.family if family is None else family, value)
        with _seeded(seed):
            parts = [
                exits_of(policy, part, part.read if self.looks_at_inputs else None, watch=watch)
                for part in (recording.select(index) for index in torch.arange(len(recording)).split(batch or 10_000))
            ]
        return torch.cat(parts)

    def undecided(self, value: KnobValue, recording: Recording) -> torch.Tensor:
        """Return the samples for which a network in the policy has two outputs closer than rounding, bool [N].

        Such a network may answer differently if the same samples come in other batches.
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
        """Return a recording's frames if the strategy declares that it uses them."""
        return recording.read if self.looks_at_inputs else None

    @property
    def looks_at_inputs(self) -> bool:
        """Whether the strategy declares that it uses inputs."""
        return Requirement.INPUTS in self.strategy.requires

    def compare(
        self,
        value: KnobValue,
        expected: torch.Tensor,
        found: torch.Tensor,
        when: str,
        excused: torch.Tensor | None = None,
    ) -> None:
        """Raise ConformanceError if exit timesteps differ, naming the first such sample."""
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
        """Describe a policy of the family."""
        return f"{self.strategy.family_knob.name} = {value}"


@dataclass(frozen=True)
class Check:
    """One rule, with one reason to fail. Call it with a strategy; it raises if the rule is broken.

    Attributes:
        name: as ``exitbench plugin check`` prints it.
        rule: one sentence.
        test: raises ConformanceError; exceptions of the strategy propagate.
    """

    name: str
    rule: str
    test: Callable[[Subject], None]

    def __call__(self, strategy: ExitStrategy) -> None:
        """Run the check on a strategy."""
        self.test(Subject(strategy))


def exits_of(
    policy: ExitPolicy, recording: Recording, inputs: InputFrames | None, *, watch: bool = False
) -> torch.Tensor:
    """Return the timestep at which a policy first stops each sample, T if never, int64 [N].

    No sample leaves the batch: errors caused by leaving samples are left to another check.
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
    """Set all global random generators to a seed within the context, and restore them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # strategies may use it
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
    """Collect the outputs of the outermost modules within the context, in call order."""
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

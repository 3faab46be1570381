"""The named checks, each with one reason to fail. ``docs/plugins.md`` explains the purpose of each."""

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from bench_core.conformance.harness import Check, ConformanceError, Subject
from bench_core.conformance.synthetic import Recording, record
from bench_core.costs.operations import Overhead
from bench_core.replay.controller import replay_policy
from bench_core.run.run import policy_artifacts
from bench_core.store.local import Store
from bench_core.trace.files import load_trace, save_trace

__all__ = ["CHECKS"]

BATCHES = (1, 7)
NESTED = 12  # policies examined of a family that claims to be nested
FAINT = 1e-6  # factor for logits that decide nothing
DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # each compared with float64

_CHECKS: list[Check] = []


def _check(test: Callable[[Subject], None]) -> Callable[[Subject], None]:
    """Register a function as a check: its name with dashes, its docstring's first line as the rule."""
    rule = (test.__doc__ or "").splitlines()[0]
    _CHECKS.append(Check(test.__name__.replace("_", "-"), rule, test))
    return test


@_check
def runs(subject: Subject) -> None:
    """``fit`` gives a family, and its policies decide at every timestep without an error."""
    for value in subject.values:
        subject.exits(value, subject.test)


@_check
def causality(subject: Subject) -> None:
    """What comes after t (logits, event frames) changes no decision up to t."""
    test, other = subject.test, record(3)
    for value in subject.values:
        expected = subject.exits(value, test)
        for t in range(1, test.trace.timesteps):
            found = subject.exits(value, test.with_future_of(other, t))
            later = t + 1  # the exit of a sample that continues after t may depend on the future
            when = f"when only what comes after t = {t} changes"
            subject.compare(value, expected.clamp(max=later), found.clamp(max=later), when)


@_check
def no_labels(subject: Subject) -> None:
    """Decisions are the same whatever the labels of the samples are."""
    classes = subject.test.trace.classes
    for value in subject.values:
        expected = subject.exits(value, subject.test)
        for shift in range(1, classes):
            other = subject.test.with_labels((subject.test.trace.labels + shift) % classes)
            subject.compare(value, expected, subject.exits(value, other), "when the labels are others")


@_check
def determinism(subject: Subject) -> None:
    """A second fit on the same data, whatever the global random generators hold, decides the same."""
    first, second = (subject.fit(subject.calibration.copy(), seed=seed) for seed in (1, 2))
    for value in subject.values_of(first, subject.calibration):
        expected, found = (
            subject.exits(value, subject.test, family, seed=seed) for family, seed in ((first, 3), (second, 4))
        )
        subject.compare(value, expected, found, "when it is fitted and replayed a second time")


@_check
def permutation(subject: Subject) -> None:
    """Samples in another order stop where they stopped before."""
    order = torch.randperm(len(subject.test), generator=torch.Generator().manual_seed(5))
    for value in subject.values:
        expected = subject.exits(value, subject.test)
        found = torch.empty_like(expected)
        found[order] = subject.exits(value, subject.test.select(order))
        excused = subject.undecided(value, subject.test)
        subject.compare(value, expected, found, "when the samples come in another order", excused)


@_check
def batch_size(subject: Subject) -> None:
    """Samples stop at the same timestep in small batches as all together."""
    for value in subject.values:
        expected, excused = subject.exits(value, subject.test), subject.undecided(value, subject.test)
        for batch in BATCHES:
            found = subject.exits(value, subject.test, batch=batch)
            subject.compare(value, expected, found, f"in batches of {batch}", excused)


@_check
def compaction(subject: Subject) -> None:
    """Samples stop at the same timestep whether those that have stopped stay in the batch or leave it."""
    recording = subject.test
    for value in subject.values:
        expected, excused = subject.exits(value, recording), subject.undecided(value, recording)
        policy = subject.policy(subject.family, value)
        found = replay_policy(policy, recording.trace, subject.inputs(recording)).exit_timesteps
        subject.compare(value, expected, found, "when finished samples leave the batch", excused)


@_check
def forced_exit(subject: Subject) -> None:
    """Some policy of the family lets a sample run to T, where the harness stops it."""
    timesteps = subject.test.trace.timesteps
    faint = subject.test.with_logits(subject.test.trace.logits * FAINT)
    for recording in (faint, subject.test):
        if any((subject.exits(value, recording) == timesteps).any() for value in subject.values):
            return
    raise ConformanceError(
        f"every policy stops every sample before T = {timesteps}, even where the logits decide nothing"
    )


@_check
def single_timestep(subject: Subject) -> None:
    """At T = 1, where nothing is left to decide, it can be fitted and replayed all the same."""
    _fit_and_replay(subject, *(record(seed, timesteps=1) for seed in (1, 2)))


@_check
def nestedness(subject: Subject) -> None:
    """Where ``nested`` is claimed: from one policy of the family to a more patient one, no sample stops earlier."""
    if not subject.strategy.nested:
        return
    values = subject.values_of(subject.family, subject.calibration, NESTED)
    replayed = [(subject.exits(value, subject.test), value) for value in values]
    replayed.sort(key=lambda pair: int(pair[0].sum()))
    for (eager, _), (patient, value) in itertools.pairwise(replayed):
        if (patient < eager).any():
            sample = int((patient < eager).nonzero()[0])
            raise ConformanceError(
                f"{subject.at(value)} stops later on average, and sample {sample} at t = {int(patient[sample])} "
                f"instead of {int(eager[sample])}; leave `nested` False"
            )


@_check
def ties(subject: Subject) -> None:
    """Logits that tie, all of them or the largest two, can be learnt from and decided on."""
    for tied in (_constant, _two_on_top, _few_values):
        test = tied(subject.test)
        for value in subject.values:
            subject.exits(value, test)
        _fit_and_replay(subject, tied(subject.calibration), test)


@_check
def non_finite(subject: Subject) -> None:
    """NaN or infinite logits are refused (an error) or go on to T; they stop no sample."""
    bad_t, test = 2, subject.test
    unrelated = test.with_logits(10.0 * record(6).trace.logits)
    for value in subject.values:
        expected = subject.exits(value, test)
        if torch.equal(expected, subject.exits(value, unrelated)):
            continue  # this policy does not use logits
        for bad in (math.nan, math.inf, -math.inf):
            logits = test.trace.logits.clone()
            logits[:, bad_t - 1] = bad
            try:
                found = subject.exits(value, test.with_logits(logits))
            except Exception:  # refused, with any message
                continue
            stopped = (found >= bad_t) & (found < test.trace.timesteps)
            if stopped.any():
                sample = int(stopped.nonzero()[0])
                raise ConformanceError(
                    f"{subject.at(value)} stops sample {sample} at t = {int(found[sample])}, "
                    f"after logits of {bad} at t = {bad_t}"
                )


@_check
def one_sample(subject: Subject) -> None:
    """One sample is enough to be fitted on, and to be decided on."""
    _fit_and_replay(subject, *(record(seed, samples=1) for seed in (1, 2)))


@_check
def no_mutation(subject: Subject) -> None:
    """Neither the calibration data nor the evidence is changed."""
    given = subject.calibration.copy()
    family = subject.fit(given)
    for name, mine, theirs in (
        ("logits", subject.calibration.trace.logits, given.trace.logits),
        ("labels", subject.calibration.trace.labels, given.trace.labels),
        ("sample_ids", subject.calibration.trace.sample_ids, given.trace.sample_ids),
        ("inputs", subject.calibration.frames, given.frames),
    ):
        if not torch.equal(mine, theirs):
            raise ConformanceError(f"fit changes the calibration data's {name}; work on a copy")
    for value in subject.values_of(family, subject.calibration):
        subject.exits(value, subject.test, family, watch=True)


@_check
def dtype_and_device(subject: Subject) -> None:
    """The same numbers as float16, bfloat16, float32 or float64, on any device, lead to the same decisions."""
    for dtype in DTYPES:
        low = [_as(recording, dtype) for recording in (subject.calibration, subject.test)]
        high = [_as(recording, torch.float64) for recording in low]
        families = [subject.fit(calibration) for calibration, _ in (low, high)]
        for value in subject.values_of(families[1], high[0]):
            found, expected = (
                subject.exits(value, test, family) for family, test in zip(families, (low[1], high[1]), strict=True)
            )
            subject.compare(value, expected, found, f"when the logits are {str(dtype).removeprefix('torch.')}")
    if torch.cuda.is_available():
        on_gpu = dataclasses.replace(subject.test.trace, logits=subject.test.trace.logits.cuda())
        for value in subject.values:
            expected, found = (
                replay_policy(subject.policy(subject.family, value), trace, subject.inputs(subject.test)).exit_timesteps
                for trace in (subject.test.trace, on_gpu)
            )
            subject.compare(value, expected, found, "when the logits are on a GPU")


@_check
def store_round_trip(subject: Subject) -> None:
    """Fitted with artifacts and traces from the store, it decides as it did when they were made."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def stored(name: str, recording: Recording) -> Recording:
            save_trace(recording.trace, place / f"{name}.safetensors")
            return dataclasses.replace(recording, trace=load_trace(place / f"{name}.safetensors"))

        def artifacts() -> Callable[..., dict[str, torch.Tensor]]:
            return policy_artifacts(Store(place / "store", zoo=None), {"trace": "conformance"})

        made = subject.fit(subject.calibration, artifacts())
        values = subject.values_of(made, subject.calibration)
        expected = [subject.exits(value, subject.test, made) for value in values]
        again = subject.fit(stored("calibration", subject.calibration), artifacts())
        test = stored("test", subject.test)
        for value, exits in zip(values, expected, strict=True):
            subject.compare(value, exits, subject.exits(value, test, again), "when it comes back from the store")


@_check
def overhead(subject: Subject) -> None:
    """Every policy declares what it costs, in numbers from nought up."""
    for value in subject.values:
        declared = subject.policy(subject.family, value).overhead(subject.test.trace.classes)
        if not isinstance(declared, Overhead):
            raise ConformanceError(f"{subject.at(value)}: overhead(classes) gives {declared!r:.40}, not an Overhead")
        for part, operations in (("once", declared.once), ("per_decision", declared.per_decision)):
            for name, count in dataclasses.asdict(operations).items():
                if not (math.isfinite(count) and count >= 0):
                    raise ConformanceError(f"{subject.at(value)}: overhead declares {part}.{name} = {count}")


def _fit_and_replay(subject: Subject, calibration: Recording, test: Recording) -> None:
    """Fit on one recording and replay policies of the family on another; exceptions of either propagate."""
    family = subject.fit(calibration)
    for value in subject.values_of(family, calibration):
        subject.exits(value, test, family)


def _constant(recording: Recording) -> Recording:
    return recording.with_logits(torch.zeros_like(recording.trace.logits))


def _two_on_top(recording: Recording) -> Recording:
    """Duplicate the largest logit of every timestep."""
    logits = recording.trace.logits.clone()
    first = logits.argmax(2, keepdim=True)
    return recording.with_logits(logits.scatter(2, (first + 1) % logits.shape[2], logits.amax(2, keepdim=True)))


def _few_values(recording: Recording) -> Recording:
    return recording.with_logits(recording.trace.logits.sign())


def _as(recording: Recording, dtype: torch.dtype) -> Recording:
    return recording.with_logits(recording.trace.logits.to(dtype))


CHECKS: tuple[Check, ...] = tuple(_CHECKS)

"""Agreement of live runs with replay and with the trace: the implementation of ``exitbench verify``.

Two promises are checked. Decisions: replaying the logits of a live run always gives exactly its exit timesteps and
predictions. Network: a live run gives the logits of the trace up to rounding. A CPU rounds differently at other batch
sizes, and another CPU differently at the same one, which may flip a spike. So samples with a logit off by more than
``LOGIT`` are counted and must be rare; in float64, where rounding hardly ever flips a spike, rarer still. If the
recording batches, run stepwise, equal the trace to the bit, that is reported; it is not required.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate

from bench_core.errors import UsageError
from bench_core.exits.strategy import ExitPolicy, ExitStrategy, NeverExit
from bench_core.live.engine import LiveSamples, SteppingNetwork, run_live
from bench_core.live.timing import Timings, measure
from bench_core.recording.record import BATCH, FOLD
from bench_core.replay.controller import Outcome, replay_policy
from bench_core.run.artifacts import Workload, recorded_trace, recording_key, spiking_network, trained_weights
from bench_core.run.suite import LatencySpec
from bench_core.scoring.scores import Recorded
from bench_core.snn import SpikingNetwork
from bench_core.store.local import Store
from bench_core.trace.trace import Trace
from bench_core.util.progress import progress
from bench_core.util.stable_random import hash_order
from bench_core.workflows.replay_files import PolicyChoice
from bench_core.workflows.reproduction.contract import FLIPPED_SHARE, LOGIT

__all__ = ["LiveRun", "Subject", "Verification", "live_runs", "prepare", "verify"]

ALLOWED = {torch.float32: FLIPPED_SHARE, torch.float64: 0.001}  # share of samples that may be off by more than LOGIT
SUBSAMPLE_SALT = 0x56455249  # selects the recording batches to verify


@dataclass(frozen=True)
class LiveRun:
    """One live run, compared.

    Attributes:
        way: how the samples were batched.
        precision: ``float32`` or ``float64``.
        samples: number of samples.
        contradictions: samples whose exit timestep or prediction differs from a replay of the live run's logits.
        off: samples with a logit that differs from the reference by more than 1e-4 at a timestep they ran.
        allowed: how many may be off.
        largest_difference: of any logit.
        other_exits: samples whose exit or prediction differs from a replay of the reference.
    """

    way: str
    precision: str
    samples: int
    contradictions: int
    off: int
    allowed: int
    largest_difference: float
    other_exits: int

    @property
    def verdict(self) -> str:
        """Verdict: ``ok``, or which promise is broken."""
        if self.contradictions:
            return "CONTRADICTION"
        return "ok" if self.off <= self.allowed else "OFF"


@dataclass(frozen=True)
class RecordingRun:
    """The recording batches, run step by step to the last timestep and compared with the trace.

    Attributes:
        samples: number of samples in these batches.
        off: samples with a logit that differs from the trace's by more than 1e-4.
        allowed: how many may be off.
        largest_difference: of any logit.
        bit_equal: whether every logit equals the trace's to the bit, as it usually does if the trace was recorded on
            this CPU, by this version of PyTorch, with as many threads.
    """

    samples: int
    off: int
    allowed: int
    largest_difference: float
    bit_equal: bool

    @property
    def verdict(self) -> str:
        """Verdict: ``ok``, or ``OFF`` if more samples are off than rounding explains."""
        return "ok" if self.off <= self.allowed else "OFF"

    def __str__(self) -> str:
        """Return the verdict and the differences as text."""
        if self.bit_equal:
            return f"{self.verdict}, equal to the bit"
        off = f"{self.off} of {self.samples} samples off by more than {LOGIT:g} ({self.allowed} allowed)"
        return f"{self.verdict}, {off}, largest difference {self.largest_difference:.1e}"


@dataclass(frozen=True)
class Verification:
    """The verification of one workload.

    Attributes:
        workload: its name.
        policy: the strategy with every knob, and what chose it.
        recording: the recording batches, run stepwise.
        runs: batch 1, batch B, batch B with refill, in float32 and in float64.
        ideal_speedup: T over the average exit timestep of these samples.
        timings: wall clock at batch 1 and at batch B; empty if not requested.
    """

    workload: str
    policy: str
    recording: RecordingRun
    runs: list[LiveRun]
    ideal_speedup: float
    timings: list[Timings]

    @property
    def agrees(self) -> bool:
        """Whether both promises are kept."""
        return self.recording.verdict == "ok" and all(run.verdict == "ok" for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON, including raw wall clock."""
        return {
            "workload": self.workload,
            "policy": self.policy,
            "agrees": self.agrees,
            "recording_batch": {**asdict(self.recording), "verdict": self.recording.verdict},
            "runs": [{**asdict(run), "verdict": run.verdict} for run in self.runs],
            "ideal_speedup": self.ideal_speedup,
            "wall_clock": [
                {
                    "batch": timing.batch,
                    "samples": timing.samples,
                    "figures": {k: None if math.isnan(v) else v for k, v in _figures(timing).items()},
                    "seconds": {name: values.tolist() for name, values in timing.seconds.items()},
                }
                for timing in self.timings
            ],
        }

    def text(self) -> str:
        """Return the output of ``exitbench verify``."""
        rows = [
            [
                run.way,
                run.precision,
                f"{run.samples - run.contradictions}/{run.samples}",
                f"{run.off} ({100 * run.off / run.samples:.2f} %)",
                run.allowed,
                f"{run.largest_difference:.1e}",
                run.other_exits,
                run.verdict,
            ]
            for run in self.runs
        ]
        heads = ["live run", "precision", "decisions", "off > 1e-4", "allowed", "largest", "other exits", "verdict"]
        blocks = [
            f"{self.workload}: {self.policy}",
            f"recording batches stepwise against the trace: {self.recording}",
            tabulate(rows, heads, disable_numparse=True),
        ]
        if self.timings:
            blocks.append(tabulate(self._speedups(), ["speed-up over static T", "", ""], disable_numparse=True))
        return "\n".join(blocks) + "\n"

    def _speedups(self) -> list[list[str]]:
        rows = [["ideal", f"{self.ideal_speedup:.2f}x", "T over the average exit timestep"]]
        for timing in self.timings:
            f = _figures(timing)
            if timing.batch == 1:
                names = "median", "p95", "p99"
                spread = ", ".join(f"{name} {f[f'latency_{name}_ms']:.2f}" for name in names)
                how = f"ms: {spread}, mean {f['latency_ms']:.2f}; static T mean {f['static_latency_ms']:.2f}"
                ratio = f"{f['speedup']:.2f}x ±{f['speedup_iqr'] / 2:.2f}"
            else:
                joules = f["measured_joules"]
                energy = "n/a" if math.isnan(joules) else f"{1e3 * joules:.2f} mJ"
                rates = f"samples/s: {f['throughput']:.0f}; static T {f['static_throughput']:.0f}"
                how = f"{rates}; measured energy per sample {energy}"
                ratio = f"{f['throughput_speedup']:.2f}x ±{f['throughput_speedup_iqr'] / 2:.2f}"
            rows.append([f"batch {timing.batch}", ratio, how])
        return rows


def verify(
    workload: Workload,
    strategy: ExitStrategy,
    *,
    store: Store,
    settings: Mapping[str, object] | None = None,
    operating_point: str | None = None,
    samples: int = 1000,
    batch: int = 64,
    repetitions: int = 5,
    latency: LatencySpec | None = None,
) -> Verification:
    """Run a policy live on a subsample of the test split, compare, and measure.

    Args:
        workload: missing artifacts are trained and recorded first.
        strategy: fitted on calibration data.
        store: where artifacts are stored.
        settings: knob values by name; the family's own knob selects exactly that policy.
        operating_point: otherwise the rule that chooses it; default as in ``exitbench replay``.
        samples: of the test split, from recording batches drawn by hash.
        batch: B.
        repetitions: of the wall clock; 0 skips it.
        latency: samples at batch 1, and threads; default those of a suite without these settings.

    Raises:
        UsageError: a knob or operating point is invalid.
    """
    subject = prepare(workload, strategy, settings or {}, operating_point, store)
    batches = _recording_batches(len(subject.test), samples)
    drawn = torch.cat(batches)
    chosen = torch.from_numpy(hash_order(drawn, SUBSAMPLE_SALT).argsort())[:samples]  # indices into the drawn samples
    split, timesteps = workload.dataset.split("test"), workload.spec.timesteps
    fed = LiveSamples.of_split(workload.dataset, split, drawn[chosen], timesteps)
    trace = subject.test.select(drawn[chosen])
    ways = 2 if batch == 1 else 6
    runs: list[LiveRun] = []
    with progress(f"verify {workload.spec.name}", len(drawn) + ways * len(fed), "samples run live") as advance:
        recording = _stepwise(subject, batches)
        advance(len(drawn))
        exact = copy.deepcopy(subject.network).double()
        logits = torch.cat(_folded(exact, workload, batches))[chosen]
        for network, inputs, reference in (
            (subject.network, fed, trace),
            (exact, fed.to(torch.float64), Trace(logits, trace.labels, trace.sample_ids)),
        ):
            for run in live_runs(network, subject.policy, inputs, reference, batch=batch):
                runs.append(run)
                advance(len(fed), run.way)
    outcome = replay_policy(subject.policy, trace, fed.frames)
    ideal = timesteps / float(outcome.exit_timesteps.double().mean())
    timings = _timings(subject, fed, batch, repetitions, latency or LatencySpec()) if repetitions else []
    return Verification(workload.spec.name, subject.policy_name, recording, runs, ideal, timings)


def live_runs(
    network: SteppingNetwork, policy: ExitPolicy, samples: LiveSamples, reference: Trace, *, batch: int
) -> Iterator[LiveRun]:
    """Run live at batch 1, at ``batch``, and with refill; compare each with a replay of its logits and a reference.

    Args:
        network: as in ``run_live``.
        policy: as in ``run_live``.
        samples: in random order.
        reference: the trace of these samples, in their order.
        batch: B.
    """
    ways = {"batch 1": (1, False)}
    if batch > 1:
        ways |= {f"batch {batch}": (batch, False), f"batch {batch}, refill": (batch, True)}
    expected = replay_policy(policy, reference, samples.frames)
    for way, (size, refill) in ways.items():
        seen = torch.zeros_like(reference.logits)
        found = run_live(network, samples, policy, batch=size, refill=refill, seen=seen)
        replayed = replay_policy(policy, Trace(seen, reference.labels, reference.sample_ids), samples.frames)
        ran = torch.arange(1, samples.timesteps + 1) <= found.exit_timesteps[:, None]
        off, largest = _off((seen - reference.logits).where(ran[..., None], 0.0))
        yield LiveRun(
            way,
            str(seen.dtype).removeprefix("torch."),
            len(samples),
            _differing(found, replayed),
            off,
            math.ceil(ALLOWED[seen.dtype] * len(samples)),
            largest,
            _differing(found, expected),
        )


def _off(difference: torch.Tensor) -> tuple[int, float]:
    """Count the samples with a logit off by more than ``LOGIT``, from differences [N, T, K]; find the largest."""
    largest = difference.abs().flatten(1).amax(1)
    return int((~(largest <= LOGIT)).sum()), float(largest.max())  # NaN counts as off


def _differing(one: Outcome, other: Outcome) -> int:
    """Count the samples for which two outcomes differ in exit timestep, prediction or being forced."""
    same = (one.exit_timesteps == other.exit_timesteps) & (one.predictions == other.predictions)
    return int((~(same & (one.forced == other.forced))).sum())


@dataclass(frozen=True)
class Subject:
    """A network and policy to verify."""

    workload: Workload
    network: SpikingNetwork
    test: Trace
    policy: ExitPolicy
    policy_name: str


def prepare(
    workload: Workload,
    strategy: ExitStrategy,
    settings: Mapping[str, object],
    operating_point: str | None,
    store: Store,
) -> Subject:
    """Return the network, its test trace, and the policy fitted on its calibration trace."""
    choice = PolicyChoice.of(strategy, settings, operating_point)
    weights = trained_weights(workload, store)
    network = spiking_network(workload, weights, store)
    dataset, timesteps = workload.dataset, workload.spec.timesteps
    calibration, test = (
        Recorded(
            recorded_trace(workload, weights, split, store, network=network),
            dataset.frames(dataset.split(split), timesteps),
        )
        for split in ("calibration", "test")
    )
    chosen = choice.fitted(calibration, test, store, {"trace": recording_key(workload, weights, "calibration")})
    if chosen.policy is None:
        raise UsageError(f"no policy of {strategy.name} meets {choice.rule} on {workload.spec.name}")
    knobs = ", ".join(f"{name} = {value}" for name, value in chosen.knobs.items() if value is not None)
    chosen_by = f", chosen by {choice.rule}: {chosen.status}" if choice.rule else ""
    return Subject(workload, network, test.trace, chosen.policy, f"{strategy.name} ({knobs}){chosen_by}")


def _recording_batches(samples: int, wanted: int) -> list[torch.Tensor]:
    """Return positions of whole recording batches, drawn by hash, with at least ``wanted`` samples or all there are."""
    batches = torch.split(torch.arange(samples), BATCH)
    drawn: list[torch.Tensor] = []
    for number in hash_order(torch.arange(len(batches)), SUBSAMPLE_SALT).argsort():
        if sum(map(len, drawn)) < wanted:
            drawn.append(batches[number])
    return drawn


def _stepwise(subject: Subject, batches: list[torch.Tensor]) -> RecordingRun:
    """Run the recording batches stepwise, and compare with the trace."""
    workload, timesteps = subject.workload, subject.workload.spec.timesteps
    split = workload.dataset.split("test")
    found = []
    for positions in batches:
        samples = LiveSamples.of_split(workload.dataset, split, positions, timesteps)
        seen = torch.zeros(len(positions), timesteps, samples.classes)
        run_live(subject.network, samples, NeverExit(), seen=seen)
        found.append(seen)
    logits, recorded = torch.cat(found), subject.test.logits[torch.cat(batches)]
    off, largest = _off(logits - recorded)
    allowed = math.ceil(ALLOWED[logits.dtype] * len(logits))
    return RecordingRun(len(logits), off, allowed, largest, torch.equal(logits, recorded))


def _folded(network: SpikingNetwork, workload: Workload, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return logits [B, T, K] of each recording batch, run as in recording."""
    dataset, timesteps = workload.dataset, workload.spec.timesteps
    images, dtype = dataset.split("test").images, next(network.parameters()).dtype
    with torch.inference_mode():
        encoded = (dataset.encode(images[positions], timesteps).to(dtype) for positions in batches)
        return [network.run(inputs, timesteps, fold=FOLD).transpose(0, 1).contiguous() for inputs in encoded]


def _timings(
    subject: Subject, samples: LiveSamples, batch: int, repetitions: int, latency: LatencySpec
) -> list[Timings]:
    """Measure wall clock at batch 1 on a few of the samples, and at batch B on all of them."""
    few = samples.at(torch.arange(min(latency.samples, len(samples))))
    return [
        measure(
            subject.network,
            timed,
            {"policy": subject.policy},
            batch=size,
            repetitions=repetitions,
            threads=latency.threads,
            title=f"measure {subject.workload.spec.name}, batch {size}",
        )
        for size, timed in [(1, few)] + [(batch, samples)] * (batch > 1)
    ]


def _figures(timing: Timings) -> dict[str, float]:
    return timing.latency("policy") if timing.batch == 1 else timing.throughput("policy")

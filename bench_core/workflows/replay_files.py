"""Strategies on given trace files, without a suite: the implementation of ``exitbench replay``."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench_core.board.board import write_text
from bench_core.data import SPLITS, Dataset, ImageSplit
from bench_core.errors import DataError, UsageError
from bench_core.exits.strategy import ExitPolicy, ExitStrategy, Requirement, ScoreFamily
from bench_core.isolation.foreign_code import foreign_code
from bench_core.knobs import KnobValue, in_json, nearest
from bench_core.plugins import Registry
from bench_core.replay.controller import InputFrames, Outcome
from bench_core.replay.family import FamilyOnTrace
from bench_core.run.evaluate import policy_artifacts
from bench_core.scoring.metrics import ReferencePoints, reference_points, static_accuracy
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import Artifacts, Contest, Recorded, fit_family, halve, policy_samples, score_strategy
from bench_core.store.local import Store
from bench_core.trace.files import load_trace
from bench_core.trace.shards import read_index
from bench_core.trace.trace import Trace
from bench_core.util.files import refuse_outputs
from bench_core.util.progress import note

__all__ = ["DEFAULT_POINT", "ChosenPolicy", "PolicyChoice", "ReplayResult", "replay_files", "resolve_inputs"]

DEFAULT_POINT = "iso-accuracy:0"


@dataclass(frozen=True)
class ReplayResult:
    """The result of one policy on a test trace.

    Attributes:
        strategy: its name.
        parameters: every knob, including the family's and fitted ones.
        operating_point: the rule that chose the policy, or None if its knob was given.
        status: ``ok``, ``fallback`` (static T) or ``infeasible``.
        outcome: exit timesteps and predictions on test; None if infeasible.
        test: the test trace.
        same_trace: calibration and test hold the same samples and logits.
    """

    strategy: str
    parameters: dict[str, KnobValue | None]
    operating_point: str | None
    status: str
    outcome: Outcome | None
    test: Trace
    same_trace: bool

    @property
    def accuracy(self) -> float | None:
        """Share of test samples correct at their exit."""
        if self.outcome is None:
            return None
        return int((self.outcome.predictions == self.test.labels).sum()) / len(self.test)

    @property
    def average_exit_timestep(self) -> float | None:
        """Mean exit timestep on test."""
        return None if self.outcome is None else int(self.outcome.exit_timesteps.sum()) / len(self.test)

    @property
    def harmed_share(self) -> float | None:
        """Share of test samples correct at T and wrong at their exit."""
        if self.outcome is None:
            return None
        return int(policy_samples(self.test, self.outcome).harmed.sum()) / len(self.test)

    @property
    def references(self) -> ReferencePoints:
        """The workload's label-using reference points."""
        return reference_points(self.test.correct)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the ``--json`` file."""
        points = self.references
        return {
            "strategy": self.strategy,
            "parameters": in_json(self.parameters),
            "operating_point": self.operating_point,
            "status": self.status,
            "samples": len(self.test),
            "accuracy": self.accuracy,
            "avg_exit_timestep": self.average_exit_timestep,
            "harmed_share": self.harmed_share,
            "static_accuracy": [float(x) for x in static_accuracy(self.test)],
            "aet": points.aet,
            "empirical_aet": points.empirical_aet,
            "oct": points.oct,
            "oracle_accuracy": points.oracle_accuracy,
            "lower_bound": points.lower_bound,
            "calibration_equals_test": self.same_trace,
        }

    def summary(self) -> str:
        """Return the output of ``exitbench replay``."""
        references = self.references
        last = 100 * float(static_accuracy(self.test)[-1])
        settings = ", ".join(f"{name} = {value}" for name, value in self.parameters.items() if value is not None)
        lines = [
            f"{self.strategy} ({settings})",
            f"chosen by: {self.operating_point or 'the given knob'}; {self.status}"
            + (" to static T: no policy qualifies" if self.status == "fallback" else ""),
        ]
        if self.accuracy is not None and self.average_exit_timestep is not None:
            lines.append(
                f"accuracy {100 * self.accuracy:.2f} % (static T {last:.2f} %), average exit timestep "
                f"{self.average_exit_timestep:.4f} of {self.test.timesteps}, "
                f"right at T and wrong at the exit {100 * (self.harmed_share or 0):.2f} %"
            )
        lines.append(
            f"AET {references.aet:.4f}, empirical AET {references.empirical_aet:.4f}, OCT {references.oct:.4f}, "
            f"oracle accuracy {100 * references.oracle_accuracy:.2f} %"
        )
        return "\n".join(lines)

    def per_sample(self) -> pd.DataFrame:
        """Return the content of the ``--per-sample`` file: a row per test sample, in the trace's order."""
        assert self.outcome is not None
        return pd.DataFrame(
            {
                "sample_id": self.test.sample_ids.numpy(),
                "exit_timestep": self.outcome.exit_timesteps.numpy(),
                "prediction": self.outcome.predictions.numpy(),
                "label": self.test.labels.numpy(),
                "forced": self.outcome.forced.numpy().astype(int),
            }
        )


def replay_files(
    calibration_path: Path,
    test_path: Path,
    strategy_name: str,
    *,
    registry: Registry,
    settings: Mapping[str, object] | None = None,
    operating_point: str | None = None,
    store: Store | None = None,
    per_sample: Path | None = None,
    json_file: Path | None = None,
) -> ReplayResult:
    """Fit a strategy on a calibration trace and replay one of its policies on a test trace.

    If the family's own knob is among ``settings``, that policy is replayed, and the strategy learns from the whole
    calibration trace. Otherwise it learns from one half, and ``operating_point`` chooses on the other.

    Args:
        calibration_path: of the calibration trace.
        test_path: of the test trace.
        strategy_name: of a registered strategy.
        registry: the loaded plugins.
        settings: knob values by name.
        operating_point: such as ``iso-accuracy:0.5``, ``budget:0.5`` or ``risk:1,0.05``; default ``iso-accuracy:0``.
        store: where trained policies are stored; None stores nothing.
        per_sample: file to write; must not be one that is read.
        json_file: file to write; must not be one that is read.

    Raises:
        UsageError: before anything is written, for invalid arguments.
        TraceError: before anything is written, for an invalid trace.
    """
    choice = PolicyChoice.of(registry.find("strategies", strategy_name), settings or {}, operating_point)
    strategy = choice.strategy
    refuse_outputs(
        {"--per-sample": per_sample, "--json": json_file}, _files_read([calibration_path, test_path], registry, store)
    )
    calibration, test = _matching_traces(calibration_path, test_path)
    same = calibration.digest == test.digest
    if same:
        note("warning: calibration and test are the same trace; the figures say nothing about unseen data")
    looks = Requirement.INPUTS in strategy.requires
    learn, run = (Recorded(trace, resolve_inputs(trace, registry) if looks else None) for trace in (calibration, test))
    if looks and (learn.inputs is None or run.inputs is None):
        raise UsageError(
            f"{strategy.name} looks at inputs, and those of these traces are not at hand; bring the data here, record "
            "traces that say where they come from (`exitbench record`), or take another strategy"
        )
    chosen = choice.fitted(learn, run, store, {"trace": calibration.digest})
    result = ReplayResult(strategy.name, chosen.knobs, choice.rule, chosen.status, chosen.outcome, test, same)
    if per_sample is not None and result.outcome is None:
        raise UsageError(f"no policy of {strategy.name} meets {choice.rule}; nothing is written")
    if json_file is not None:
        write_text(json_file, json.dumps(result.as_json(), indent=1) + "\n")
    if per_sample is not None:
        write_text(per_sample, result.per_sample().to_csv(index=False))
    return result


@dataclass(frozen=True)
class ChosenPolicy:
    """A fitted policy and its outcome on test.

    Attributes:
        knobs: every knob of its strategy, the family's first, including fitted ones.
        status: ``ok``, ``fallback`` (static T) or ``infeasible``.
        policy: None if infeasible.
        outcome: None if infeasible.
    """

    knobs: dict[str, KnobValue | None]
    status: str
    policy: ExitPolicy | None
    outcome: Outcome | None


@dataclass(frozen=True)
class PolicyChoice:
    """The choice of a strategy's policy: by a given knob value, or by an operating point.

    Attributes:
        strategy: with its other knobs set.
        value: of the family's knob; None if ``point`` decides.
        point: the operating point.
    """

    strategy: ExitStrategy
    value: KnobValue | None
    point: OperatingPoint

    @classmethod
    def of(cls, strategy: ExitStrategy, settings: Mapping[str, object], operating_point: str | None) -> "PolicyChoice":
        """Create a choice from knob values by name and a rule as text, default ``iso-accuracy:0``.

        Raises:
            UsageError: a knob or rule is invalid, or both the family's knob and a rule are given.
        """
        rest = dict(settings)
        knob = strategy.family_knob
        value = knob.parse(rest.pop(knob.name), strategy.name, ends=True) if knob.name in rest else None
        if unknown := [name for name in rest if name not in {k.name for k in strategy.knobs}]:
            offered = [knob.name, *(k.name for k in strategy.knobs)]
            hint = nearest(unknown[0], offered)
            raise UsageError(f"{strategy.name}: unknown knob {unknown[0]!r}{hint}; it has: {', '.join(offered)}")
        configured = strategy.with_parameters(rest)
        if value is not None and operating_point is not None:
            raise UsageError(f"{strategy.name}: give {knob.name} or --operating-point, not both")
        return cls(configured, value, OperatingPoint.parse(operating_point or DEFAULT_POINT))

    @property
    def rule(self) -> str | None:
        """Operating point that chooses the policy; None if its knob was given."""
        return str(self.point) if self.value is None else None

    def fitted(
        self, calibration: Recorded, test: Recorded, store: Store | None, identity: Mapping[str, Any]
    ) -> ChosenPolicy:
        """Fit the strategy: on all calibration data if its knob was given, else on one half, choosing on the other.

        Args:
            calibration: the calibration trace and its inputs.
            test: the test trace and its inputs.
            store: where trained policies are stored; None stores nothing.
            identity: JSON-able identity of the calibration data.
        """
        half = "fit" if self.value is None else "all"
        artifacts = policy_artifacts(store, {**identity, "half": half}) if store else None
        with foreign_code(f"strategy {self.strategy.name}"):
            return self._fitted(calibration, test, artifacts)

    def _fitted(self, calibration: Recorded, test: Recorded, artifacts: Artifacts | None) -> ChosenPolicy:
        knob = self.strategy.family_knob.name
        if self.value is not None:
            family = fit_family(self.strategy, calibration, artifacts)
            parameters = family.strategy.parameters if isinstance(family, ScoreFamily) else self.strategy.parameters
            outcome = FamilyOnTrace(family, test.trace, test.inputs).outcome(self.value)
            return ChosenPolicy({knob: self.value, **parameters}, "ok", family.policy(self.value), outcome)
        fit, select = halve(calibration)
        scores = score_strategy(self.strategy, Contest(fit, select, test, artifacts), [self.point])
        chosen = scores.policies[0]
        return ChosenPolicy({knob: chosen.value, **scores.parameters}, chosen.status, chosen.policy, chosen.outcome)


def _files_read(traces: Iterable[Path], registry: Registry, store: Store | None) -> list[Path]:
    """Return the files of traces, including shards, and of plugins, and the folders of stored policies."""
    found = [Path(plugin.distribution) for plugin in registry.plugins if plugin.version == "file"]
    for path in traces:
        found.append(path)
        if path.suffix == ".json":
            found += [path.parent / shard.file for shard in read_index(path)]
    return [*found, *store.places] if store else found


def _matching_traces(calibration_path: Path, test_path: Path) -> tuple[Trace, Trace]:
    """Load both traces; raise UsageError unless they have the same T and K."""
    calibration, test = load_trace(calibration_path), load_trace(test_path)
    for name, ours, theirs in (
        ("timesteps", calibration.timesteps, test.timesteps),
        ("classes", calibration.classes, test.classes),
    ):
        if ours != theirs:
            raise UsageError(f"calibration {calibration_path} has {ours} {name}, test {test_path} has {theirs}")
    return calibration, test


def resolve_inputs(trace: Trace, registry: Registry) -> InputFrames | None:
    """Return the network inputs of a trace's samples, found by data digest and sample id; None if not found.

    The provenance of a trace recorded by exitbench names its data set and the digest of its split. If the registered
    data set has the same split, it provides the inputs. Missing files of the data set are reported on stderr.
    """
    provenance = json.loads(trace.header.get("provenance", "null"))
    digest = provenance.get("data") if isinstance(provenance, dict) else None
    split_name = trace.header.get("split", "")
    if not digest or split_name not in SPLITS:
        return None
    name = provenance.get("dataset")
    dataset = registry.datasets.get(name) if isinstance(name, str) else None
    if dataset is None:
        return None
    try:
        split = dataset.split(split_name)
    except DataError as error:
        note(f"inputs of {name} are not at hand: {error}")
        return None
    if split.digest != digest:
        return None
    return _by_sample_id(dataset, trace, split)


def _by_sample_id(dataset: Dataset, trace: Trace, split: ImageSplit) -> InputFrames | None:
    place = {int(sample): position for position, sample in enumerate(split.sample_ids)}
    if any(int(sample) not in place for sample in trace.sample_ids):
        return None
    positions = torch.tensor([place[int(sample)] for sample in trace.sample_ids])
    read = dataset.frames(split, trace.timesteps)
    return lambda wanted, frames: read(positions[wanted], frames)

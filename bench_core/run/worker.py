"""The kinds of stages of a run: train, convert, record, fit, score; used locally and by workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench_core.exits.strategy import ExitStrategy, ListedPolicies
from bench_core.isolation.foreign_code import is_ours
from bench_core.run.artifacts import (
    Workload,
    conversion_key,
    record_shard,
    recorded_trace,
    recording_key,
    spiking_network,
    trained_weights,
)
from bench_core.run.evaluate import (
    RecordedWorkload,
    contest_of,
    fitted_artifacts,
    kept_scores_of,
    needs_missing_inputs,
    recorded_workload,
)
from bench_core.run.plan import Plan
from bench_core.run.score_cache import SCORED_SPLITS, scored_recordings
from bench_core.run.shift_traces import corrupted_tests
from bench_core.run.suite import ShiftSpec
from bench_core.scoring.scores import Contest, Recorded, fit_family, halve, score_alone, score_strategy
from bench_core.snn import SpikingNetwork
from bench_core.store.local import Artifact, Store

__all__ = ["Stage", "carry_out", "forget_network", "is_ours_alone", "recordings", "store_place"]

_Place = tuple[str, str]  # kind and key of an artifact
_last_network: dict[tuple[str, str, str, int], SpikingNetwork] = {}
_last_contest: dict[tuple[str, ...], tuple[RecordedWorkload, Contest]] = {}


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: unique; shown with the progress.
        kind: ``train``, ``convert``, ``record``, ``fit`` or ``score``.
        workload: its name.
        trunk: train the recipe from which the workload's continues (1), the one before that (2) …
        split: what is recorded.
        part: which part of it; None records the missing parts and assembles the whole trace.
        strategy: label of the strategy to fit or score.
        after: names of the stages whose artifacts it needs.
        resources: Dask resources it requests if workers offer them, such as ``{"GPU": 1}``.
    """

    name: str
    kind: str
    workload: str
    trunk: int = 0
    split: str = ""
    part: int | None = None
    strategy: str = ""
    after: Sequence[str] = ()
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """What fails if this stage fails: a workload, one of its strategies, or all of it under corruption."""
        if self.strategy:
            return f"{self.workload}, {self.strategy}"
        if self.split and self.split not in SCORED_SPLITS:
            return f"{self.workload} under corruption"
        return f"workload {self.workload}"

    @property
    def depends_on_threads(self) -> bool:
        """Whether the artifact's last bits depend on the number of threads; those of recordings do not."""
        return self.kind in ("train", "convert", "fit", "score")


def store_place(store: Store) -> str:
    """Return the value of ``EXITBENCH_HOME``, without a password, for another process to use the same store."""
    return store.url or str(store.root.resolve())


def recordings(workload: Workload, shift: ShiftSpec | None) -> dict[str, Workload]:
    """Return, by split to record, the workload with its data set: corrupted data have their own."""
    found = dict.fromkeys(SCORED_SPLITS, workload)
    for corrupted, *_ in corrupted_tests(workload.dataset, shift, workload.spec.timesteps) if shift else ():
        found[corrupted.corrupted_split] = replace(workload, dataset=corrupted)
    return found


def forget_network() -> None:
    """Release the last stage's network."""
    _last_network.clear()


def carry_out(stage: Stage, planned: Plan, store: Store, refit: bool) -> _Place | tuple[()]:
    """Run a stage in this process.

    Args:
        stage: what to do.
        planned: the run's plan, which has the workload and the strategies.
        store: where artifacts are stored.
        refit: train policy networks again.

    Returns:
        Kind and key of the artifact, as in ``Answer``.
    """
    workload = next(w for w in planned.workloads if w.spec.name == stage.workload)
    return _KINDS[stage.kind](workload, stage, store, planned, refit)


def is_ours_alone(stage: Stage, planned: Plan) -> bool:
    """Return whether all code that a stage runs comes with this package."""
    workload = next(w for w in planned.workloads if w.spec.name == stage.workload)
    return workload.is_ours and (not stage.strategy or is_ours(_strategy(stage, planned)))


def _train(workload: Workload, stage: Stage, store: Store, _planned: Plan, _refit: bool) -> _Place:
    for _ in range(stage.trunk):
        assert workload.trunk is not None
        workload = workload.trunk
    trained_weights(workload, store)
    return "networks", workload.training_key


def _record(workload: Workload, stage: Stage, store: Store, planned: Plan, _refit: bool) -> _Place | tuple[()]:
    weights = trained_weights(workload, store)
    network = _network(workload, weights, store)
    source = recordings(workload, planned.shift)[stage.split]
    if stage.part is None:
        recorded_trace(source, weights, stage.split, store, network=network)
        return "traces", recording_key(source, weights, stage.split)
    record_shard(source, weights, stage.split, stage.part, store, network=network)
    return ()


def _convert(workload: Workload, _stage: Stage, store: Store, _planned: Plan, _refit: bool) -> _Place | tuple[()]:
    weights = trained_weights(workload, store)
    _network(workload, weights, store)
    key = conversion_key(workload, weights)
    return ("converted", key) if key is not None and store.has("converted", key) else ()


def _network(workload: Workload, weights: Artifact, store: Store) -> SpikingNetwork:
    """Return the network to record; the last one is cached, since the next part usually needs it too."""
    made_of = (store_place(store), workload.training_key, weights.digest, workload.spec.timesteps)
    if made_of not in _last_network:
        _last_network.clear()
        _last_network[made_of] = spiking_network(workload, weights, store)
    return _last_network[made_of]


def _fit(workload: Workload, stage: Stage, store: Store, planned: Plan, refit: bool) -> tuple[()]:
    weights = trained_weights(workload, store)
    trace = recorded_trace(workload, weights, "calibration", store)
    frames = workload.dataset.frames(workload.dataset.split("calibration"), workload.spec.timesteps)
    fit, _ = halve(Recorded(trace, frames))
    strategy = _strategy(stage, planned)
    family = fit_family(strategy, fit, fitted_artifacts(workload, weights, store, refit=refit))
    if isinstance(family, ListedPolicies):  # each is made on first access
        for value in family.values:
            family.policy(value)
    return ()


def _score(workload: Workload, stage: Stage, store: Store, planned: Plan, _refit: bool) -> _Place | tuple[()]:
    ready, contest = _contest(workload, store)
    strategy = _strategy(stage, planned)
    kept = kept_scores_of(ready, contest, planned.points)
    if needs_missing_inputs(strategy, contest) or kept.get(strategy) is not None:
        return ()
    score = score_strategy if is_ours(strategy) else score_alone
    key = kept.put(strategy, score(strategy, contest, planned.points))
    return () if key is None else ("scores", key)


def _strategy(stage: Stage, planned: Plan) -> ExitStrategy:
    return next(one.strategy for one in planned.competitors if one.label == stage.strategy)


def _contest(workload: Workload, store: Store) -> tuple[RecordedWorkload, Contest]:
    """Return the data to compare strategies on; cached for the last workload, since the next stage usually needs it."""
    weights = trained_weights(workload, store)
    made_of = (store_place(store), workload.training_key, *scored_recordings(workload, weights))
    if made_of not in _last_contest:
        _last_contest.clear()
        ready = recorded_workload(workload, store)
        _last_contest[made_of] = ready, contest_of(ready)
    return _last_contest[made_of]


_KINDS: dict[str, Callable[[Workload, Stage, Store, Plan, bool], _Place | tuple[()]]] = {
    "train": _train,
    "convert": _convert,
    "record": _record,
    "fit": _fit,
    "score": _score,
}

"""The graph of a run's stages, and how one is carried out: in the run's own process, or in a worker.

A stage is a function of the suite and of artifacts in the store, to one artifact more. Between processes travel JSON
texts: a request (suite, plugin files with their digests, store, stage) one way, an answer (where the artifact is, or
why there is none, and what was said) the other. A stage makes whatever it needs and doesn't find, so no order and no
lost worker spoils it; the order only keeps two workers from making the same.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch

from bench_core import __version__
from bench_core.competition import (
    RecordedWorkload,
    contest_of,
    fitted_artifacts,
    kept_scores_of,
    needs_missing_inputs,
    recorded_workload,
)
from bench_core.device import VARIABLE, wanted_device
from bench_core.digests import file_digest
from bench_core.errors import StoreError, UsageError
from bench_core.exits import ExitStrategy, ListedPolicies, Requirement
from bench_core.failures import guarded
from bench_core.foreign_code import is_ours
from bench_core.kept_scores import SCORED_SPLITS, can_be_kept, scored_recordings, scores_key
from bench_core.planning import Competitor, Plan, plan
from bench_core.plugin_manager import Registry, load_registry
from bench_core.progress import collected
from bench_core.provenance import code_digest
from bench_core.scoring import Contest, Recorded, fit_family, halve, score_strategy
from bench_core.shift_recording import corrupted_tests
from bench_core.snn import SpikingNetwork
from bench_core.stages import (
    Workload,
    conversion_key,
    has_trace,
    record_shard,
    recorded_trace,
    recording_key,
    shards_of,
    spiking_network,
    stored_weights,
    trained_weights,
)
from bench_core.store import Artifact, Store, default_store
from bench_core.suite import ShiftSpec, Suite

__all__ = ["Answer", "Order", "Stage", "missing_stages", "perform", "perform_here", "read_answer", "stage_request"]

_Place = tuple[str, str]  # kind and key of an artifact
_GPU = {"GPU": 1.0}  # a worker that offers one of them has one
_last_network: dict[tuple[str, str, str, int], SpikingNetwork] = {}
_last_contest: dict[tuple[str, ...], tuple[RecordedWorkload, Contest]] = {}
_one_at_a_time = threading.Lock()  # stages seed torch's generator, of which a process has one


def _versions() -> dict[str, str]:
    return {"exitbench": __version__, "torch": torch.__version__}


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: as the progress shows it; no other stage has it.
        kind: ``train``, ``convert``, ``record``, ``fit`` or ``score``.
        workload: its name.
        trunk: trains the recipe that the workload's goes on from (1), the one before that (2) …
        split, part: what is recorded; without a part the whole trace is put together, and the parts that lack recorded.
        strategy: label of the competitor that is fitted or scored.
        after: names of the stages whose artifacts it needs.
        resources: Dask resources it asks for where workers offer them, such as ``{"GPU": 1}``.
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
        """What has failed where this stage fails: a workload, one of its strategies, or all of it under corruption."""
        if self.strategy:
            return f"{self.workload}, {self.strategy}"
        if self.split and self.split not in SCORED_SPLITS:
            return f"{self.workload} under corruption"
        return f"workload {self.workload}"

    @property
    def depends_on_threads(self) -> bool:
        """Whether the artifact's last bits depend on how many threads make it; those of recordings don't."""
        return self.kind in ("train", "convert", "fit", "score")


@dataclass(frozen=True)
class Order:
    """What all stages of a run have in common.

    Attributes:
        suite: as JSON.
        plugins: path and sha256 of every plugin file.
        store: the folder or URL of the store.
        refit: train policy networks again.
        device: what trains and records: ``cpu``, or what of theirs the workers are to use.
        versions: of exitbench and torch, which a worker must have too.
    """

    suite: str
    plugins: Sequence[Sequence[str]]
    store: str
    refit: bool
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=_versions)

    @classmethod
    def of(cls, suite: Suite, registry: Registry, store: Store, *, refit: bool) -> "Order":
        """The order for a suite in this process."""
        files = [Path(plugin.distribution).resolve() for plugin in registry.plugins if plugin.version == "file"]
        plugins = [(str(path), file_digest(path)) for path in files]
        return cls(suite.model_dump_json(by_alias=True), plugins, _place(store), refit, wanted_device())


def _place(store: Store) -> str:
    """What ``EXITBENCH_HOME`` says in a process that is to use the same store."""
    return store.url or str(store.root.resolve())


@dataclass(frozen=True)
class Answer:
    """What became of a stage.

    Attributes:
        artifact: kind and key of the network (converted or not), trace or scores that it made; empty for a part of a
            trace, which the whole one replaces, for a fit, which may make several artifacts or none, and for what can't
            be kept.
        problem: empty, or why it failed, as a row's status says it.
        stop: empty, or why the whole run must end: the store can't be written to.
        said: notes, and the last line of each progress.
    """

    artifact: Sequence[str] = ()
    problem: str = ""
    stop: str = ""
    said: Sequence[str] = ()


def missing_stages(planned: Plan, store: Store, *, refit: bool = False) -> tuple[list[Stage], dict[str, str]]:
    """The stages whose artifacts the store lacks, in an order that fits; by subject, why some can't be told.

    Everything is trained and recorded before anything is fitted, and fitted before anything is scored. Whether an
    artifact is whole is seen when it is read. Fits that look at inputs train networks and are among the stages;
    whether the store has these is known to the strategy only, so they are left out where its scores are there. Other
    fits are quick and leave nothing, so they are done where they are scored, unless ``refit`` is set. Strategies whose
    scores can't be kept are scored by the process that reads them, and with ``refit`` all are.
    """
    recorded: list[Stage] = []
    fits: list[Stage] = []
    scores: list[Stage] = []
    problems: dict[str, str] = {}
    trained: dict[str, str] = {}  # by training key, the stage that trains it
    for workload in planned.workloads:
        name = workload.spec.name
        subject = f"workload {name}"
        found = guarded(subject, _stages_of, workload, planned.shift, store, trained, ours=workload.is_ours)
        if isinstance(found, str):
            problems[subject] = found
            continue
        weights, missing = found
        on_gpu = () if wanted_device() == "cpu" else ("train", "record")
        recorded += [replace(stage, resources=_GPU) if stage.kind in on_gpu else stage for stage in missing]
        whole = {stage.split: stage.name for stage in missing if stage.kind == "record" and stage.part is None}
        for competitor, kept in _unscored(workload, weights, planned, store, refit=refit):
            label, after = competitor.label, [whole[split] for split in SCORED_SPLITS if split in whole]
            if refit or Requirement.INPUTS in competitor.strategy.requires:
                needed = [whole["calibration"]] if "calibration" in whole else []
                fits.append(Stage(f"fit {name} {label}", "fit", name, strategy=label, after=needed))
                after.append(fits[-1].name)
            if kept:
                scores.append(Stage(f"score {name} {label}", "score", name, strategy=label, after=after))
    return recorded + fits + scores, problems


def _unscored(
    workload: Workload, weights: Artifact | None, planned: Plan, store: Store, *, refit: bool
) -> Iterator[tuple[Competitor, bool]]:
    """The competitors whose scores the store lacks, and whether a stage is to make them."""
    for competitor in planned.competitors:
        keepable = can_be_kept(competitor.strategy)
        key = scores_key(workload, weights, competitor.strategy, planned.points) if weights and keepable else None
        if refit or key is None or not store.has("scores", key):
            yield competitor, keepable and not refit


def _stages_of(
    workload: Workload, shift: ShiftSpec | None, store: Store, trained: dict[str, str]
) -> tuple[Artifact | None, list[Stage]]:
    """The trained weights, where the store has them, and the stages that lack up to the last recording."""
    name = workload.spec.name
    stages = _training(workload, name, store, trained)
    weights = None if stages else stored_weights(workload, store)
    after = [trained[workload.training_key]] if weights is None else []
    missing = {
        split: source
        for split, source in _recordings(workload, shift).items()
        if weights is None or not has_trace(source, weights, split, store)
    }
    if missing and _is_to_be_converted(workload, weights, store):
        stages.append(Stage(f"convert {name}", "convert", name, after=after))
        after = [stages[-1].name]
    for split, source in missing.items():
        count = shards_of(len(source.dataset.split(split)))
        whole = f"record {name} {split}"
        parts = [
            Stage(f"{whole} part {part + 1}/{count}", "record", name, split=split, part=part, after=after)
            for part in range(count if count > 1 else 0)
        ]
        needed = [part.name for part in parts] or after
        stages += [*parts, Stage(whole, "record", name, split=split, after=needed)]
    return weights, stages


def _is_to_be_converted(workload: Workload, weights: Artifact | None, store: Store) -> bool:
    """Whether a conversion is missing that can be kept; where it can't, whoever records converts."""
    if weights is None:
        return workload.converter is not None and code_digest(type(workload.converter)) is not None
    key = conversion_key(workload, weights)
    return key is not None and not store.has("converted", key)


def _recordings(workload: Workload, shift: ShiftSpec | None) -> dict[str, Workload]:
    """By split that is recorded, the workload on the data set that has it: what is corrupted has one of its own."""
    found = dict.fromkeys(SCORED_SPLITS, workload)
    for corrupted, *_ in corrupted_tests(workload.dataset, shift, workload.spec.timesteps) if shift else ():
        found[corrupted.corrupted_split] = replace(workload, dataset=corrupted)
    return found


def _training(workload: Workload, name: str, store: Store, trained: dict[str, str], trunk: int = 0) -> list[Stage]:
    """Stages that train the workload and what it goes on from; none where another workload's do."""
    key = workload.training_key
    if key in trained or stored_weights(workload, store) is not None:
        return []
    before = [] if workload.trunk is None else _training(workload.trunk, name, store, trained, trunk + 1)
    after = [] if workload.trunk is None else [trained.get(workload.trunk.training_key)]
    trained[key] = f"train {name}" + f" trunk {trunk}" * (trunk > 0)
    return [*before, Stage(trained[key], "train", name, trunk=trunk, after=[stage for stage in after if stage])]


def read_answer(text: str) -> Answer:
    """What ``perform`` returned."""
    return Answer(**json.loads(text))


# --- in the run's own process ----------------------------------------------------------------------------------------


def perform_here(stages: Sequence[Stage], planned: Plan, store: Store, *, refit: bool) -> dict[str, str]:
    """Carry out stages one after another; by subject, why some failed.

    Parts are left to the stage of the whole trace, which records them under one progress, and scores to whoever reads
    them, who makes all of a workload that lack from one read of its traces.
    """
    failed: dict[str, str] = {}
    problems: dict[str, str] = {}  # by stage
    for stage in stages:
        made = failed.get(stage.subject) or next((problems[name] for name in stage.after if name in problems), ())
        if not made and stage.part is None and stage.kind != "score":
            minutes = planned.limits.strategy if stage.strategy else planned.limits.stage
            ours = _is_ours(stage, planned)
            made = guarded(stage.subject, _make, stage, planned, store, refit, minutes=minutes, ours=ours)
        if isinstance(made, str):
            failed[stage.subject] = problems[stage.name] = made
    _last_network.clear()
    return failed


# --- in a worker -----------------------------------------------------------------------------------------------------


def stage_request(order: Order, stage: Stage, threads: Mapping[str, int] | int) -> str:
    """What is sent to a worker, as JSON; ``threads`` may depend on the worker's address."""
    return json.dumps({"order": asdict(order), "stage": asdict(stage), "threads": threads})


def perform(request: str, address: str = "") -> str:
    """Carry out a stage in this process: an ``Answer`` as JSON. ``address`` is the worker's own."""
    asked = json.loads(request)
    order, stage, threads = Order(**asked["order"]), Stage(**asked["stage"]), asked["threads"]
    with _one_at_a_time, collected() as said:
        torch.set_num_threads(threads if isinstance(threads, int) else threads.get(address, 1))
        try:
            made = guarded(stage.subject, _make_ordered, order, stage)
        except StoreError as error:
            answer = Answer(stop=str(error), said=said)
        else:
            answer = Answer(problem=made, said=said) if isinstance(made, str) else Answer(made, said=said)
    return json.dumps(asdict(answer))


def _make_ordered(order: Order, stage: Stage) -> _Place | tuple[()]:
    if order.versions != _versions():
        theirs, ours = (", ".join(f"{k} {v}" for k, v in sorted(o.items())) for o in (order.versions, _versions()))
        raise UsageError(f"the worker has {ours}, the run {theirs}; install the same")
    planned = _planned(order.suite, tuple((path, digest) for path, digest in order.plugins))
    os.environ |= {"EXITBENCH_HOME": order.store, VARIABLE: order.device}  # this process is the run's
    return _make(stage, planned, default_store(), order.refit)


@lru_cache(maxsize=1)
def _planned(suite: str, plugins: tuple[_Place, ...]) -> Plan:
    for path, digest in plugins:
        if not Path(path).is_file() or file_digest(Path(path)) != digest:
            raise UsageError(f"plugin {path}: not the same file on the worker; put it where all machines see it")
    return plan(Suite.model_validate_json(suite), load_registry(Path(path) for path, _ in plugins))


# --- either way ------------------------------------------------------------------------------------------------------


def _is_ours(stage: Stage, planned: Plan) -> bool:
    """Whether all code that a stage runs comes with this package."""
    workload = next(w for w in planned.workloads if w.spec.name == stage.workload)
    return workload.is_ours and (not stage.strategy or is_ours(_strategy(stage, planned)))


def _make(stage: Stage, planned: Plan, store: Store, refit: bool) -> _Place | tuple[()]:
    workload = next(w for w in planned.workloads if w.spec.name == stage.workload)
    return _KINDS[stage.kind](workload, stage, store, planned, refit)


def _train(workload: Workload, stage: Stage, store: Store, _planned: Plan, _refit: bool) -> _Place:
    for _ in range(stage.trunk):
        assert workload.trunk is not None
        workload = workload.trunk
    trained_weights(workload, store)
    return "networks", workload.training_key


def _record(workload: Workload, stage: Stage, store: Store, planned: Plan, _refit: bool) -> _Place | tuple[()]:
    weights = trained_weights(workload, store)
    network = _network(workload, weights, store)
    source = _recordings(workload, planned.shift)[stage.split]
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
    """The network that is recorded; the last one is kept, since the next part is likely to be its."""
    made_of = (_place(store), workload.training_key, weights.digest, workload.spec.timesteps)
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
    if isinstance(family, ListedPolicies):  # each is made when it is first asked for
        for value in family.values:
            family.policy(value)
    return ()


def _score(workload: Workload, stage: Stage, store: Store, planned: Plan, _refit: bool) -> _Place | tuple[()]:
    ready, contest = _contest(workload, store)
    strategy = _strategy(stage, planned)
    kept = kept_scores_of(ready, contest, planned.points)
    if needs_missing_inputs(strategy, contest) or kept.get(strategy) is not None:
        return ()
    key = kept.put(strategy, score_strategy(strategy, contest, planned.points))
    return () if key is None else ("scores", key)


def _strategy(stage: Stage, planned: Plan) -> ExitStrategy:
    return next(one.strategy for one in planned.competitors if one.label == stage.strategy)


def _contest(workload: Workload, store: Store) -> tuple[RecordedWorkload, Contest]:
    """What competitors are given; that of the last workload is kept, since the next one is likely to be on it too."""
    weights = trained_weights(workload, store)
    made_of = (_place(store), workload.training_key, *scored_recordings(workload, weights))
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

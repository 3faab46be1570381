"""The graph of a run's stages and their execution: in the run's own process, or in a worker.

A stage is a function of the suite and of stored artifacts that creates one more artifact. Processes exchange JSON: a
request (suite, plugins with their digests, store, stage) and an answer (the artifact's key or the failure, and notes).
A stage makes everything it needs and does not find, so neither order nor lost workers affect the result; the order
only prevents two workers from making the same artifact.
"""

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache

import torch

from bench_core.errors import StoreError, UsageError, one_line
from bench_core.exits.strategy import Requirement
from bench_core.isolation.failures import guarded
from bench_core.plugins import Registry, load_registry
from bench_core.run.artifacts import (
    Workload,
    conversion_key,
    has_trace,
    shards_of,
    stored_weights,
)
from bench_core.run.plan import Competitor, Plan, plan
from bench_core.run.plugin_versions import described, files_of, outdated, refuse_others
from bench_core.run.provenance import code_digest
from bench_core.run.score_cache import SCORED_SPLITS, can_be_kept, scores_key
from bench_core.run.suite import ShiftSpec, Suite
from bench_core.run.worker import Stage, carry_out, forget_network, is_ours_alone, recordings, store_place
from bench_core.store.local import Artifact, Store, default_store
from bench_core.util.device import VARIABLE, wanted_device
from bench_core.util.progress import collected, note
from bench_core.util.version import __version__

__all__ = [
    "Answer",
    "Order",
    "Stage",
    "missing_stages",
    "perform",
    "perform_here",
    "place_of",
    "read_answer",
    "remember_place",
    "stage_request",
]

_Place = tuple[str, str]  # kind and key of an artifact
_GPU = {"GPU": 1.0}  # a worker that offers one has one GPU
_places: dict[str, str] = {}  # URLs with passwords of stores, by the orders' token
_one_at_a_time = threading.Lock()  # stages seed torch's generator, which is global to the process


def _versions() -> dict[str, str]:
    return {"exitbench": __version__, "torch": torch.__version__}


@dataclass(frozen=True)
class Order:
    """What all stages of a run have in common.

    Attributes:
        suite: as JSON.
        plugins: name, distribution (for a file its path), version and code digest of every plugin package and file.
        store: the folder or URL of the store, without a password.
        refit: train policy networks again.
        device: for training and recording: ``cpu``, or which of their devices workers use.
        token: identifies the store's URL with its password, sent to workers beforehand; empty without a password.
        versions: of exitbench and torch, which workers must match.
    """

    suite: str
    plugins: Sequence[Mapping[str, str]]
    store: str
    refit: bool
    device: str = "cpu"
    token: str = ""
    versions: Mapping[str, str] = field(default_factory=_versions)

    @classmethod
    def of(cls, suite: Suite, registry: Registry, store: Store, *, refit: bool) -> "Order":
        """Return the order for a suite in this process."""
        token = ""
        if store.url != store.address:
            token = secrets.token_hex(8)
            remember_place(token, store.address)
        text = suite.model_dump_json(by_alias=True)
        return cls(text, described(registry), store_place(store), refit, wanted_device(), token)


def remember_place(token: str, place: str) -> None:
    """Remember the store URL, with its password, for orders with this token."""
    _places[token] = place


def place_of(token: str) -> str:
    """Return the store URL, with its password, for orders with this token; empty if unknown."""
    return _places.get(token, "")


@dataclass(frozen=True)
class Answer:
    """The result of a stage.

    Attributes:
        artifact: kind and key of the network (converted or not), trace or scores that it made; empty for a part of a
            trace, which the whole one replaces, for a fit, which may make any number of artifacts, and for results that
            cannot be stored.
        problem: why it failed, as in a row's status; otherwise empty.
        stop: why the whole run must end, namely that the store cannot be written to; otherwise empty.
        said: notes, and the last line of each progress.
        stale: which plugin was edited after this process loaded it, so that a new process can run the stage; otherwise
            empty.
    """

    artifact: Sequence[str] = ()
    problem: str = ""
    stop: str = ""
    said: Sequence[str] = ()
    stale: str = ""


def missing_stages(planned: Plan, store: Store, *, refit: bool = False) -> tuple[list[Stage], dict[str, str]]:
    """Return the stages whose artifacts the store lacks, in a valid order, and the problems by subject.

    Everything is trained and recorded before anything is fitted, and fitted before anything is scored. Damaged
    artifacts are only detected when they are read. Fits that use inputs train networks and are stages of their own;
    only the strategy knows whether the store has their results, so they are omitted if its scores are stored. Other
    fits are quick and store nothing, so they run as part of scoring, unless ``refit`` is set. Strategies whose scores
    cannot be stored are scored by the process that needs the scores; with ``refit`` all are.
    """
    recorded: list[Stage] = []
    fits: list[Stage] = []
    scores: list[Stage] = []
    problems: dict[str, str] = {}
    trained: dict[str, str] = {}  # name of the stage that trains it, by training key
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
    """Yield the strategies whose scores the store lacks, and whether a stage should compute them."""
    for competitor in planned.competitors:
        keepable = can_be_kept(competitor.strategy)
        key = scores_key(workload, weights, competitor.strategy, planned.points) if weights and keepable else None
        if refit or key is None or not store.has("scores", key):
            yield competitor, keepable and not refit


def _stages_of(
    workload: Workload, shift: ShiftSpec | None, store: Store, trained: dict[str, str]
) -> tuple[Artifact | None, list[Stage]]:
    """Return the stored trained weights, if any, and the missing stages up to the last recording."""
    name = workload.spec.name
    stages = _training(workload, name, store, trained)
    weights = None if stages else stored_weights(workload, store)
    after = [trained[workload.training_key]] if weights is None else []
    missing = {
        split: source
        for split, source in recordings(workload, shift).items()
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
    """Return whether a storable conversion is missing; others are done by the stage that records."""
    if weights is None:
        return workload.converter is not None and code_digest(type(workload.converter)) is not None
    key = conversion_key(workload, weights)
    return key is not None and not store.has("converted", key)


def _training(workload: Workload, name: str, store: Store, trained: dict[str, str], trunk: int = 0) -> list[Stage]:
    """Return stages that train the workload and its trunks; none if another workload's stages do."""
    key = workload.training_key
    if key in trained or stored_weights(workload, store) is not None:
        return []
    before = [] if workload.trunk is None else _training(workload.trunk, name, store, trained, trunk + 1)
    after = [] if workload.trunk is None else [trained.get(workload.trunk.training_key)]
    trained[key] = f"train {name}" + f" trunk {trunk}" * (trunk > 0)
    return [*before, Stage(trained[key], "train", name, trunk=trunk, after=[stage for stage in after if stage])]


def read_answer(text: str) -> Answer:
    """Parse the answer that ``perform`` returned."""
    return Answer(**json.loads(text))


# --- in the run's own process ----------------------------------------------------------------------------------------


def perform_here(stages: Sequence[Stage], planned: Plan, store: Store, *, refit: bool) -> dict[str, str]:
    """Run stages one after another; return why some failed, by subject.

    Parts are left to the stage of the whole trace, which records them under one progress, and scores to the code that
    needs them, which computes a workload's missing scores in one read of its traces.
    """
    failed: dict[str, str] = {}
    problems: dict[str, str] = {}  # by stage
    for stage in stages:
        made = failed.get(stage.subject) or next((problems[name] for name in stage.after if name in problems), ())
        if not made and stage.part is None and stage.kind != "score":
            minutes = planned.limits.strategy if stage.strategy else planned.limits.stage
            ours = is_ours_alone(stage, planned)
            made = guarded(stage.subject, carry_out, stage, planned, store, refit, minutes=minutes, ours=ours)
        if isinstance(made, str):
            failed[stage.subject] = problems[stage.name] = made
    forget_network()
    return failed


# --- in a worker -----------------------------------------------------------------------------------------------------


def stage_request(order: Order, stage: Stage, threads: Mapping[str, int] | int, *, take_over: bool = False) -> str:
    """Return the request for a worker, as JSON.

    Args:
        order: the run's.
        stage: what to do.
        threads: number of threads it may use; a mapping gives it by worker address.
        take_over: do not wait for locks, since a frozen worker may hold one.
    """
    return json.dumps({"order": asdict(order), "stage": asdict(stage), "threads": threads, "take_over": take_over})


def perform(request: str, address: str = "", say: Callable[[str], None] | None = None) -> str:
    """Run a stage in this process.

    Args:
        request: from ``stage_request``.
        address: the worker's own.
        say: called with each note as it is made.

    Returns:
        An ``Answer`` as JSON.
    """
    asked = json.loads(request)
    order, stage, threads = Order(**asked["order"]), Stage(**asked["stage"]), asked["threads"]
    with _one_at_a_time, collected(say) as said:
        torch.set_num_threads(threads if isinstance(threads, int) else threads.get(address, 1))
        os.environ |= {"EXITBENCH_HOME": place_of(order.token) or order.store, VARIABLE: order.device}  # of the run
        try:
            if stale := outdated(order.plugins):
                answer = Answer(stale=stale)
            else:
                made = guarded(stage.subject, _make_ordered, order, stage, asked["take_over"])
                answer = Answer(problem=made, said=said) if isinstance(made, str) else Answer(made, said=said)
        except StoreError as error:
            answer = Answer(stop=str(error), said=said)
        except BaseException as error:  # raised by a plugin: nobody presses Ctrl-C in a worker
            problem = one_line(f"failed: {type(error).__name__}: {error!s:.200}")
            note(f"{stage.subject}: {problem}")
            answer = Answer(problem=problem, said=said)
    return json.dumps(asdict(answer))


def _make_ordered(order: Order, stage: Stage, take_over: bool) -> _Place | tuple[()]:
    if order.versions != _versions():
        theirs, ours = (", ".join(f"{k} {v}" for k, v in sorted(o.items())) for o in (order.versions, _versions()))
        raise UsageError(f"the worker has {ours}, the run {theirs}; install the same")
    planned = _planned(order.suite, json.dumps(order.plugins))
    store = default_store()
    store.lock_patience = 0.0 if take_over else None
    return carry_out(stage, planned, store, order.refit)


@lru_cache(maxsize=1)
def _planned(suite: str, plugins: str) -> Plan:
    wanted = json.loads(plugins)
    registry = load_registry(files_of(wanted))
    refuse_others(wanted, registry)
    return plan(Suite.model_validate_json(suite), registry)

"""Scores that the store keeps are those that would be made now, and are left alone where anything differs."""

import json
import os
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from bench_core import ScoreStrategy
from bench_core.board.board import TABLES
from bench_core.errors import StoreError
from bench_core.replay.controller import replay_policy
from bench_core.run.evaluate import contest_of, kept_scores_of, recorded_workload, score_workload
from bench_core.run.plan import plan
from bench_core.run.provenance import code_digest
from bench_core.run.run import run_suite
from bench_core.run.score_cache import scores_key
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import fit_family, score_strategy
from bench_core.store.inventory import choose, describe, entries, prune
from bench_core.store.local import Store
from tests.helpers.odd_score import Odd
from tests.helpers.suites import CONVERTED, DIRECT, EVENTS, parsed_suite, tiny_registry, trained_store, write_plugin

POINTS = ["iso-accuracy:0", "iso-accuracy:5", "budget:0.01", "budget:0.5", "risk:5,0.05", "risk:0.1,0.05"]
METHOD = """
from ready_helper import FACTOR

class Ready(ScoreStrategy):
    name, reference = "ready", "exitbench-test"

    def score(self, evidence):
        return FACTOR * evidence.readout().largest_probability

    def overhead(self, classes):
        return Overhead(per_decision=Operations(comparisons=float(classes)))

@hookimpl
def bench_exit_strategies():
    return [Ready()]
"""


@pytest.fixture(scope="module")
def registry():
    return tiny_registry()


@pytest.fixture(scope="module")
def place(tmp_path_factory, registry):
    """A store with traces and no scores."""
    store = trained_store(tmp_path_factory, tmp_path_factory.mktemp("scores"))
    for workload in plan(parsed_suite(workloads=[DIRECT, EVENTS, CONVERTED]), registry).workloads:
        recorded_workload(workload, store)
    return store.root


@pytest.fixture
def store(place, tmp_path):
    """The same traces in a store of the test's own."""
    for kind in ("networks", "traces"):
        for path in (place / kind).rglob("*.safetensors"):
            own = tmp_path / "store" / path.relative_to(place)
            own.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, own)
    return Store(tmp_path / "store", zoo=None)


def planned_for(registry, workload, **options):
    names = [
        {"name": name, "parameters": {"epochs": 1}} if name == "seenn-ii" else {"name": name}
        for name in registry.strategies
    ]
    return plan(parsed_suite(workloads=[workload], operating_points=POINTS, strategies=names, **options), registry)


def ready_for(planned, store):
    """The recorded workload, its contest, and its scores as the store keeps them."""
    ready = recorded_workload(planned.workloads[0], store)
    contest = contest_of(ready)
    return ready, contest, kept_scores_of(ready, contest, planned.points)


def scores_in(store):
    return sorted((store.root / "scores").rglob("*.safetensors"))


# --- the same scores -------------------------------------------------------------------------------------------------


@pytest.mark.numerics
@pytest.mark.parametrize("spec", [DIRECT, EVENTS, CONVERTED], ids=lambda spec: spec["name"])
def test_what_is_read_is_what_was_scored_for_every_strategy(registry, store, spec):
    planned = planned_for(registry, spec)
    _, contest, kept = ready_for(planned, store)
    statuses = set()
    for competitor in planned.competitors:
        made = score_strategy(competitor.strategy, contest, planned.points)
        assert kept.get(competitor.strategy) is None
        assert kept.put(competitor.strategy, made) is not None
        found = kept.get(competitor.strategy)
        assert (found.parameters, found.curve) == (made.parameters, made.curve)
        assert [type(value) for value, *_ in found.curve] == [type(value) for value, *_ in made.curve]
        for one, other in zip(found.policies, made.policies, strict=True):
            plain = ("point", "status", "value", "select_accuracy", "select_timestep", "overhead")
            assert [getattr(one, name) for name in plain] == [getattr(other, name) for name in plain]
            statuses.add(one.status)
            if other.outcome is None:
                assert one.outcome is one.policy is one.make is None
                continue
            for field, tensor in vars(other.outcome).items():
                assert torch.equal(getattr(one.outcome, field), tensor)
                assert getattr(one.outcome, field).dtype == tensor.dtype
            again = replay_policy(one.policy, contest.test.trace, contest.test.inputs)
            assert torch.equal(again.exit_timesteps, other.outcome.exit_timesteps)
    assert statuses == {"ok", "fallback", "infeasible"}
    assert len(scores_in(store)) == len(planned.competitors)


def test_a_run_with_kept_scores_fits_nothing_and_writes_the_same_bytes(registry, store, tmp_path, monkeypatch):
    suite = parsed_suite(workloads=[DIRECT, CONVERTED], operating_points=POINTS)
    run = partial(run_suite, suite, registry=registry, store=store)
    run(output=tmp_path / "board")
    before = {name: (tmp_path / "board" / f"{name}.csv").read_bytes() for name in TABLES}
    monkeypatch.setattr("bench_core.scoring.scores.fit_family", lambda *a, **o: pytest.fail("fitted again"))
    monkeypatch.setattr("bench_core.run.score_cache.fit_family", lambda *a, **o: pytest.fail("fitted again"))
    run(output=tmp_path / "board")
    assert {name: (tmp_path / "board" / f"{name}.csv").read_bytes() for name in TABLES} == before
    monkeypatch.undo()
    fitted = []
    monkeypatch.setattr(
        "bench_core.run.score_cache.fit_family", lambda *a, **o: fitted.append(a) or fit_family(*a, **o)
    )
    run(output=tmp_path / "board", remeasure=True)  # what is run live has to be fitted
    assert len(fitted) == 2 * len(suite.strategies)


# --- what they depend on ---------------------------------------------------------------------------------------------


def test_changed_code_is_scored_again(registry, store, tmp_path, monkeypatch):
    """The plugin's own file, and one beside it that it imports."""
    folder = tmp_path / "plugin"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    (folder / "ready_helper.py").write_text("FACTOR = 1.0\n")
    plugin = write_plugin(folder / "ready.py", METHOD)

    def thresholds():
        sys.modules.pop("ready_helper", None)
        found = tiny_registry(plugin)
        suite = parsed_suite(strategies=[{"name": "ready"}])
        board = run_suite(suite, registry=found, output=tmp_path / "board", store=store)
        return board.rows["value"].tolist()

    first = thresholds()
    assert len(scores_in(store)) == 1
    assert thresholds() == first
    assert len(scores_in(store)) == 1
    (folder / "ready_helper.py").write_text("FACTOR = 2.0\n")
    assert thresholds() == [2 * value for value in first]
    assert len(scores_in(store)) == 2
    plugin.write_text(plugin.read_text().replace("FACTOR * evidence", "2 * FACTOR * evidence"))
    assert thresholds() == [4 * value for value in first]
    newest = max(scores_in(store), key=lambda path: path.stat().st_mtime_ns)
    assert len(scores_in(store)) == 3
    assert [line.endswith("made again since") for line in prune(store)] == [True, True]
    assert scores_in(store) == [newest]


def test_every_knob_point_trace_and_thread_has_a_key_of_its_own(registry, store):
    planned = planned_for(registry, DIRECT)
    ready, _, _ = ready_for(planned, store)
    other, _, _ = ready_for(planned_for(registry, CONVERTED), store)
    strategy = registry.strategies["seenn-i"]
    key = partial(scores_key, ready.workload, ready.weights, strategy, planned.points)
    keys = [
        key(),
        scores_key(other.workload, other.weights, strategy, planned.points),
        scores_key(ready.workload, replace(ready.weights, metadata={"content": "x"}), strategy, planned.points),
        scores_key(ready.workload, ready.weights, strategy.with_parameters({"alpha": 2.0}), planned.points),
        scores_key(ready.workload, ready.weights, registry.strategies["margin"], planned.points),
        scores_key(ready.workload, ready.weights, strategy, planned.points[:-1]),
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    keys.append(key())
    torch.set_num_threads(before)
    assert len(set(keys)) == len(keys)
    assert None not in keys
    assert key() == keys[0]


def test_a_strategy_that_cannot_be_told_by_its_code_is_scored_every_time(registry, store, monkeypatch):
    class Local(ScoreStrategy):
        name, reference = "local", "a test"

        def score(self, evidence):
            return evidence.readout().largest_probability

    assert code_digest(Local) is None
    assert code_digest(Odd) is not None
    planned = planned_for(registry, DIRECT)
    ready, contest, kept = ready_for(planned, store)
    for strategy in (Local(), Odd(lambda evidence: evidence.readout().largest_probability)):
        made = score_strategy(strategy, contest, planned.points)
        assert kept.put(strategy, made) is None
        assert kept.get(strategy) is None
    assert scores_in(store) == []
    held = [Odd(make) for make in ("a", "b", "a")]  # what JSON can hold is part of the key
    first, second, third = (scores_key(ready.workload, ready.weights, one, planned.points) for one in held)
    assert first == third != second
    monkeypatch.setattr(Odd, "__module__", "__main__")
    code_digest.cache_clear()
    assert code_digest(Odd) is None
    code_digest.cache_clear()


def test_code_is_told_by_the_files_that_were_loaded(tmp_path, monkeypatch):
    """Not by what stands there when the first score is kept, nor by files that can't be read."""
    plugin = write_plugin(tmp_path / "my.method.py", METHOD.replace("from ready_helper import FACTOR", "FACTOR = 1.0"))
    (tmp_path / ".#my.method.py").symlink_to("nobody@nowhere")  # an editor's lock
    (tmp_path / "folder.py").mkdir()
    suite = parsed_suite(strategies=[{"name": "ready"}])
    found = tiny_registry(plugin)
    plan(suite, found)
    plugin.write_text(plugin.read_text().replace("FACTOR = 1.0", "FACTOR = 2.0"))
    first = code_digest(type(found.strategies["ready"]))
    again = tiny_registry(plugin)
    assert None not in (first, code_digest(type(again.strategies["ready"])))
    assert first != code_digest(type(again.strategies["ready"]))
    monkeypatch.setattr(
        "bench_core.isolation.plugin_code.file_digest", lambda _path: (_ for _ in ()).throw(PermissionError("no"))
    )
    assert code_digest(type(tiny_registry(plugin).strategies["ready"])) is None


def test_scores_of_another_recording_under_the_same_key_are_not_taken(registry, store):
    """A trace may come out differently when it is recorded again, with smaller batches, say."""
    planned = planned_for(registry, DIRECT)
    ready, contest, kept = ready_for(planned, store)
    strategy = registry.strategies["seenn-i"]
    kept.put(strategy, score_strategy(strategy, contest, planned.points))
    assert kept.get(strategy) is not None
    elsewhere = replace(kept, digests={**ready.digests, "test_trace": "0" * 64})
    assert elsewhere.get(strategy) is None


# --- what goes wrong -------------------------------------------------------------------------------------------------


def _altered(name, value):
    def alter(record, tensors):
        record[name] = value

    return alter


def _policy(name, value):
    def alter(record, tensors):
        record["policies"][0][name] = value

    return alter


def _exits(change):
    def alter(record, tensors):
        tensors["exit_timesteps"] = change(tensors["exit_timesteps"].clone())

    return alter


NONSENSE = {
    "no policies": _altered("policies", []),
    "no list": _altered("policies", 7),
    "no curve": _altered("curve", [[1]]),
    "no parameters": _altered("parameters", 3),
    "a policy that says too much": _policy("colour", "red"),
    "costs of another kind": _policy("overhead", {"once": {"miles": 3}}),
    "an exit at 0": _exits(lambda exits: exits * 0),
    "an exit after T": _exits(lambda exits: exits + 9),
    "too few samples": _exits(lambda exits: exits[:, :-1]),
    "too few policies": _exits(lambda exits: exits[:1]),
    "no exits": lambda record, tensors: tensors.clear(),
}


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
def test_what_holds_no_scores_is_named_and_made_again(registry, store, capfd, change):
    planned = planned_for(registry, DIRECT)
    _, contest, kept = ready_for(planned, store)
    strategy = registry.strategies["seenn-i"]
    key = kept.put(strategy, score_strategy(strategy, contest, planned.points))
    artifact = store.get("scores", key)
    record, tensors = json.loads(artifact.header["scores"]), dict(artifact.tensors)
    change(record, tensors)
    store.put("scores", key, tensors, {}, {"scores": json.dumps(record)})
    capfd.readouterr()
    assert kept.get(strategy) is None
    said = capfd.readouterr().err
    assert str(store.path("scores", key)) in said
    assert said.count("\n") == 1
    made = score_workload("direct", planned.competitors, planned.points, contest, {}, kept=kept)
    assert all(entry.scores is not None for entry in made.entries)
    assert kept.get(strategy) is not None


def test_an_offline_store_is_read_and_not_written_to(registry, store):
    planned = planned_for(registry, DIRECT)
    _, contest, kept = ready_for(planned, store)
    one, other = registry.strategies["seenn-i"], registry.strategies["margin"]
    kept.put(one, score_strategy(one, contest, planned.points))
    offline = replace(kept, store=Store(store.root, zoo=None, offline=True))
    assert offline.get(one) is not None
    assert offline.get(other) is None
    assert offline.put(other, score_strategy(other, contest, planned.points)) is None
    assert len(scores_in(store)) == 1


def test_a_store_that_cannot_be_written_to_is_said_once_and_the_board_is_there(
    registry, store, tmp_path, monkeypatch, capfd
):
    def full(*_arguments, **_options):
        raise StoreError("disk full")

    monkeypatch.setattr(store, "put", full)
    board = run_suite(parsed_suite(), registry=registry, output=tmp_path / "board", store=store)
    assert not board.failures
    assert capfd.readouterr().err.count("disk full; scores of direct are not kept\n") == 1


def test_what_fails_is_not_kept_and_tried_again(registry, store, tmp_path):
    plugin = write_plugin(
        tmp_path / "failing_once.py",
        f"""
class Once(ScoreStrategy):
    name, reference = "once", "exitbench-test"

    def score(self, evidence):
        if __import__("os").path.exists({str(tmp_path / "broken")!r}):
            raise ValueError("not today")
        return evidence.readout().largest_probability

    def overhead(self, classes):
        return "cheap" if __import__("os").path.exists({str(tmp_path / "vague")!r}) else None

@hookimpl
def bench_exit_strategies():
    return [Once()]
""",
    )
    suite = parsed_suite(strategies=[{"name": "once"}])
    found = tiny_registry(plugin)

    def statuses():
        return set(run_suite(suite, registry=found, output=tmp_path / "board", store=store).rows["status"])

    (tmp_path / "broken").touch()
    assert statuses() == {"failed: ValueError: not today"}
    (tmp_path / "broken").unlink()
    (tmp_path / "vague").touch()
    assert statuses() == {"failed: plugin once: overhead must be an Overhead or None, not 'cheap'"}
    (tmp_path / "vague").unlink()
    assert scores_in(store) == []
    assert statuses() == {"ok"}
    assert len(scores_in(store)) == 1


def test_the_store_says_whose_scores_they_are(registry, store, tmp_path):
    run_suite(parsed_suite(), registry=registry, output=tmp_path / "board", store=store)
    found = [entry for entry in entries(store) if entry.kind == "scores"]
    assert sorted(entry.what for entry in found) == ["direct fixed", "direct seenn-i", "direct stability"]
    (entry,) = choose(found, [found[0].key[:12]])
    assert describe(entry)["metadata"]["operating_points"] == ["iso-accuracy:1", "budget:0.5"]
    assert prune(store) == []


def test_points_are_written_as_they_are_read():
    """The key and the header hold them as text."""
    assert [str(OperatingPoint.parse(point)) for point in POINTS] == POINTS

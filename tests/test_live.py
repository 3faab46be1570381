"""The live engine: batches that shrink and are refilled decide as replay does, spend what they say, and are timed."""

import copy
import dataclasses
import json
import random
import sys
import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench_core.errors import UsageError
from bench_core.exits.strategy import ExitPolicy, NeverExit
from bench_core.live import energy_meter
from bench_core.live import timing as latency
from bench_core.live.engine import LiveSamples, run_live
from bench_core.live.timing import STATIC, Timings, measure
from bench_core.replay.controller import replay_policy
from bench_core.run.artifacts import Workload
from bench_core.run.suite import LatencySpec
from bench_core.snn import SpikingNetwork, if_neuron, lif_neuron
from bench_core.snn.models import Parts
from bench_core.trace.trace import Trace
from bench_core.workflows import verify_live as verification
from bench_core.workflows.verify_live import live_runs, verify
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.numerics import assert_agree, make_exact
from tests.helpers.suites import (
    CONVERTED,
    DIRECT,
    EVENTS,
    TINY_PLUGIN,
    parsed_suite,
    tiny_registry,
    trained_store,
    write_plugin,
    write_suite,
)
from tests.helpers.tiny_plugin import TinyConv, TinyEvents, TinyShapes

pytestmark = pytest.mark.numerics

K = 4
KINDS = {"constant": True, "events": False}
WAYS = [(None, False), (1, False), (3, False), (3, True), (1, True), (8, True), (50, True)]


def network(*, constant=True, node=lif_neuron, dtype=torch.float64, timesteps=6, normalization="bn", exact=False):
    """A tiny network whose weights and statistics are all different, and lively.

    Args:
        exact: with rounded weights, so that it gives the same logits in every batch.
    """
    torch.manual_seed(5)
    shape = TinyShapes.input_shape if constant else TinyEvents.input_shape
    layers = TinyConv().layers(shape, K, Parts(node, normalization, timesteps))
    found = SpikingNetwork(layers, constant_input=constant).to(dtype)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.2, 0.6)
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.uniform_(module.bias, 0.0, 0.6)
        if hasattr(module, "scale"):
            nn.init.uniform_(module.scale, 0.5, 1.5)
    found.prepare_for_inference()
    return make_exact(found) if exact else found


def samples(*, constant=True, count=20, timesteps=6, dtype=torch.float64):
    dataset = TinyShapes() if constant else TinyEvents()
    found = LiveSamples.of_split(dataset, dataset.split("test"), torch.arange(count), timesteps)
    return found.to(dtype)


def folded(net, fed):
    """All logits [N, T, K], run folded."""
    with torch.inference_mode():
        return net.run(fed.inputs, fed.timesteps).transpose(0, 1).contiguous()


class Planned(ExitPolicy):
    """Stops each sample at a timestep drawn by hash, and remembers it as state."""

    def __init__(self, salt, latest=None):
        self.salt, self.latest = salt, latest

    def plan(self, evidence):
        return 1 + (evidence.uniform(self.salt) * (self.latest or evidence.T)).long()

    def start(self, evidence):
        return {"plan": self.plan(evidence)}

    def should_exit(self, evidence, state):
        assert torch.equal(state["plan"], self.plan(evidence))  # the state is still that of these samples
        return state["plan"] <= evidence.t, state


class Surest(ExitPolicy):
    """Stops when the gap of the two largest totals is wide enough."""

    def __init__(self, gap):
        self.gap = gap

    def should_exit(self, evidence, state):
        first, second = evidence.total.topk(2, dim=1).values.unbind(1)
        return first - second > self.gap, state


class Looking(ExitPolicy):
    """Stops when as much input was presented as a sample's own first frame says; checks what it is shown."""

    def __init__(self, fed):
        self.frames = {int(i): fed.frames(torch.tensor([n]), fed.timesteps)[0] for n, i in enumerate(fed.sample_ids)}

    def should_exit(self, evidence, state):
        shown = evidence.inputs
        for row, key in enumerate(evidence._keys.tolist()):
            assert torch.equal(shown[row], self.frames[key][: shown.shape[1]])
        return (shown[:, 0].flatten(1).sum(1).long() % evidence.T) < evidence.t, state


def same(one, other):
    return (
        torch.equal(one.exit_timesteps, other.exit_timesteps)
        and torch.equal(one.predictions, other.predictions)
        and torch.equal(one.forced, other.forced)
    )


# --- decisions -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    constant=st.booleans(),
    node=st.sampled_from([lif_neuron, lambda: if_neuron(0.75)]),
    normalization=st.sampled_from(["bn", "tebn"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    exact=st.booleans(),
    count=st.integers(1, 24),
    timesteps=st.integers(1, 6),
    batch=st.integers(1, 26),
    refill=st.booleans(),
    policy=st.one_of(st.builds(Planned, st.integers(0, 999)), st.builds(Surest, st.floats(0, 3))),
)
def test_a_live_run_decides_as_replay_of_what_it_saw_in_any_batch(
    constant, node, normalization, dtype, exact, count, timesteps, batch, refill, policy
):
    options = {"timesteps": timesteps, "normalization": normalization, "exact": exact}
    net = network(constant=constant, node=node, dtype=dtype, **options)
    fed = samples(constant=constant, count=count, timesteps=timesteps, dtype=dtype)
    seen = torch.zeros(count, timesteps, K, dtype=dtype)
    live = run_live(net, fed, policy, batch=batch, refill=refill, seen=seen)
    labels = torch.zeros(count, dtype=torch.int64)
    assert same(live, replay_policy(policy, Trace(seen, labels, fed.sample_ids)))
    ran = torch.arange(1, timesteps + 1) <= live.exit_timesteps[:, None]
    assert (seen[~ran] == 0).all()
    logits = folded(net, fed)
    if exact:
        assert torch.equal(seen[ran], logits[ran])
        assert same(live, replay_policy(policy, Trace(logits, labels, fed.sample_ids)))
    elif dtype == torch.float64:  # no spike flips
        assert_agree(seen, logits.where(ran[..., None], 0.0), samples=0)


@pytest.mark.parametrize("constant", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("batch", "refill"), WAYS)
def test_no_result_depends_on_batch_refill_or_order(constant, batch, refill):
    net, fed, policy = network(constant=constant, exact=True), samples(constant=constant), Surest(0.4)
    expected = run_live(net, fed, policy)
    assert len(expected.exit_timesteps.unique()) > 2
    order = torch.randperm(len(fed), generator=torch.Generator().manual_seed(1))
    found = run_live(net, fed.at(order), policy, batch=batch, refill=refill)
    assert torch.equal(found.exit_timesteps, expected.exit_timesteps[order])
    assert torch.equal(found.predictions, expected.predictions[order])
    assert torch.equal(found.forced, expected.forced[order])


@pytest.mark.parametrize("constant", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("batch", "refill"), WAYS)
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("timesteps", [1, 4])
def test_all_stop_at_once_or_never(constant, batch, refill, count, timesteps):
    net, fed = (
        network(constant=constant, timesteps=timesteps, exact=True),
        samples(constant=constant, count=count, timesteps=timesteps),
    )
    totals = folded(net, fed).cumsum(1)
    for policy, exits in ((Planned(0, latest=1), 1), (NeverExit(), timesteps)):
        found = run_live(net, fed, policy, batch=batch, refill=refill)
        assert found.exit_timesteps.tolist() == [exits] * count
        assert found.predictions.tolist() == totals[:, exits - 1].argmax(1).tolist()
        assert found.forced.tolist() == [exits == timesteps] * count


@pytest.mark.parametrize("constant", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("batch", "refill"), WAYS)
def test_a_policy_is_shown_the_input_of_its_own_samples(constant, batch, refill):
    fed = samples(constant=constant)
    found = run_live(network(constant=constant), fed, Looking(fed), batch=batch, refill=refill)
    assert len(found.exit_timesteps.unique()) > 1


class Echo:
    """A network that says what it is shown."""

    def reset(self):
        pass

    def step(self, frame):
        return frame.flatten(1)[:, :K].clone()

    def keep(self, index):
        pass

    def renew(self, index, frames):
        pass


@pytest.mark.parametrize("constant", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("batch", "refill"), WAYS)
def test_a_network_is_shown_the_frames_of_the_samples_under_way(constant, batch, refill):
    fed = samples(constant=constant)
    noise = torch.randn(fed.inputs.shape, generator=torch.Generator().manual_seed(2), dtype=fed.inputs.dtype)
    fed = dataclasses.replace(fed, inputs=noise)
    seen = torch.zeros(len(fed), fed.timesteps, K, dtype=noise.dtype)
    exits = run_live(Echo(), fed, Planned(3), batch=batch, refill=refill, seen=seen).exit_timesteps
    frames = noise.expand(fed.timesteps, *noise.shape) if constant else noise
    shown = frames.flatten(2)[..., :K].transpose(0, 1)
    ran = torch.arange(1, fed.timesteps + 1) <= exits[:, None]
    assert torch.equal(seen[ran], shown[ran])
    assert len(exits.unique()) > 1


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("batch", "refill"), WAYS)
def test_finished_samples_are_computed_no_more(constant, batch, refill):
    """A layer sees as many rows as samples ran timesteps; the first layer of constant input sees each sample once."""
    net, fed = network(constant=constant), samples(constant=constant)
    rows = {"first": 0, "last": 0}
    steps = []

    def count(name):
        def hook(_module, inputs, _output):
            rows[name] += inputs[0].shape[1]
            if name == "last":
                steps.append(inputs[0].shape[1])

        return hook

    net.layers[0].register_forward_hook(count("first"))
    net.layers[-1].register_forward_hook(count("last"))
    found = run_live(net, fed, Planned(3), batch=batch, refill=refill)
    spent = int(found.exit_timesteps.sum())
    assert rows == {"first": len(fed) if constant else spent, "last": spent}
    full = min(batch or len(fed), len(fed))
    assert max(steps) == full
    if refill and batch > 1:  # full for as long as anyone waits
        short = [n for n, rows_now in enumerate(steps) if rows_now < full]
        assert all(n >= short[0] for n in range(short[0], len(steps)) if steps[n] < full)
        assert sum(steps[: short[0]]) >= spent - full * fed.timesteps
        assert steps[short[0] :] == sorted(steps[short[0] :], reverse=True)


def test_a_network_that_takes_no_new_samples_is_refused_for_refill_only():
    class Plain:
        def __init__(self, inner):
            self.reset, self.step, self.keep = inner.reset, inner.step, inner.keep

    net, fed = network(), samples()
    expected = run_live(net, fed, Planned(3))
    assert same(run_live(Plain(net), fed, Planned(3), batch=4), expected)
    assert same(run_live(Plain(net), fed, Planned(3), batch=20, refill=True), expected)  # nobody waits
    with pytest.raises(UsageError, match="Plain has no `renew`"):
        run_live(Plain(net), fed, Planned(3), batch=4, refill=True)


def test_a_renewed_row_is_that_of_a_new_sample():
    net, fed = network(normalization="tebn", exact=True), samples(count=6)
    alone = folded(net, fed)
    with torch.inference_mode():
        net.reset()
        places = [0, 1, 2]
        ages = [0, 0, 0]
        for step in range(5):
            logits = net.step(fed.inputs[places])
            for row, (sample, age) in enumerate(zip(places, ages, strict=True)):
                assert torch.equal(logits[row], alone[sample, age])
            ages = [age + 1 for age in ages]
            if step in (0, 2):
                row, new = (2, 3) if step == 0 else (0, 4)
                net.renew(torch.tensor([row]), fed.inputs[new : new + 1])
                places[row], ages[row] = new, 0
            if step == 1:
                net.keep(torch.tensor([2, 0]))
                places, ages = [places[2], places[0]], [ages[2], ages[0]]
        with pytest.raises(ValueError, match="timestep 7"):
            for _ in range(6):
                net.step(fed.inputs[places])


# --- agreement -------------------------------------------------------------------------------------------------------


class Crowded(ExitPolicy):
    """A cheat: who stops depends on how many others there are."""

    def should_exit(self, evidence, state):
        return torch.full((len(evidence.total),), len(evidence.total) < 8), state


class Drawing(ExitPolicy):
    """A cheat: it throws dice of its own, and not those of ``evidence.uniform``."""

    def __init__(self):
        self.dice = random.Random(0)

    def should_exit(self, evidence, state):
        return torch.tensor([self.dice.random() < 0.3 for _ in evidence.total]), state


class FirstRows(SpikingNetwork):
    """A defect: whoever goes on, the state kept is that of the first rows."""

    def keep(self, index):
        super().keep(torch.arange(len(index)))


class NothingRenewed(SpikingNetwork):
    """A defect: new samples go on with the state of those whose places they take."""

    def renew(self, index, frames):
        if self._current is not None:
            self._current[:, index] = self.layers[0](frames.unsqueeze(0))


def verdicts(net, policy, fed, *, batch=8):
    labels = torch.zeros(len(fed), dtype=torch.int64)
    return [
        r.verdict for r in live_runs(net, policy, fed, Trace(folded(net, fed), labels, fed.sample_ids), batch=batch)
    ]


@pytest.mark.parametrize("constant", KINDS.values(), ids=KINDS)
def test_honest_runs_agree(constant):
    net, fed = network(constant=constant), samples(constant=constant, count=60)
    assert verdicts(net, Surest(0.4), fed) == ["ok"] * 3
    assert verdicts(net, Surest(0.4), fed, batch=1) == ["ok"]
    runs = list(
        live_runs(net, Surest(0.4), fed, Trace(folded(net, fed), torch.zeros(60).long(), fed.sample_ids), batch=8)
    )
    assert all((run.samples, run.contradictions, run.off, run.other_exits) == (60, 0, 0, 0) for run in runs)
    assert [run.way for run in runs] == ["batch 1", "batch 8", "batch 8, refill"]


@pytest.mark.parametrize("policy", [Crowded(), Drawing()], ids=["crowded", "drawing"])
def test_a_policy_that_cheats_is_contradicted(policy):
    assert "CONTRADICTION" in verdicts(network(), policy, samples(count=60))


@pytest.mark.parametrize("constant", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("broken", "caught"), [(FirstRows, [1, 2]), (NothingRenewed, [2])])
def test_a_network_that_mixes_samples_up_is_caught(constant, broken, caught):
    net, fed = network(constant=constant), samples(constant=constant, count=60)
    wrong = copy.deepcopy(net)
    wrong.__class__ = broken
    found = verdicts(wrong, Planned(3), fed)
    assert [index for index, verdict in enumerate(found) if verdict == "OFF"] == caught
    assert "CONTRADICTION" not in found


@pytest.fixture(scope="module")
def registry():
    return tiny_registry()


@pytest.fixture
def store(tmp_path_factory, tmp_path):
    return trained_store(tmp_path_factory, tmp_path / "store")


def resolved(content, registry):
    return Workload.resolve(parsed_suite(workloads=[content]).workloads[0], registry)


@pytest.mark.parametrize("content", [DIRECT, EVENTS, CONVERTED], ids=lambda content: content["name"])
def test_a_workload_is_verified(content, registry, store):
    strategy = registry.strategies["seenn-i"]
    few = LatencySpec(samples=3)
    found = verify(
        resolved(content, registry),
        strategy,
        store=store,
        settings={"threshold": "0.6"},
        samples=150,
        batch=16,
        repetitions=2,
        latency=few,
    )
    assert found.agrees
    recording = found.recording
    assert (recording.samples, recording.allowed, recording.verdict) == (200, 20, "ok")
    assert [run.precision for run in found.runs] == ["float32"] * 3 + ["float64"] * 3
    assert all(run.samples == 150 and run.contradictions == 0 for run in found.runs)
    assert 1 < found.ideal_speedup <= content["timesteps"]
    assert [timing.batch for timing in found.timings] == [1, 16]
    assert found.timings[0].seconds["policy"].shape == (3, 2)
    assert found.timings[1].seconds["policy"].shape == (1, 2)
    text, content = found.text(), json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert "150/150" in text
    assert "batch 16, refill" in text
    assert max(map(len, text.splitlines())) <= 120
    assert content["agrees"] is True
    assert content["recording_batch"]["verdict"] == "ok"
    assert np.shape(content["wall_clock"][0]["seconds"]["static"]) == (3, 2)


def test_more_samples_than_there_are_is_all_of_them(registry, store):
    found = verify(
        resolved(DIRECT, registry), registry.strategies["stability"], store=store, samples=999, repetitions=0
    )
    assert {run.samples for run in found.runs} == {300}
    assert found.timings == []


def test_one_sample_is_verified_too(registry, store):
    found = verify(
        resolved(DIRECT, registry), registry.strategies["fixed"], store=store, samples=1, batch=1, repetitions=0
    )
    assert found.agrees
    assert [run.way for run in found.runs] == ["batch 1"] * 2


def test_where_the_recording_batches_equal_the_trace_to_the_bit_it_says_so(registry, store, monkeypatch):
    original = verification.spiking_network
    monkeypatch.setattr(verification, "spiking_network", lambda *arguments: make_exact(original(*arguments)))
    found = verify(resolved(DIRECT, registry), registry.strategies["fixed"], store=store, samples=50, repetitions=0)
    assert found.agrees
    assert found.recording.bit_equal
    assert (found.recording.off, found.recording.largest_difference) == (0, 0.0)
    assert "recording batches stepwise against the trace: ok, equal to the bit\n" in found.text()
    assert {run.largest_difference for run in found.runs} == {0.0}


@pytest.mark.parametrize(
    ("changed", "by", "off"),
    [(100, 1e-6, 0), (10, 1e-3, 10), (11, 1e-3, 11), (100, 1e-3, 100)],
    ids=["rounding", "as many flips as may be", "a flip more", "every sample"],
)
def test_a_trace_from_elsewhere_need_not_be_equal_to_the_bit_but_agree(registry, store, monkeypatch, changed, by, off):
    original = verification.recorded_trace

    def elsewhere(*arguments, **options):
        trace = original(*arguments, **options)
        logits = trace.logits.clone()
        logits.view(-1, 100, *logits.shape[1:])[:, :changed, 0, 0] += by  # of every recording batch
        return Trace(logits, trace.labels, trace.sample_ids)

    monkeypatch.setattr(verification, "recorded_trace", elsewhere)
    found = verify(resolved(DIRECT, registry), registry.strategies["fixed"], store=store, samples=100, repetitions=0)
    recording, expected = found.recording, "ok" if off <= 10 else "OFF"
    assert (recording.samples, recording.off, recording.bit_equal) == (100, off, False)
    assert recording.largest_difference == pytest.approx(by, abs=1e-5)
    assert {run.off for run in found.runs if run.precision == "float32"} == {off}
    assert {run.off for run in found.runs if run.precision == "float64"} == {0}  # which aren't compared with the trace
    assert recording.verdict == expected
    assert found.agrees == (expected == "ok")
    line = f"{expected}, {off} of 100 samples off by more than 0.0001 (10 allowed), largest difference "
    assert f"recording batches stepwise against the trace: {line}" in found.text()


DEFECTS = {
    "a timestep late": lambda step, net, frame: torch.roll(step(net, frame), 1, dims=1),
    "never reset": lambda step, net, frame: step(net, frame) + step(net, frame),
    "no number": lambda step, net, frame: step(net, frame).index_fill(1, torch.tensor([3]), -torch.inf),
}


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_a_network_that_steps_otherwise_than_it_was_recorded_is_off(registry, store, monkeypatch, defect):
    workload, fixed = resolved(DIRECT, registry), registry.strategies["fixed"]
    verify(workload, fixed, store=store, samples=50, repetitions=0)  # so that the traces are there
    step = SpikingNetwork.step
    monkeypatch.setattr(SpikingNetwork, "step", lambda self, frame: defect(step, self, frame))
    found = verify(workload, fixed, store=store, samples=50, repetitions=0)
    assert found.recording.verdict == "OFF"
    assert {run.verdict for run in found.runs} == {"OFF"}
    assert not found.agrees


# --- the command line ------------------------------------------------------------------------------------------------


CHEAT = """
class Family(ListedPolicies):
    pass

class Peeking(ExitPolicy):
    def should_exit(self, evidence, state):
        return torch.full((len(evidence.total),), len(evidence.total) < 5), state

class Cheat(ExitStrategy):
    name = "cheat"
    reference = "a test"
    family_knob = Knob("k", low=0.0, high=1.0)

    def fit(self, calibration):
        return ListedPolicies([0.5], lambda k: Peeking())

@hookimpl
def bench_exit_strategies():
    return [Cheat()]
"""


def test_verify_prints_a_table_and_writes_json(exitbench, store, tmp_path, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", str(store.root))
    suite = write_suite(tmp_path / "tiny.toml", workloads=[DIRECT, EVENTS])
    place = tmp_path / "found.json"
    flags = ["--suite", suite, "--plugin", TINY_PLUGIN, "--samples", 60, "--batch", 8, "--repetitions", 2]
    code, out, _ = exitbench("verify", *flags, "--strategy", "seenn-i", "--set", "threshold=0.5", "--json", place)
    assert code == 0
    assert out.count("recording batches stepwise against the trace: ok, ") == 2
    assert out.splitlines()[-1] == "live runs and replay agree"
    assert [one["workload"] for one in json.loads(place.read_text())["workloads"]] == ["direct", "events"]


def test_verify_ends_with_1_where_a_policy_cheats(exitbench, store, tmp_path, monkeypatch):
    monkeypatch.setenv("EXITBENCH_HOME", str(store.root))
    suite = write_suite(tmp_path / "tiny.toml")
    plugin = write_plugin(tmp_path / "cheat.py", CHEAT)
    flags = ["--suite", suite, "--plugin", TINY_PLUGIN, "--plugin", plugin, "--samples", 60, "--repetitions", 0]
    code, out, err = exitbench("verify", "direct", *flags, "--strategy", "cheat", "--set", "k=0.5")
    assert code == 1
    assert "CONTRADICTION" in out
    assert "disagree: direct" in err


WRONG = {
    "unknown workload": (["dirct"], ["'dirct'", "did you mean 'direct'"]),
    "unknown strategy": (["--strategy", "seenn"], ["'seenn'", "did you mean"]),
    "unknown knob": (["--set", "treshold=0.5"], ["treshold", "threshold"]),
    "knob and operating point": (["--set", "threshold=0.5", "--operating-point", "budget:0.5"], ["not both"]),
    "no samples": (["--samples", "0"], ["samples"]),
    "json into no folder": (["--json", "absent/out.json"], ["--json absent/out.json", "folder"]),
    "json onto a folder": (["--json", "."], ["is a folder"]),
}


@pytest.mark.parametrize(("flags", "words"), WRONG.values(), ids=WRONG)
def test_verify_refuses_in_one_line(exitbench, own_home, tmp_path, monkeypatch, flags, words):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    suite = write_suite(tmp_path / "tiny.toml")
    named = [] if "--strategy" in flags else ["--strategy", "seenn-i"]
    code, out, err = exitbench("verify", "--suite", suite, "--plugin", TINY_PLUGIN, *named, *flags)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words)
    assert not own_home.exists()


# --- wall clock ------------------------------------------------------------------------------------------------------


def test_every_policy_runs_every_sample_as_often_and_threads_are_put_back(monkeypatch):
    net, fed, before = network(), samples(count=5), torch.get_num_threads()
    ran, ticks = [], []
    original = latency.run_live

    def spy(network, unit, policy, **options):
        ran.append((unit.sample_ids.tolist(), type(policy).__name__, options["batch"], options["refill"]))
        assert torch.get_num_threads() == 1
        return original(network, unit, policy, **options)

    monkeypatch.setattr(latency, "run_live", spy)
    with monkeypatch.context() as patch:
        patch.setattr(latency, "progress", lambda *shown: nullcontext(lambda: ticks.append(shown)))
        found = measure(net, fed, {"p": Surest(0.4)}, batch=1, repetitions=3, threads=1, title="measure", seed=4)
    assert torch.get_num_threads() == before
    ids = fed.sample_ids.tolist()
    assert ran[:2] == [([ids[0]], "NeverExit", 1, False), ([ids[0]], "Surest", 1, True)]  # warm-up
    assert [run[0] for run in ran[2:]] == [[i] for i in ids for _ in range(6)]
    assert sum(run[1] == "Surest" for run in ran[2:]) == 15
    assert [run[1] for run in ran[2:]] != sorted(run[1] for run in ran[2:])  # in turns
    assert ticks == [("measure", 5, "samples")] * 5
    assert found.seconds["p"].shape == found.seconds[STATIC].shape == (5, 3)
    again = list(ran[2:])
    ran.clear()
    measure(net, fed, {"p": Surest(0.4)}, batch=1, repetitions=3, threads=1, title="measure", seed=4)
    assert ran[2:] == again
    ran.clear()
    whole = measure(net, fed, {"p": Surest(0.4)}, batch=2, repetitions=3, threads=1, title="measure")
    assert [run[2:] for run in ran if run[1] == "Surest"] == [(2, True)] * 4
    assert whole.seconds["p"].shape == (1, 3)
    assert whole.joules is None or whole.joules["p"].shape == (1, 3)


def test_figures_are_those_of_the_raw_times():
    seconds = {
        "static": np.array([[4.0, 6.0, 8.0], [4.0, 4.0, 4.0]]),
        "p": np.array([[1.0, 2.0, 3.0], [3.0, 3.0, 3.0]]),
    }
    one = Timings(1, 2, seconds).latency("p")
    assert one["latency_ms"] == 2500
    assert one["latency_median_ms"] == 2500
    assert one["latency_p99_ms"] == pytest.approx(2990)
    assert one["static_latency_ms"] == 5000
    assert one["speedup"] == 2.0  # of 8/4, 10/5, 12/6
    assert one["speedup_iqr"] == 0.0
    whole = Timings(64, 10, seconds, {"p": np.array([[20.0, 20.0, 20.0]])}).throughput("p")
    assert whole["throughput"] == 2.0
    assert whole["static_throughput"] == 1.0
    assert whole["throughput_speedup"] == 2.0
    assert whole["measured_joules"] == 2.0
    single = {name: values[:, :1] for name, values in seconds.items()}
    assert np.isnan(Timings(1, 2, single).latency("p")["speedup_iqr"])
    assert np.isnan(Timings(64, 2, single).throughput("p")["measured_joules"])


def test_the_meter_of_the_machine_is_read_around_every_pass(monkeypatch):
    reads = iter(range(1000))
    monkeypatch.setattr(latency, "energy_meter", lambda _device: lambda: lambda: float(next(reads)))
    fed = samples(count=5)
    found = measure(network(), fed, {"p": Surest(0.4)}, batch=2, repetitions=2, threads=1, title="measure")
    assert sorted([*found.joules["p"].flatten(), *found.joules[STATIC].flatten()]) == [0, 1, 2, 3]
    alone = measure(network(), fed, {"p": Surest(0.4)}, batch=1, repetitions=2, threads=1, title="measure")
    assert alone.joules is None


# --- energy ----------------------------------------------------------------------------------------------------------


def zone(root, name, *, label, energy, most=1_000_000):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder / "energy_uj"


def test_rapl_adds_up_packages_and_survives_the_end_of_its_range(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", label="package-0", energy=100)
    second = zone(tmp_path, "intel-rapl:1", label="package-1", energy=999_990)
    zone(tmp_path, "intel-rapl:0:0", label="core", energy=5)
    zone(tmp_path, "intel-rapl:2", label="psys", energy=5)
    meter = energy_meter.rapl_meter(tmp_path)
    stop = meter()
    first.write_text("350\n")
    second.write_text("10\n")  # 20 further on
    assert stop() == pytest.approx(270e-6)


@pytest.mark.parametrize("content", [None, "", "no number"])
def test_a_machine_without_a_readable_counter_has_no_meter(tmp_path, content):
    if content is not None:
        zone(tmp_path, "intel-rapl:0", label="package-0", energy=content)
    assert energy_meter.rapl_meter(tmp_path) is None
    assert energy_meter.rapl_meter(tmp_path / "absent") is None


def test_a_gpu_is_read_through_nvml(monkeypatch):
    counter = iter([0, 5000, 7500])
    fake = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda _gpu: next(counter),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    meter = energy_meter.energy_meter(torch.device("cuda", 1))
    assert meter()() == 2.5
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_meter.nvml_meter(0) is None

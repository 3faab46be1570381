"""Replay asks a policy fairly: in any order and batch, without a look ahead, forced at T; and it checks the answers."""

import gc
import math
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from bench_plugins.baselines import Fixed, Margin, RandomExit, Stability
from bench_plugins.dt_snn import DtSnn
from bench_plugins.dynamic_confidence import DynamicConfidence
from bench_plugins.seenn_i import SeennI
from bench_plugins.spikecp import SpikeCP
from bench_plugins.topk_cutoff import TopKCutoff
from hypothesis import given, settings
from hypothesis import strategies as st

import bench_core
from bench_core.data import Dataset, ImageSplit
from bench_core.errors import PluginError
from bench_core.exits.strategy import Evidence, ExitPolicy, NeverExit, ScorePolicy, State
from bench_core.live.engine import LiveSamples, run_live
from bench_core.replay.controller import ExitController, Outcome, outcome_at, replay_policy, score_table
from bench_core.trace.files import load_trace, save_trace
from bench_core.trace.trace import Trace
from tests.helpers.odd_score import Odd
from tests.helpers.ties import assert_same_exits, settled
from tests.reference import rules
from tests.traces import calibrations, make_trace, samples_of, traces

pytestmark = pytest.mark.numerics

quick = settings(max_examples=25, deadline=None)
FAMILIES = {
    "seenn-i": (SeennI(), 0.6),
    "dt-snn": (DtSnn(accumulate="mean"), 0.7),
    "dynamic-confidence": (DynamicConfidence(), 0.5),
    "topk-cutoff": (TopKCutoff(), 0.3),
    "topk-cutoff bins": (TopKCutoff(search="bins", bins=5), 0.3),
    "fixed": (Fixed(), 1),
    "random": (RandomExit(seed=5), 1.4),
    "stability": (Stability(), 2),
    "margin": (Margin(), 0.3),
    "spikecp": (SpikeCP(), 0.6),
    "spikecp simes": (SpikeCP(correction="simes"), 0.6),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


def fitted(name: str, trace: Trace) -> ExitPolicy:
    strategy, value = FAMILIES[name]
    return strategy.fit(calibrations(trace)).policy(value)


def check_same_unless_tied(policy: ExitPolicy, trace: Trace, found: Outcome, exits: torch.Tensor) -> None:
    """Settled samples stop where they should, and all predict what the trace says where they stop."""
    assert_same_exits(policy, trace, found.exit_timesteps, exits)
    assert same(found, outcome_at(trace, found.exit_timesteps))


def same(a: Outcome, b: Outcome) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("exit_timesteps", "predictions", "forced"))


class Asked(ExitPolicy):
    """Stops what ``stops`` says, and keeps every Evidence it was shown."""

    def __init__(self, stops: Callable[[Evidence], Any] = lambda e: torch.zeros(len(e.total), dtype=torch.bool)):
        self.stops = stops
        self.started: list[Evidence] = []
        self.shown: list[Evidence] = []

    def start(self, evidence: Evidence) -> State:
        self.started.append(evidence)
        return {}

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        self.shown.append(evidence)
        return self.stops(evidence), state


def test_no_public_name_is_shadowed_by_the_module_it_comes_from():
    names = [name for name in bench_core.__all__ if isinstance(getattr(bench_core, name), types.ModuleType)]
    assert names == []


# The same in any order and batch


@every_family
@given(trace=traces(samples=30, timesteps=7, classes=8, least_timesteps=2), batch=st.integers(1, 12))
@quick
def test_no_result_depends_on_the_batch_size(name, trace, batch):
    policy = fitted(name, trace)
    found = replay_policy(policy, trace, batch=batch)
    check_same_unless_tied(policy, trace, found, replay_policy(policy, trace).exit_timesteps)


@every_family
@given(trace=traces(samples=30, timesteps=7, classes=8, least_timesteps=2), rng=st.randoms(use_true_random=False))
@quick
def test_permuting_the_samples_permutes_the_outcomes(name, trace, rng):
    order = list(range(len(trace)))
    rng.shuffle(order)
    index = torch.tensor(order)
    policy, permuted = fitted(name, trace), trace.select(index)
    whole = replay_policy(policy, trace)
    check_same_unless_tied(policy, permuted, replay_policy(policy, permuted), whole.exit_timesteps[index])


@every_family
def test_rounding_decides_of_few_samples(name):
    """So that the tests above aren't empty."""
    trace, other = (make_trace("normal", seed, 200, 7, 8, torch.float64) for seed in (20, 21))
    policy = fitted(name, trace)
    assert settled(policy, other).double().mean() > 0.98
    exits = replay_policy(policy, other).exit_timesteps
    assert len(exits.unique()) > 1 or name == "fixed"
    late = exits.clone()
    late[settled(policy, other).nonzero()[0]] += 1
    with pytest.raises(AssertionError, match=r"samples \[\d+\]: "):
        assert_same_exits(policy, other, late, exits)


@given(trace=traces(samples=20, timesteps=5, classes=4), batch=st.integers(1, 9))
@quick
def test_the_score_table_does_not_depend_on_the_batch_size(trace, batch):
    strategy = DtSnn()
    found, expected = score_table(strategy, trace, batch=batch), score_table(strategy, trace)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


# What a decision is shown


@given(traces(samples=12, timesteps=6, classes=6))
@quick
def test_evidence_is_the_logits_so_far_in_float64(trace):
    policy = Asked()
    replay_policy(policy, trace)
    samples = samples_of(trace)
    assert [(e.t, e.T) for e in policy.shown] == [(t, trace.timesteps) for t in range(1, trace.timesteps)]
    for evidence in policy.shown:
        total = [rules.totals(sample)[evidence.t - 1] for sample in samples]
        assert evidence.step_logits.dtype == evidence.total.dtype == evidence.mean.dtype == torch.float64
        assert evidence.step_logits.tolist() == [sample[evidence.t - 1] for sample in samples]
        assert evidence.total.tolist() == total
        assert evidence.mean.tolist() == [[value / evidence.t for value in row] for row in total]


def test_a_policy_starts_once_a_batch_before_anything_is_known():
    trace = make_trace("normal", 1, 10, 3, 4)
    policy = Asked()
    replay_policy(policy, trace, batch=4)
    assert [(e.t, len(e.total)) for e in policy.started] == [(0, 4), (0, 4), (0, 2)]
    assert all(not e.total.any() and not e.step_logits.any() for e in policy.started)


def test_no_decision_is_asked_at_the_last_timestep_and_stopping_there_is_forced():
    trace = make_trace("normal", 2, 9, 4, 3)
    policy = Asked()
    outcome = replay_policy(policy, trace)
    assert [e.t for e in policy.shown] == [1, 2, 3]
    assert outcome.exit_timesteps.tolist() == [4] * 9
    assert outcome.forced.tolist() == [True] * 9
    assert torch.equal(outcome.predictions, trace.predictions[:, 3])


def test_no_decision_is_asked_with_one_timestep():
    policy = Asked(lambda evidence: pytest.fail("asked"))
    assert replay_policy(policy, make_trace("normal", 3, 5, 1, 3)).forced.tolist() == [True] * 5


def test_a_stopped_sample_is_not_asked_about_again_and_not_forced():
    trace = make_trace("normal", 4, 8, 5, 3)
    policy = Asked(lambda evidence: torch.arange(len(evidence.total)) % 2 == 0)
    outcome = replay_policy(policy, trace)
    assert [len(e.total) for e in policy.shown] == [8, 4, 2, 1]
    assert outcome.exit_timesteps.tolist() == [1, 2, 1, 3, 1, 2, 1, 4]
    assert not outcome.forced.any()


def test_static_t_never_stops_early():
    trace = make_trace("saturated", 5, 7, 4, 3)
    assert replay_policy(NeverExit(), trace).exit_timesteps.tolist() == [4] * 7


@given(traces(samples=30, timesteps=3, classes=3), st.integers(0, 2**70))
@quick
def test_uniform_is_the_reference_hash_of_sample_and_salt(trace, salt):
    policy = Asked()
    replay_policy(policy, trace)
    assert policy.started[0].uniform(salt).tolist() == [rules.uniform(i, salt) for i in trace.sample_ids.tolist()]


def test_uniform_numbers_of_different_salts_are_unrelated():
    trace = Trace(torch.zeros(2000, 1, 2), torch.zeros(2000, dtype=torch.int64), torch.arange(2000))
    policy = Asked()
    replay_policy(policy, trace)
    draws = torch.stack([policy.started[0].uniform(salt) for salt in range(4)])
    correlations = torch.corrcoef(draws) - torch.eye(4)
    assert correlations.abs().max() < 5 / math.sqrt(2000)
    assert draws.mean(1).tolist() == pytest.approx([0.5] * 4, abs=5 * math.sqrt(1 / 12 / 2000))
    assert draws.min() >= 0
    assert draws.max() < 1


# State goes with its samples


class Ledger(ExitPolicy):
    """Keeps its own S_t and step count in its state and stops on a coin: out of step with the evidence, it fails."""

    def start(self, evidence: Evidence) -> State:
        batch = len(evidence.total)
        return {
            "sum": evidence.total.clone(),
            "asked": torch.zeros(batch, dtype=torch.int64),
            "empty": torch.ones(batch, 0),
        }

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        batch = len(evidence.total)
        assert {name: len(values) for name, values in state.items()} == dict.fromkeys(("sum", "asked", "empty"), batch)
        assert (state["asked"] == evidence.t - 1).all()
        total = state["sum"] + evidence.step_logits
        assert torch.equal(total, evidence.total)
        return evidence.uniform(evidence.t) < 0.4, {**state, "sum": total, "asked": state["asked"] + 1}


@given(trace=traces(samples=40, timesteps=9, classes=5), batch=st.sampled_from((3, 4096)))
@quick
def test_state_is_compacted_with_the_samples_it_belongs_to(trace, batch):
    exits = replay_policy(Ledger(), trace, batch=batch).exit_timesteps.tolist()
    for sample, found in zip(trace.sample_ids.tolist(), exits, strict=True):
        coins = [rules.uniform(sample, t) for t in range(1, trace.timesteps)]
        assert found == rules.first_below([*coins, 0.0], 0.4)


def test_the_controller_says_which_samples_stop_and_which_go_on():
    policy = Asked(lambda evidence: torch.tensor([True, False, True, False])[: len(evidence.total)] & (evidence.t == 2))
    controller = ExitController(policy, torch.arange(4), 4, 3)
    logits = torch.eye(4, 3)
    assert controller.observe(logits) is None
    parting = controller.observe(logits)
    assert (parting.stop.tolist(), parting.go_on.tolist()) == ([0, 2], [1, 3])
    assert controller.unfinished.tolist() == [1, 3]
    assert controller.observe(logits[[1, 3]]) is None
    parting = controller.observe(logits[[1, 3]])
    assert (parting.stop.tolist(), parting.go_on.tolist()) == ([0, 1], [])
    assert controller.outcome.exit_timesteps.tolist() == [2, 4, 2, 4]
    assert controller.outcome.forced.tolist() == [False, True, False, True]


class Tape:
    """A network that says what a trace says, to the samples it still holds."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.steps, self.held = trace, 0, torch.arange(len(trace))

    def reset(self) -> None:
        self.steps, self.held = 0, torch.arange(len(self.trace))

    def step(self, frame: torch.Tensor) -> torch.Tensor:
        assert frame.flatten().tolist() == self.held.tolist()
        self.steps += 1
        return self.trace.logits[self.held, self.steps - 1]

    def keep(self, index: torch.Tensor) -> None:
        self.held = self.held[index]


@every_family
@pytest.mark.parametrize("constant", [True, False])
def test_a_live_run_stops_where_replay_of_what_it_saw_stops(name, constant):
    trace = make_trace("mixed", 6, 40, 5, 4)
    policy, network = fitted(name, trace), Tape(trace)
    frames = torch.arange(40).reshape(40, 1, 1, 1)
    inputs = frames if constant else frames.expand(5, 40, 1, 1, 1)
    found = run_live(network, LiveSamples(inputs, trace.sample_ids, 5, 4, constant), policy)
    expected = replay_policy(policy, trace)
    assert same(found, expected)
    assert network.steps == int(expected.exit_timesteps.max())


# What is refused


def nan_at_two(evidence: Evidence) -> torch.Tensor:
    score = torch.zeros(len(evidence.total), dtype=torch.float64)
    if evidence.t == 2:
        score[-1] = math.nan
    return score


ODD_SCORES = {
    "NaN": (nan_at_two, "plugin odd: score is NaN at timestep 2"),
    "a row too few": (lambda e: e.total[1:, 0], "plugin odd: score must be a tensor"),
    "a column": (lambda e: e.total[:, :1], "plugin odd: score must be a tensor"),
    "one number": (lambda e: 0.5, "plugin odd: score must be a tensor"),
    "an array": (lambda e: e.total[:, 0].numpy(), "plugin odd: score must be a tensor"),
}


@pytest.mark.parametrize("kind", ODD_SCORES)
def test_a_score_that_is_none_is_refused_by_replay_and_by_the_sweep(kind):
    make, message = ODD_SCORES[kind]
    trace = make_trace("normal", 7, 5, 4, 3)
    with pytest.raises(PluginError, match=message):
        replay_policy(ScorePolicy(Odd(make), 1e9), trace)
    with pytest.raises(PluginError, match=message):
        score_table(Odd(make), trace)


@pytest.mark.parametrize(
    "answer",
    [
        lambda e: torch.zeros(len(e.total) - 1, dtype=torch.bool),
        lambda e: torch.zeros(len(e.total), 1, dtype=torch.bool),
        lambda e: torch.tensor(False),
        lambda e: torch.zeros(len(e.total)),
        lambda e: torch.zeros(len(e.total), dtype=torch.int64),
        lambda e: torch.zeros(0, dtype=torch.bool),
    ],
    ids=["a row too few", "a column", "one for all", "floats", "integers", "nothing"],
)
def test_an_answer_of_the_wrong_shape_or_type_is_refused(answer):
    with pytest.raises(PluginError, match=r"plugin Asked: should_exit must give bool \[5\]"):
        replay_policy(Asked(answer), make_trace("normal", 8, 5, 3, 3))


@pytest.mark.parametrize(
    "answer",
    [lambda e: [False] * len(e.total), lambda e: np.zeros(len(e.total), dtype=bool), lambda e: False, lambda e: None],
    ids=["a list", "an array", "a bool", "None"],
)
def test_an_answer_that_is_no_tensor_is_refused_by_name(answer):
    with pytest.raises(PluginError, match=r"plugin Asked: should_exit must give bool \[5\]"):
        replay_policy(Asked(answer), make_trace("normal", 8, 5, 3, 3))


class Keeps(ExitPolicy):
    """Stops the first sample at t = 1 and gives back a state of any making."""

    def __init__(self, state: Callable[[int], Any]) -> None:
        self.state = state

    def start(self, evidence: Evidence) -> State:
        return {"seen": torch.zeros(len(evidence.total))}

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        batch = len(evidence.total)
        return torch.arange(batch) == 0, self.state(batch)


@pytest.mark.parametrize(
    "state",
    [
        lambda batch: {"seen": torch.zeros(batch + 3)},
        lambda batch: {"seen": torch.zeros(batch - 1)},
        lambda batch: {"seen": torch.tensor(0.0)},
        lambda batch: {"seen": [0.0] * batch},
        lambda batch: None,
    ],
    ids=["rows too many", "already compacted", "no rows", "a list", "None"],
)
def test_a_state_without_a_row_for_each_sample_is_refused_by_name(state):
    with pytest.raises(PluginError, match="plugin Keeps"):
        replay_policy(Keeps(state), make_trace("normal", 9, 5, 4, 3))


def test_inputs_are_refused_to_a_policy_that_does_not_declare_them():
    with pytest.raises(PluginError, match="without declaring"):
        replay_policy(Asked(lambda evidence: evidence.inputs), make_trace("normal", 10, 3, 3, 3))


@pytest.mark.parametrize("batch", [4, 4096])
def test_a_policy_sees_the_inputs_of_its_own_samples_and_no_frame_after_t(batch):
    trace = make_trace("normal", 11, 10, 4, 3)
    most: list[int] = []

    def frames(positions: torch.Tensor, count: int) -> torch.Tensor:
        most.append(count)
        return positions[:, None].expand(-1, count).reshape(-1, count, 1, 1, 1).float()

    class Looks(ExitPolicy):
        def start(self, evidence: Evidence) -> State:
            return {"mine": evidence.inputs[:, 0].flatten()}

        def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
            assert tuple(evidence.inputs.shape[:2]) == (len(evidence.total), evidence.t)
            assert torch.equal(evidence.inputs[:, -1].flatten(), state["mine"])
            return state["mine"] % 3 == evidence.t - 1, state

    outcome = replay_policy(Looks(), trace, frames, batch=batch)
    assert outcome.exit_timesteps.tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert max(most) == 3


# A policy that looks behind the curtain


def reachable(root: object) -> Iterator[object]:
    """Every object that can be walked to from ``root``: attributes, containers, closures, tensors' bases and storages.

    Modules, classes and a function's globals are left out: from there all of Python can be reached by anybody.
    """
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, (types.ModuleType, type, str, bytes, int, float)):
            continue
        seen[id(found)] = found
        yield found
        if isinstance(found, types.FunctionType):
            waiting += [found.__closure__, found.__defaults__, found.__kwdefaults__, found.__dict__]
        else:
            waiting += gc.get_referents(found)
        if isinstance(found, torch.Tensor):
            waiting += [found._base, found.grad_fn, found.grad]


def readable_numbers(root: object) -> Iterator[list[float]]:
    """The whole storage behind every reachable tensor, read as each type of number it could hold."""
    for tensor in [found for found in reachable(root) if isinstance(found, torch.Tensor)]:
        raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        for dtype in (torch.float32, torch.float64, torch.int64):
            yield raw[: len(raw) // 8 * 8].view(dtype).tolist()


class Burglar(ExitPolicy):
    """Walks everything behind its evidence and state, looking for logits of later timesteps and for the labels."""

    def __init__(self, trace: Trace) -> None:
        self.logits = trace.logits.to(torch.float64).clone()
        self.labels = trace.labels.tolist()
        self.loot: set[str] = set()
        self.searched = 0

    def search(self, evidence: Evidence, state: State) -> None:
        later = set(self.logits[:, evidence.t :].flatten().tolist())
        labels = ",".join(map(str, self.labels))
        for numbers in readable_numbers((evidence, state)):
            self.searched += len(numbers)
            if not later.isdisjoint(numbers):
                self.loot.add(f"future logits at timestep {evidence.t}")
            if labels in ",".join(map(str, numbers)):
                self.loot.add("labels")
        for found in reachable((evidence, state)):
            if isinstance(found, (Trace, ImageSplit, ExitController)):
                self.loot.add(type(found).__name__)

    def start(self, evidence: Evidence) -> State:
        self.search(evidence, {})
        return {"coin": evidence.uniform(0)}

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        self.search(evidence, state)
        return state["coin"] * 6 < evidence.t, state


@pytest.fixture(params=["float32", "float64", "from a file", "float64 from a file"])
def guarded(request, tmp_path) -> Trace:
    """A trace whose logits are all different and whose labels can't be mistaken for anything else."""
    dtype = torch.float64 if "float64" in request.param else torch.float32
    trace = make_trace("normal", 12, 30, 5, 3, dtype)
    if "file" in request.param:
        save_trace(trace, tmp_path / "guarded.safetensors")
        trace = load_trace(tmp_path / "guarded.safetensors")
    return trace


@pytest.mark.parametrize("batch", [7, 4096])
def test_a_policy_can_reach_neither_later_logits_nor_labels(guarded, batch):
    burglar = Burglar(guarded)
    exits = replay_policy(burglar, guarded, batch=batch).exit_timesteps
    assert burglar.searched > 0
    assert len(set(exits.tolist())) > 2
    assert burglar.loot == set()


@pytest.mark.parametrize("batch", [7, 4096])
def test_a_score_can_reach_neither_later_logits_nor_labels(guarded, batch):
    burglar = Burglar(guarded)

    def score(evidence: Evidence) -> torch.Tensor:
        burglar.search(evidence, {})
        return evidence.total[:, 0]

    score_table(Odd(score), guarded, batch=batch)
    assert burglar.searched > 0
    assert burglar.loot == set()


class Pictures(Dataset):
    """Four grey values a sample."""

    name: ClassVar[str] = "pictures"
    classes: ClassVar[int] = 3
    input_shape: ClassVar[tuple[int, int, int]] = (1, 2, 2)
    constant_input: ClassVar[bool] = True
    licence: ClassVar[str] = "none"
    reference: ClassVar[str] = "a test"
    identity: ClassVar[dict[str, Any]] = {"name": "pictures"}

    def split(self, name: str) -> ImageSplit:
        raise NotImplementedError

    def encode(self, images: torch.Tensor, timesteps: int, frames: int | None = None) -> torch.Tensor:
        return images.float()


def test_a_policy_that_looks_at_inputs_can_not_reach_the_labels_through_them():
    trace = make_trace("normal", 13, 30, 4, 3)
    images = torch.arange(120, dtype=torch.uint8).reshape(30, 1, 2, 2)
    split = ImageSplit("test", images, trace.labels, trace.sample_ids)
    burglar = Burglar(trace)
    replay_policy(burglar, trace, Pictures().frames(split, 4))
    assert burglar.loot == set()


def test_the_burglar_finds_what_is_left_open():
    trace = make_trace("normal", 14, 10, 3, 3)
    burglar = Burglar(trace)
    burglar.search(Evidence(1, 3, trace.logits[:, 0], trace.logits[:, 0].clone(), trace.sample_ids), {})
    assert burglar.loot == {"future logits at timestep 1"}
    burglar.loot.clear()
    read = {"labels": trace.labels[:2]}
    secret = torch.zeros(10, 3, dtype=torch.float64)
    burglar.search(Evidence(1, 3, secret, secret, trace.sample_ids, lambda: read), {})
    assert burglar.loot == {"labels"}


def vandalise(evidence: Evidence) -> None:
    """Do in place what softmax code often does: shift, scale, exponentiate."""
    for logits in (evidence.step_logits, evidence.total):
        logits.sub_(logits.amax(1, keepdim=True)).exp_().neg_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_policy_that_writes_into_its_evidence_changes_no_prediction_and_no_trace(dtype):
    trace = make_trace("strong", 15, 30, 5, 3, dtype)
    before = trace.digest

    def stops(evidence: Evidence) -> torch.Tensor:
        vandalise(evidence)
        return evidence.uniform(evidence.t) < 0.3

    outcome = replay_policy(Asked(stops), trace)
    fresh = make_trace("strong", 15, 30, 5, 3, dtype)
    expected = fresh.predictions.gather(1, outcome.exit_timesteps[:, None] - 1).flatten()
    assert fresh.digest == before == Trace(trace.logits, trace.labels, trace.sample_ids).digest
    assert torch.equal(outcome.predictions, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_that_writes_into_its_evidence_changes_no_later_score_and_no_trace(dtype):
    trace = make_trace("strong", 16, 30, 5, 3, dtype)
    before = trace.digest

    def score(evidence: Evidence) -> torch.Tensor:
        total = evidence.total[:, 0].clone()
        vandalise(evidence)
        return total

    expected = torch.cat([totals[:, :-1, 0] for _, totals in make_trace("strong", 16, 30, 5, 3, dtype).totals()])
    assert torch.equal(score_table(Odd(score), trace), expected)
    assert Trace(trace.logits, trace.labels, trace.sample_ids).digest == before

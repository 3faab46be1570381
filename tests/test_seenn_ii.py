"""SEENN-II: its objective against loops, both ways to the same optimum, training on any split, joint tuning."""

import pytest
import torch
from bench_plugins.seenn_ii import (
    LARGEST_WEIGHT,
    PlannedByNetwork,
    PolicyNetwork,
    SeennIIJoint,
    expected_loss,
    reinforce_loss,
    rewards,
    sample_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bench_core import SpikingNetwork, TrainingBatch, UsageError
from bench_core.replay.controller import replay_policy
from bench_core.run.artifacts import Workload, spiking_network, trained_weights
from bench_core.run.suite import WorkloadSpec
from bench_core.store.local import Store
from bench_core.training import Recipe, RegularizerSpec, train_network
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import tiny_registry
from tests.helpers.tiny_plugin import TinyConv, TinyShapes
from tests.reference import policies as reference
from tests.reference import rules
from tests.traces import samples_of, traces


@given(
    correct=st.integers(1, 5).flatmap(
        lambda steps: st.lists(st.lists(st.integers(0, 1), min_size=steps, max_size=steps), min_size=1, max_size=6)
    ),
    beta=st.sampled_from([0.25, 1.0, 4.0, 64.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_objective_is_the_exact_expected_reward_with_clamped_weights(correct, beta, seed):
    torch.manual_seed(seed)
    scores = torch.randn(len(correct), len(correct[0]), dtype=torch.float64)
    bits = torch.tensor(correct, dtype=torch.float64)
    found = expected_loss(scores, rewards(bits, beta), sample_weights(bits))
    expected = reference.objective(scores.tolist(), correct, beta, LARGEST_WEIGHT)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(trace=traces(samples=8, classes=4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_sample_stops_where_the_policy_network_prefers(trace, seed):
    torch.manual_seed(seed)
    network = PolicyNetwork(1, trace.timesteps).eval()
    images = torch.randn(len(trace), 1, 1, 8, 8)  # [N, F, C, H, W]
    with torch.no_grad():
        scores = network(images[:, 0]).double().tolist()
    outcome = replay_policy(PlannedByNetwork(network, 1.0), trace, lambda positions, _frames: images[positions])
    exits = [reference.planned_exit(row) for row in scores]
    assert outcome.exit_timesteps.tolist() == exits
    said = [rules.predictions(sample)[t - 1] for sample, t in zip(samples_of(trace), exits, strict=True)]
    assert outcome.predictions.tolist() == said


def test_a_one_step_accuracy_of_one_does_not_blow_the_weights_up():
    assert sample_weights(torch.ones(50, 3)).tolist() == [1.0] * 50
    nearly = torch.ones(1000, 3)
    nearly[0, 0] = 0
    assert sample_weights(nearly).max() == LARGEST_WEIGHT


def test_sampled_and_exact_rewards_have_the_same_optimum():
    """Four kinds of inputs, one row of scores each; both objectives find the best action of every kind."""
    correct = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.float32)
    reward, weight = rewards(correct, 1.0), sample_weights(correct)
    kinds = torch.arange(4).repeat(64)
    found = []
    for loss in (expected_loss, reinforce_loss):
        torch.manual_seed(0)
        scores = torch.zeros(4, 4, requires_grad=True)
        optimizer = torch.optim.SGD([scores], lr=1.0)
        for _ in range(600):
            optimizer.zero_grad()
            loss(scores[kinds], reward[kinds], weight[kinds]).backward()
            optimizer.step()
        found.append(scores.detach().softmax(1))
    for chances in found:
        assert chances[:3].argmax(1).tolist() == reward[:3].argmax(1).tolist() == [0, 1, 3]
        assert (chances[:3].max(1).values > 0.9).all()
    best = reward.max(1).values.sum()
    for chances in found:
        assert (chances * reward).sum().item() == pytest.approx(best.item(), abs=0.15)


def test_the_sampled_gradient_is_the_exact_one_on_average():
    torch.manual_seed(1)
    correct = (torch.rand(6, 3) < 0.6).double()
    reward, weight = rewards(correct, 2.0), sample_weights(correct)
    scores = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(expected_loss(scores, reward, weight), scores)
    draws = 40_000
    many = scores.repeat(draws, 1)
    (sampled,) = torch.autograd.grad(reinforce_loss(many, reward.repeat(draws, 1), weight.repeat(draws)), scores)
    assert torch.allclose(sampled, exact, atol=0.02 * float(exact.abs().max()) + 1e-3)


JOINT = {"name": "seenn-ii-joint", "weight": 1.0, "parameters": {"beta": 1.0}}


def batch_of(timesteps=3):
    torch.manual_seed(0)
    logits = torch.randn(timesteps, 8, 4, requires_grad=True)
    labels = torch.arange(8) % 4
    joint = SeennIIJoint(beta=1.0)
    return joint, TrainingBatch(
        torch.randn(8, 1, 8, 8), [], logits, labels, joint.companion((1, 8, 8), timesteps).eval()
    )


def test_the_joint_loss_is_both_terms_by_loops():
    joint, batch = batch_of()
    chances = batch.companion(batch.inputs).softmax(1).tolist()
    total = batch.logits.detach().double().cumsum(0)
    bits = (total.argmax(2) == batch.labels).T.float()
    weights = sample_weights(bits).tolist()
    expected = 0.0
    for i, label in enumerate(batch.labels.tolist()):
        for k in range(3):
            error = F.cross_entropy(total[k, i] / (k + 1), torch.tensor(label)).item()
            right = bits[i, k].item()
            expected += chances[i][k] * (error + weights[i] * ((1 - right) - 2.0**-k * right)) / 8
    assert joint.loss(batch).item() == pytest.approx(expected, rel=1e-5)


def test_network_and_policy_both_get_gradients():
    joint, batch = batch_of()
    joint.loss(batch).backward()
    assert (batch.logits.grad.abs().sum((1, 2)) > 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in batch.companion.head.parameters())


def workload(**recipe):
    parts = {"name": "tiny", "dataset": "tiny-shapes", "model": "tiny-conv", "timesteps": 4}
    spec = WorkloadSpec.model_validate({**parts, "recipe": {"epochs": 2, "batch_size": 50, **recipe}})
    return Workload.resolve(spec, tiny_registry())


def test_a_branch_goes_on_from_its_trunk_and_shares_it(tmp_path, capfd):
    store = Store(tmp_path, zoo=None)
    trunk = workload(epochs=3)
    joint = workload(learning_rate=0.01, regularizer=JOINT, trunk={"epochs": 3, "batch_size": 50})
    plain = workload(learning_rate=0.01, trunk={"epochs": 3, "batch_size": 50})
    assert (
        len({trunk.training_key, joint.training_key, plain.training_key, workload(learning_rate=0.01).training_key})
        == 4
    )
    assert joint.trunk.training_key == trunk.training_key
    start = trained_weights(trunk, store)
    capfd.readouterr()
    tuned = trained_weights(joint, store)
    trained_weights(plain, store)
    assert "(branch)" in capfd.readouterr().err
    distance = [(tuned.tensors[n] - t).abs().max().item() for n, t in start.tensors.items() if n.endswith("weight")]
    assert max(distance) > 0
    assert max(distance) < 0.5  # it went on, it did not start again
    assert not [name for name in tuned.tensors if "companion" in name]
    assert isinstance(spiking_network(joint, tuned, store), SpikingNetwork)


def test_a_trunk_with_another_normalisation_is_refused():
    with pytest.raises(ValueError, match=r"normalization = bn, but its trunk has tebn; they must agree"):
        workload(trunk={"epochs": 1, "normalization": "tebn"})


def test_joint_tuning_that_was_stopped_ends_the_same(tmp_path):
    dataset = TinyShapes()
    recipe = Recipe(epochs=3, batch_size=50, learning_rate=0.05, regularizer=RegularizerSpec(**JOINT))
    ends = []
    for folder, stops in (("unbroken", (3,)), ("stopped", (1, 3))):
        for epochs in stops:
            torch.manual_seed(1)
            network = TinyConv().spiking(dataset.input_shape, 4, constant_input=True)
            arguments = {"timesteps": 4, "seed": 1, "key": "k", "title": "train", "regularizer": SeennIIJoint(beta=1.0)}
            store = Store(tmp_path / folder, zoo=None)
            if epochs == 1:
                with pytest.raises(Interrupted):
                    train_network(
                        network,
                        Interrupting(dataset, 9),
                        dataset.split("train"),
                        recipe=recipe,
                        store=store,
                        **arguments,
                    )
            else:
                train_network(network, dataset, dataset.split("train"), recipe=recipe, store=store, **arguments)
        ends.append(network.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


class Interrupted(Exception):
    """What ends a training in the middle."""


class Interrupting:
    """A data set that raises after so many batches."""

    def __init__(self, dataset, batches):
        self._dataset, self._left = dataset, batches

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def encode(self, images, timesteps):
        self._left -= 1
        if self._left < 0:
            raise Interrupted
        return self._dataset.encode(images, timesteps)


def test_a_policy_can_be_trained_on_training_data(tmp_path):
    """The trace of the training split as calibration: its inputs are found."""
    from bench_core.run.artifacts import recorded_trace
    from bench_core.trace.files import save_trace
    from bench_core.workflows.replay_files import replay_files  # where it is used

    store, found = Store(tmp_path / "store", zoo=None), workload(epochs=6)
    weights = trained_weights(found, store)
    for split in ("train", "test"):
        save_trace(recorded_trace(found, weights, split, store), tmp_path / f"{split}.safetensors")
    result = replay_files(
        tmp_path / "train.safetensors",
        tmp_path / "test.safetensors",
        "seenn-ii",
        registry=tiny_registry(),
        settings={"beta": "1", "epochs": "2"},
        store=store,
    )
    assert 1.0 <= result.outcome.exit_timesteps.double().mean() <= 4.0


def test_a_negative_beta_is_refused():
    with pytest.raises(UsageError, match=r"seenn-ii-joint: beta = -1 is outside \(0, inf\)"):
        SeennIIJoint(beta=-1)
    assert PolicyNetwork(1, 4)(torch.zeros(2, 1, 28, 28)).shape == (2, 4)

"""RCS against its equations, the records that regularisers get, and regularised training."""

import math

import pytest
import torch
from bench_plugins.rcs import RCSForANN, RCSForSNN
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench_core import LayerRecord, Regularizer, TrainingBatch, UsageError
from bench_core.run.artifacts import Workload
from bench_core.run.suite import WorkloadSpec
from bench_core.snn import SpikingNeuron, lif_neuron
from bench_core.store.local import Store
from bench_core.training import Recipe, RegularizerSpec, train_network
from bench_core.training.regularizers import layer_records
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import tiny_registry
from tests.helpers.tiny_plugin import TinyConv, TinyShapes
from tests.reference import regularizers as reference

pytestmark = pytest.mark.numerics


def seen(layers, logits, labels):
    return TrainingBatch(torch.zeros(len(labels), 1, 2, 2), layers, logits, labels)


few = settings(max_examples=40, deadline=None)


def logits_for(right, timesteps, classes=3):
    """Logits [T, B, K] and labels [B] so that exactly the given samples are right at every timestep."""
    labels = torch.arange(len(right)) % classes
    said = torch.where(torch.tensor(right), labels, (labels + 1) % classes)
    return nn.functional.one_hot(said, classes).float().repeat(timesteps, 1, 1), labels


@given(right=st.lists(st.booleans(), min_size=1, max_size=5), layers=st.integers(1, 3), seed=st.integers(0, 999))
@few
def test_rcs_for_anns_is_peak_over_rms_of_the_worst_right_sample(right, layers, seed):
    torch.manual_seed(seed)
    currents = [torch.randn(1, len(right), 2, 3, 3, dtype=torch.float64) for _ in range(layers)]
    logits, labels = logits_for(right, 1)
    loss = RCSForANN().loss(seen([LayerRecord(z, z.relu()) for z in currents], logits, labels))
    expected = reference.peak_over_rms([z[0].flatten(1).tolist() for z in currents], right)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@given(
    right=st.lists(st.booleans(), min_size=1, max_size=4),
    timesteps=st.integers(1, 8),
    n=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    threshold=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 999),
)
@few
def test_rcs_for_snns_is_one_over_the_cosine_of_the_worst_right_sample(right, timesteps, n, threshold, seed):
    torch.manual_seed(seed)
    shape = (timesteps, len(right), 2, 3)
    made = [((torch.rand(shape) < 0.4).double(), torch.randn(shape, dtype=torch.float64)) for _ in range(2)]
    logits, labels = logits_for(right, timesteps)
    records = [LayerRecord(u, s, u, threshold) for s, u in made]
    loss = RCSForSNN(n=n).loss(seen(records, logits, labels))
    layers = [(s.flatten(2).tolist(), u.flatten(2).tolist(), threshold) for s, u in made]
    assert loss.item() == pytest.approx(
        reference.one_over_cosine(layers, right, max(1, int(n * timesteps))), rel=1e-9, abs=1e-12
    )


def test_only_samples_that_are_right_at_each_of_the_last_timesteps_count():
    spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]]])  # [T = 4, B = 1, 2]
    record = LayerRecord(spikes, spikes, torch.zeros_like(spikes), 1.0)
    labels = torch.tensor([0])
    wrong_early, wrong_late = (torch.tensor([[[1.0, 0.0]]] * 4) for _ in range(2))
    wrong_early[0] = wrong_early[0].flip(-1)
    wrong_late[2] = wrong_late[2].flip(-1)
    rcs = RCSForSNN(n=0.5)
    assert rcs.loss(seen([record], wrong_early, labels)).item() == pytest.approx(1 / (0.75 + 1e-5))
    assert rcs.loss(seen([record], wrong_late, labels)).item() == 0.0


def test_the_end_is_never_empty():
    """int(n T) = 0 is one timestep here; in the authors' code it is the whole sequence."""
    spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    record = LayerRecord(spikes, spikes, torch.zeros_like(spikes), 1.0)
    logits, labels = logits_for([True], 3)
    assert RCSForSNN(n=0.3).loss(seen([record], logits, labels)).item() == pytest.approx(1 / (1 / 3 + 1e-5))


def test_the_end_has_no_gradient():
    potential = torch.rand(4, 2, 5, dtype=torch.float64, requires_grad=True)
    spikes = torch.zeros(4, 2, 5, dtype=torch.float64)
    logits, labels = logits_for([True, True], 4)
    loss = RCSForSNN(n=0.3).loss(seen([LayerRecord(spikes, spikes, potential, 1.0)], logits, labels))
    (gradient,) = torch.autograd.grad(loss, potential)
    assert gradient[:3].abs().sum() > 0
    assert gradient[3].abs().max() < 1e-12  # there the activity is the end itself, with cosine 1


def test_rcs_for_snns_refuses_an_ann():
    logits, labels = logits_for([True], 1)
    with pytest.raises(UsageError, match=r"rcs-snn: it needs membrane potentials; for an ANN take rcs-ann"):
        RCSForSNN().loss(seen([LayerRecord(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))], logits, labels))


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_recorded_potentials_and_their_gradients_are_those_of_the_loop(reset):
    """The hand-written backward pass, with gradients that come in through every potential after the reset."""
    torch.manual_seed(2)
    current = (2 * torch.randn(5, 3, 4, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    neuron = SpikingNeuron(decay=0.6, threshold=0.8, reset=reset)
    neuron.keeps_potentials = True
    spikes = neuron(current)
    assert neuron.potentials.shape == current.shape
    (found,) = torch.autograd.grad((weights[0] * spikes).sum() + (weights[1] * neuron.potentials).sum(), current)

    total, potential = 0.0, torch.zeros(3, 4, dtype=torch.float64)
    for t in range(5):
        potential = 0.6 * potential + current[t]
        spike = TriangleSpike.apply(potential - 0.8)
        assert torch.equal(spike, spikes[t])
        potential = potential * (1 - spike) if reset == "hard" else potential - 0.8 * spike
        assert torch.allclose(potential, neuron.potentials[t], rtol=0, atol=1e-14)
        total = total + (weights[0, t] * spike).sum() + (weights[1, t] * potential).sum()
    (expected,) = torch.autograd.grad(total, current)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


class TriangleSpike(torch.autograd.Function):
    """A spike with the triangle for a gradient."""

    @staticmethod
    def forward(ctx, distance):
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (distance,) = ctx.saved_tensors
        return gradient * (1 - distance.abs()).clamp(min=0)


def test_records_hold_what_each_layer_of_neurons_saw_and_did():
    torch.manual_seed(0)
    network = TinyConv().spiking((1, 8, 8), 4, constant_input=True)
    with layer_records(network) as records:
        network.run(torch.randn(3, 1, 8, 8), 5)
    assert [tuple(record.output.shape) for record in records] == [(5, 3, 4, 8, 8), (5, 3, 8, 4, 4)]
    for record in records:
        assert record.threshold == 1.0
        assert record.potential.shape == record.current.shape == record.output.shape
        assert set(record.output.unique().tolist()) <= {0.0, 1.0}
        potential = torch.zeros_like(record.current[0])
        for t in range(5):
            potential = (0.5 * potential + record.current[t]) * (1 - record.output[t])
            assert torch.allclose(potential, record.potential[t], atol=1e-6)
    assert all(neuron.keeps_potentials is False for neuron in network.neurons())
    network.run(torch.randn(3, 1, 8, 8), 5)
    assert len(records) == 2  # nothing is collected outside the block


def test_records_of_an_ann_are_pre_activations():
    ann = TinyConv().analog((1, 8, 8), 4, nn.ReLU)
    with layer_records(ann) as records:
        ann(torch.randn(3, 1, 8, 8))
    assert [tuple(record.current.shape) for record in records] == [(1, 3, 4, 8, 8), (1, 3, 8, 4, 4)]
    assert all(torch.equal(record.output, record.current.relu()) and record.potential is None for record in records)


def spec(**recipe):
    parts = {"name": "tiny", "dataset": "tiny-shapes", "model": "tiny-conv", "timesteps": 4}
    return WorkloadSpec.model_validate({**parts, "recipe": {"epochs": 1, **recipe}})


class Total(Regularizer):
    """The sum of all spikes: something that training can push down."""

    name = "total"
    reference = "the tests"

    def loss(self, batch):
        return sum((layer.output.sum() + layer.potential.relu().sum()) for layer in batch.layers)


def test_the_term_is_added_with_its_weight(tmp_path):
    dataset = TinyShapes()
    means = []
    for number, weight in enumerate((None, 1e-4)):
        torch.manual_seed(1)
        network = TinyConv().spiking(dataset.input_shape, 4, constant_input=True)
        named = None if weight is None else RegularizerSpec(name="total", weight=weight)
        train_network(
            network,
            dataset,
            dataset.split("train"),
            timesteps=4,
            recipe=Recipe(epochs=6, batch_size=50, learning_rate=0.1, regularizer=named),
            seed=1,
            store=Store(tmp_path / str(number), zoo=None),
            key="k",
            title="train",
            regularizer=None if weight is None else Total(),
        )
        with torch.no_grad(), layer_records(network) as records:
            network.train().run(dataset.encode(dataset.split("test").images, 4), 4)
        means.append(sum(record.output.mean().item() for record in records))
    assert means[1] < 0.7 * means[0]


def test_a_suite_names_a_regulariser_with_its_knobs():
    registry = tiny_registry()
    plain = Workload.resolve(spec(), registry)
    assert plain.regularizer is None
    keys = {plain.training_key}
    for changes in ({}, {"weight": 0.002}, {"parameters": {"n": 0.5}}):
        named = {"name": "rcs-snn", "weight": 0.001, **changes}
        workload = Workload.resolve(spec(regularizer=named), registry)
        assert isinstance(workload.regularizer, RCSForSNN)
        keys.add(workload.training_key)
    assert len(keys) == 4
    with pytest.raises(UsageError, match=r"unknown regularizer 'rcs-sn' \(did you mean 'rcs-snn'\?\)"):
        Workload.resolve(spec(regularizer={"name": "rcs-sn", "weight": 1.0}), registry)
    with pytest.raises(UsageError, match=r"rcs-snn: n = 2 is outside \(0, 1\]"):
        Workload.resolve(spec(regularizer={"name": "rcs-snn", "weight": 1.0, "parameters": {"n": 2}}), registry)


def test_fields_that_came_later_count_only_where_they_are_set():
    plain = Recipe(epochs=1).identity
    assert set(plain) == {
        *("epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "loss", "shift", "flip"),
    }
    assert Recipe(epochs=1, normalization="tebn").identity == {**plain, "normalization": "tebn"}


@pytest.mark.parametrize("name", ["rcs-ann", "rcs-snn"])
def test_training_with_rcs_runs_resumes_and_stays_finite(tmp_path, name):
    dataset, recipe = TinyShapes(), Recipe(epochs=2, regularizer=RegularizerSpec(name=name, weight=0.002))
    rcs = {"rcs-ann": RCSForANN, "rcs-snn": RCSForSNN}[name]()
    torch.manual_seed(0)
    if name == "rcs-ann":
        network = TinyConv().analog(dataset.input_shape, 4, nn.ReLU)
    else:
        network = TinyConv().spiking(dataset.input_shape, 4, constant_input=True)
    history = train_network(
        network,
        dataset,
        dataset.split("train"),
        timesteps=4,
        recipe=recipe,
        seed=0,
        store=Store(tmp_path, zoo=None),
        key="k",
        title="train",
        regularizer=rcs,
    )
    assert all(math.isfinite(record.loss) for record in history)
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values() if tensor.is_floating_point())


def test_a_neuron_that_is_not_watched_keeps_no_potentials():
    neuron = lif_neuron()
    neuron(torch.randn(3, 2, 4, requires_grad=True))
    assert neuron.potentials is None

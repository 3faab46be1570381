"""Training: losses are their formulas, a stopped training ends like an unbroken one, conversion keeps its promise."""

import math
from itertools import pairwise

import pytest
import torch
from bench_plugins.qcfs import QCFS, QCFSActivation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench_core.digests import tensors_digest
from bench_core.errors import ExitBenchError, SuiteError, UsageError
from bench_core.snn import if_neuron
from bench_core.stages import Workload, trained_weights
from bench_core.store import Store
from bench_core.training import Recipe, Regularizer, RegularizerSpec, loop, train_network
from bench_core.training.augmentation import augment
from bench_core.training.losses import LOSSES, mean_cross_entropy, temporal_efficient_training
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import DIRECT, parsed_suite, tiny_registry
from tests.helpers.tiny_plugin import TinyConv, TinyEvents, TinyShapes

T, B, K = 3, 4, 5
KEY = "0" * 64

# --- losses ----------------------------------------------------------------------------------------------------------


def some_logits():
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(T, B, K, generator=generator, dtype=torch.float64)
    return logits, torch.tensor([2, 0, 4, 2])


def plain_cross_entropy(scores, label):
    return math.log(sum(math.exp(score) for score in scores)) - scores[label]


@pytest.mark.numerics
def test_mean_cross_entropy_is_of_the_mean_over_time():
    logits, labels = some_logits()
    expected = 0.0
    for sample in range(B):
        mean = [sum(logits[t, sample, k].item() for t in range(T)) / T for k in range(K)]
        expected += plain_cross_entropy(mean, labels[sample].item()) / B
    assert mean_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.numerics
def test_tet_is_cross_entropy_of_every_step_and_a_little_distance_to_one():
    logits, labels = some_logits()
    entropy = distance = 0.0
    for t in range(T):
        for sample in range(B):
            entropy += plain_cross_entropy(logits[t, sample].tolist(), labels[sample].item()) / (T * B)
            distance += sum((value - 1) ** 2 for value in logits[t, sample].tolist()) / (T * B * K)
    assert temporal_efficient_training(logits, labels).item() == pytest.approx(
        0.999 * entropy + 0.001 * distance, rel=1e-12
    )


@pytest.mark.numerics
def test_both_losses_agree_on_one_step_but_for_the_distance():
    logits, labels = some_logits()
    one = logits[:1]
    distance = (one - 1).square().mean()
    tet, plain = temporal_efficient_training(one, labels), mean_cross_entropy(one, labels)
    assert tet.item() == pytest.approx((0.999 * plain + 0.001 * distance).item(), rel=1e-12)


def test_losses_are_known_by_the_names_of_recipes():
    for name in LOSSES:
        assert Recipe(epochs=1, loss=name).loss == name


# --- augmentation ----------------------------------------------------------------------------------------------------


def images():
    return TinyShapes().split("train").images[:64]


def test_without_shift_and_flip_images_stay_as_they_are():
    assert torch.equal(augment(images(), torch.Generator().manual_seed(0), shift=0, flip=False), images())


def test_flipping_mirrors_about_half_of_the_images_and_changes_nothing_else():
    found = augment(images(), torch.Generator().manual_seed(0), shift=0, flip=True)
    mirrored = (found == images().flip(-1)).flatten(1).all(1)
    kept = (found == images()).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert 16 < mirrored.sum() < 48


def test_shifting_moves_every_image_as_a_whole_and_zeros_move_in():
    found = augment(images(), torch.Generator().manual_seed(0), shift=2, flip=False)
    shifts = set()
    for before, after in zip(images()[:, 0], found[:, 0], strict=True):
        for down in range(-2, 3):
            for right in range(-2, 3):
                moved = torch.zeros_like(before)
                moved[max(0, down) : 8 + min(0, down), max(0, right) : 8 + min(0, right)] = before[
                    max(0, -down) : 8 + min(0, -down), max(0, -right) : 8 + min(0, -right)
                ]
                if torch.equal(moved, after):
                    shifts.add((down, right))
                    break
            else:
                continue
            break
        else:
            pytest.fail("an image that is no shift of the original")
    assert len(shifts) > 15


def test_augmentation_is_decided_by_the_generator_alone():
    one, two = (augment(images(), torch.Generator().manual_seed(7), shift=2, flip=True) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, augment(images(), torch.Generator().manual_seed(8), shift=2, flip=True))


# --- the loop --------------------------------------------------------------------------------------------------------

RECIPE = Recipe(epochs=4, batch_size=64, learning_rate=0.1, shift=1, flip=True)


def train(store, recipe=RECIPE, *, dataset=None, network=None, seed=5, timesteps=T, regularizer=None):
    """A trained tiny network and its history."""
    dataset = dataset or TinyShapes()
    if network is None:
        torch.manual_seed(seed)
        network = TinyConv().spiking(dataset.input_shape, 4, constant_input=dataset.constant_input)
    history = train_network(
        network,
        dataset,
        dataset.split("train"),
        timesteps=timesteps,
        recipe=recipe,
        seed=seed,
        store=store,
        key=KEY,
        title="train",
        regularizer=regularizer,
    )
    return network, history


@pytest.fixture
def stores(tmp_path):
    """Empty stores, one after the other."""
    return (Store(tmp_path / f"store{number}", zoo=None) for number in range(9))


def test_in_bfloat16_the_layers_compute_coarsely_and_weights_losses_and_records_stay_float32(stores):
    class Watching(Regularizer):
        name = "watching"
        reference = "none"

        def loss(self, batch):
            seen.update(tensor.dtype for layer in batch.layers for tensor in (layer.current, layer.output))
            seen.update((batch.logits.dtype, batch.layers[0].potential.dtype))
            return batch.logits.sum() * 0.0

    seen, computed = set(), set()
    recipe = RECIPE.model_copy(
        update={"precision": "bfloat16", "regularizer": RegularizerSpec(name="watching", weight=1.0)}
    )
    torch.manual_seed(5)
    network = TinyConv().spiking(TinyShapes().input_shape, 4, constant_input=True)
    watch = next(iter(network.neurons())).register_forward_hook(lambda _m, _i, output: computed.add(output.dtype))
    _, history = train(next(stores), recipe, network=network, regularizer=Watching())
    watch.remove()
    assert computed == {torch.bfloat16}
    assert seen == {torch.float32}
    assert {tensor.dtype for tensor in network.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    exact, expected = train(next(stores))
    assert history[-1].accuracy == pytest.approx(expected[-1].accuracy, abs=0.1)
    assert tensors_digest(exact.state_dict()) != tensors_digest(network.state_dict())


class Stopped(Exception):
    """What ends a training in the middle."""


def stopping_after(monkeypatch, batches):
    """Make training raise in the middle of the batch behind so many."""
    real, seen = loop.augment, []

    def augmented(*arguments, **options):
        seen.append(1)
        if len(seen) > batches:
            raise Stopped
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "augment", augmented)


@pytest.mark.numerics
@pytest.mark.parametrize("dataset", [TinyShapes(), TinyEvents()], ids=lambda dataset: dataset.name)
@pytest.mark.parametrize("batches", [2, 6, 12, 23], ids=lambda batches: f"after {batches} batches")
def test_a_stopped_training_ends_like_an_unbroken_one(stores, monkeypatch, dataset, batches):
    unbroken, history = train(next(stores), dataset=dataset)
    store = next(stores)
    with monkeypatch.context() as patch:
        stopping_after(patch, batches)
        with pytest.raises(Stopped):
            train(store, dataset=dataset)
    resumed, again = train(store, dataset=dataset)
    assert again == history
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_what_was_trained_before_the_stop_is_not_trained_again(stores, monkeypatch):
    store = next(stores)
    with monkeypatch.context() as patch:
        stopping_after(patch, 13)
        with pytest.raises(Stopped):
            train(store)
    calls = []
    real = loop.augment
    monkeypatch.setattr(loop, "augment", lambda *a, **o: calls.append(1) or real(*a, **o))
    train(store)
    assert len(calls) == 2 * (400 // 64)


def test_a_damaged_checkpoint_is_named_and_training_starts_again(stores, monkeypatch, capfd):
    unbroken, _ = train(next(stores))
    store = next(stores)
    with monkeypatch.context() as patch:
        stopping_after(patch, 13)
        with pytest.raises(Stopped):
            train(store)
    path = store.path("training", KEY)
    path.write_bytes(path.read_bytes()[:-9])
    restarted, _ = train(store)
    assert str(path) in capfd.readouterr().err
    assert tensors_digest(restarted.state_dict()) == tensors_digest(unbroken.state_dict())


def test_training_learns(stores):
    _, history = train(next(stores), RECIPE.model_copy(update={"epochs": 12, "shift": 0, "flip": False}))
    assert history[-1].loss < 0.7 * history[0].loss
    assert history[-1].accuracy > 0.7


def test_an_incomplete_batch_is_dropped(stores, monkeypatch):
    seen = []
    real = TinyShapes.encode
    monkeypatch.setattr(TinyShapes, "encode", lambda self, x, t, f=None: seen.append(len(x)) or real(self, x, t, f))
    train(next(stores), RECIPE.model_copy(update={"epochs": 1}))
    assert sum(seen) == 6 * 64


def test_every_epoch_has_an_order_of_its_own_and_the_same_one_every_time(stores, monkeypatch):
    seen = []
    real = loop.augment
    monkeypatch.setattr(loop, "augment", lambda x, *a, **o: seen.append(x.sum((1, 2, 3)).tolist()) or real(x, *a, **o))
    for _ in range(2):
        train(next(stores), RECIPE.model_copy(update={"epochs": 3}))
    epochs = torch.tensor(seen).reshape(6, -1).tolist()
    assert epochs[:3] == epochs[3:]
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_another_seed_gives_another_network(stores):
    one, two = (train(next(stores), seed=seed)[0] for seed in (5, 6))
    assert tensors_digest(one.state_dict()) != tensors_digest(two.state_dict())


def test_training_without_momentum_works_and_resumes(stores, monkeypatch):
    recipe = RECIPE.model_copy(update={"momentum": 0.0, "epochs": 2})
    unbroken, _ = train(next(stores), recipe)
    store = next(stores)
    with monkeypatch.context() as patch:
        stopping_after(patch, 8)
        with pytest.raises(Stopped):
            train(store, recipe)
    resumed, _ = train(store, recipe)
    assert tensors_digest(resumed.state_dict()) == tensors_digest(unbroken.state_dict())


def test_a_batch_larger_than_the_split_is_refused_in_words(stores):
    with pytest.raises(ExitBenchError, match="batch_size"):
        train(next(stores), RECIPE.model_copy(update={"batch_size": 401}))


# --- QCFS ------------------------------------------------------------------------------------------------------------


def plain_qcfs(z, scale, levels):
    """lambda clip(floor(z L / lambda + 1/2) / L, 0, 1), written down from the paper."""
    return scale * min(max(math.floor(z * levels / scale + 0.5) / levels, 0.0), 1.0)


@settings(max_examples=200, deadline=None)
@given(
    z=st.integers(-64, 192).map(lambda n: n / 16),
    levels=st.sampled_from([1, 2, 4, 8]),
    scale=st.sampled_from([0.5, 1.0, 4.0, 8.0]),
)
def test_the_activation_is_clip_floor_shift(z, levels, scale):  # all of it exact in binary
    activation = QCFSActivation(levels, scale).double()
    assert activation(torch.tensor(z, dtype=torch.float64)).item() == plain_qcfs(z, scale, levels)


def test_the_activation_is_clip_floor_shift_for_any_levels():
    z = torch.linspace(-1.003, 4.007, 400, dtype=torch.float64)
    for levels in (3, 5, 7):
        found = QCFSActivation(levels, 2.9).double()(z).tolist()
        scale = float(torch.tensor(2.9))
        assert found == pytest.approx([plain_qcfs(x, scale, levels) for x in z.tolist()], abs=1e-12)


def test_the_gradient_goes_straight_through_the_floor():
    activation = QCFSActivation(4, 2.0).double()
    z = torch.tensor([-0.5, 0.1, 0.7, 1.3, 1.9, 2.5], dtype=torch.float64, requires_grad=True)
    activation(z).sum().backward()
    assert z.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    expected = sum(plain_qcfs(x, 2.0, 4) / 2.0 - (x / 2.0 if 0 <= x <= 2 else 0) for x in z.tolist())
    assert activation.scale.grad.item() == pytest.approx(expected)


@pytest.mark.numerics
@pytest.mark.parametrize("steps", [1, 4, 7, 32])
def test_an_integrate_and_fire_neuron_spikes_as_often_as_the_activation_says(steps):
    """Under constant current the mean output over T steps is the activation with L = T, the theorem behind QCFS."""
    z = torch.linspace(-0.513, 1.517, 97, dtype=torch.float64)
    spikes = if_neuron(0.75)(z.expand(steps, 1, -1))
    expected = [plain_qcfs(x, 0.75, steps) for x in z.tolist()]
    assert spikes.mean(0)[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_knobs_of_the_converter_reach_the_activation():
    activation = QCFS(levels="7", initial_scale="2.5").activation()
    assert activation.levels == 7
    assert activation.scale.item() == 2.5
    assert QCFS(initial_scale=3).activation().scale.item() == 3.0
    with pytest.raises(UsageError, match=r"qcfs: levels = 0 is outside \[1, inf\)"):
        QCFS(levels=0)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A trained ANN on the test split, and the spiking network made of it.

    Labels [N]; logits of the ANN [N, K], of the ANN with all but continuous activations [N, K], of each step [T, N, K].
    """
    dataset = TinyShapes()
    torch.manual_seed(3)
    converter = QCFS(levels=4, initial_scale=4.0)
    ann = TinyConv().analog(dataset.input_shape, 4, converter.activation)
    recipe = Recipe(epochs=25, batch_size=50, learning_rate=0.1)
    train(Store(tmp_path_factory.mktemp("store"), zoo=None), recipe, network=ann, timesteps=1)
    ann.eval()
    split = dataset.split("test")
    inputs = dataset.encode(split.images, 1)
    with torch.inference_mode():
        analog = ann(inputs)
        for layer in ann.layers:
            if isinstance(layer, QCFSActivation):
                layer.levels = 2**16
        continuous = ann(inputs)
        spiking = converter.convert(ann, inputs).prepare_for_inference().run(inputs, 256)
    return split.labels, analog, continuous, spiking


@pytest.mark.numerics
def test_a_converted_network_is_close_to_its_ann_after_4_l_steps(converted):
    labels, analog, _, spiking = converted
    accuracy = (analog.argmax(1) == labels).float().mean()
    assert accuracy > 0.8
    mean = spiking[:16].mean(0)
    assert (mean.argmax(1) == analog.argmax(1)).float().mean() > 0.88
    assert abs((mean.argmax(1) == labels).float().mean() - accuracy) < 0.05
    assert (mean - analog).abs().mean() < 0.25 * analog.std()


@pytest.mark.numerics
def test_with_more_steps_a_converted_network_comes_as_close_as_one_likes(converted):
    """Spike rates tend to the clipped current; what is left falls like 1 / T."""
    _, _, continuous, spiking = converted
    errors = [(spiking[:steps].mean(0) - continuous).abs().mean().item() for steps in (4, 16, 64, 256)]
    for before, after in pairwise(errors):
        assert after < 0.5 * before
    assert errors[-1] < 0.02 * continuous.std().item()


def test_the_thresholds_of_a_converted_network_are_the_learnt_scales():
    converter = QCFS(levels=4)
    ann = TinyConv().analog((1, 8, 8), 4, converter.activation)
    activations = [layer for layer in ann.layers if isinstance(layer, QCFSActivation)]
    for number, layer in enumerate(activations):
        nn.init.constant_(layer.scale, 1.0 + number)
    snn = converter.convert(ann, torch.zeros(1, 1, 8, 8))
    neurons = list(snn.neurons())
    assert [neuron.threshold for neuron in neurons] == [1.0, 2.0]
    assert [neuron.initial for neuron in neurons] == [0.5, 1.0]
    assert not [layer for layer in snn.modules() if isinstance(layer, QCFSActivation)]


def test_a_trunk_may_have_fewer_timesteps(tmp_path):
    """Time inheritance training: the trunk is the network that a workload with those timesteps would train."""
    recipe = DIRECT["recipe"]
    inherited = {**DIRECT, "recipe": {**recipe, "trunk": {**recipe, "timesteps": 1}}}
    same = {**DIRECT, "recipe": {**recipe, "trunk": {**recipe, "timesteps": DIRECT["timesteps"]}}}
    plain = {**DIRECT, "recipe": {**recipe, "trunk": recipe}}
    brief = {**DIRECT, "timesteps": 1}
    inherited, same, plain, brief = (
        Workload.resolve(parsed_suite(workloads=[one]).workloads[0], tiny_registry())
        for one in (inherited, same, plain, brief)
    )
    assert inherited.trunk.spec.timesteps == 1
    assert inherited.spec.timesteps == DIRECT["timesteps"] > 1
    assert inherited.trunk.training_key == brief.training_key
    assert same.training_key == plain.training_key != inherited.training_key
    store = Store(tmp_path, zoo=None)
    start = trained_weights(brief, store)
    weights = trained_weights(inherited, store)
    assert weights.metadata["trunk"]["key"] == start.metadata["key"]
    assert len(inherited.fresh_network().run(torch.zeros(2, *inherited.dataset.input_shape), inherited.spec.timesteps))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conversion": {"converter": "qcfs"}, "trunk": {"epochs": 1, "timesteps": 1}}, "of networks trained directly"),
        ({"normalization": "tebn", "trunk": {"epochs": 1, "normalization": "tebn", "timesteps": 1}}, "leave out"),
        ({"timesteps": 1}, "timesteps"),
        ({"trunk": {"epochs": 1, "timesteps": 0}}, "timesteps"),
    ],
)
def test_timesteps_of_a_trunk_that_cannot_be_are_refused(change, words):
    given = dict(change)
    conversion = {"conversion": given.pop("conversion")} if "conversion" in given else {}
    with pytest.raises(SuiteError, match=words):
        parsed_suite(workloads=[{**DIRECT, **conversion, "recipe": {**DIRECT["recipe"], **given}}])

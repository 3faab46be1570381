"""Training: losses are their formulas, a stopped training ends like an unbroken one, conversion keeps its promise."""

import math
from itertools import pairwise

import pytest
import torch
from bench_plugins.qcfs import QCFS, QCFSActivation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench_core.errors import ExitBenchError, SuiteError, UsageError
from bench_core.run.artifacts import Workload, trained_weights
from bench_core.snn import if_neuron
from bench_core.store.local import Store
from bench_core.training import Recipe, Regularizer, RegularizerSpec, compilation, loop, train_network
from bench_core.training.augmentation import augment
from bench_core.training.averaging import WeightAverage, estimate_statistics
from bench_core.training.losses import LOSSES, mean_cross_entropy, temporal_efficient_training
from bench_core.training.schedule import rate_factor
from bench_core.util.digests import tensors_digest
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


@pytest.mark.parametrize("name", LOSSES)
def test_smooth_labels_spread_a_share_of_the_target_over_all_classes(name):
    logits, labels = some_logits()
    hard = LOSSES[name](logits, labels, 0.0)
    assert torch.equal(hard, LOSSES[name](logits, labels))
    uniform = sum(LOSSES[name](logits, torch.full_like(labels, k), 0.0) for k in range(K)) / K
    assert LOSSES[name](logits, labels, 0.3).item() == pytest.approx((0.7 * hard + 0.3 * uniform).item(), rel=1e-12)


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


def test_at_a_reflecting_border_an_image_moves_in_that_is_its_own_mirror_image():
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    found = augment(images(), seeds[0], shift=3, flip=False, reflect=True)
    top, left = torch.randint(0, 7, (2, 64, 1, 1, 1), generator=seeds[1]).reshape(2, -1).tolist()
    assert len(set(top)) > 3
    for number, image in enumerate(images()[:, 0].tolist()):
        for row in range(8):
            for column in range(8):
                y, x = (7 - abs(7 - abs(place)) for place in (row + top[number] - 3, column + left[number] - 3))
                assert found[number, 0, row, column] == image[y][x]


def test_a_reflection_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match="8 x 8 have no reflection 8 pixels wide"):
        augment(images(), torch.Generator(), shift=8, flip=False, reflect=True)


def test_which_images_are_mirrored_may_be_given():
    mirrored = torch.arange(64) % 3 == 0
    found = augment(images(), torch.Generator(), shift=0, flip=mirrored)
    assert torch.equal(found[mirrored], images()[mirrored].flip(-1))
    assert torch.equal(found[~mirrored], images()[~mirrored])


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


# --- options of a recipe ---------------------------------------------------------------------------------------------

FAST = {
    "nesterov": {"nesterov": True},
    "linear": {"schedule": "linear", "warmup": 0.3},
    "label smoothing": {"label_smoothing": 0.2},
    "decay of weights": {"decayed": "weights", "weight_decay": 0.01},
    "average": {"average": 0.9},
    "alternating flips": {"flip": "alternating"},
    "reflected borders": {"border": "reflection"},
    "compiled": {"compile": True},
}
FAST["all"] = {name: value for option in FAST.values() for name, value in option.items()}


def with_options(options):
    return Recipe(**{**RECIPE.model_dump(), **options})


def tiny_ann():
    torch.manual_seed(5)
    return TinyConv().analog((1, 8, 8), 4, lambda: QCFSActivation(4, 2.0))


@pytest.fixture
def eager_compilation(monkeypatch):
    """Compilation that takes no compiler and no minute; the graph is traced all the same."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="eager"))
    monkeypatch.setattr(compilation.shutil, "which", lambda _name: "/bin/compiler")
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.usefixtures("eager_compilation")
def test_every_option_changes_the_weights_and_a_stopped_training_ends_like_an_unbroken_one(stores, monkeypatch, name):
    recipe = with_options(FAST[name])
    unbroken, history = train(next(stores), recipe, network=tiny_ann())
    store = next(stores)
    with monkeypatch.context() as patch:
        stopping_after(patch, 14)
        with pytest.raises(Stopped):
            train(store, recipe, network=tiny_ann())
    resumed, again = train(store, recipe, network=tiny_ann())
    assert again == history
    assert tensors_digest(resumed.state_dict()) == tensors_digest(unbroken.state_dict())
    if name != "compiled":
        assert tensors_digest(unbroken.state_dict()) != tensors_digest(
            train(next(stores), network=tiny_ann())[0].state_dict()
        )


def test_options_at_their_default_are_no_part_of_a_recipes_identity():
    assert set(with_options({}).identity) == {
        *("epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "loss", "shift", "flip")
    }
    changed = {**FAST["all"], "minutes": 5.0}
    assert changed.items() <= with_options(changed).identity.items()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_rises_along_a_line_and_falls_to_zero(schedule):
    def factor(share):
        return rate_factor(share, schedule=schedule, warmup=0.2)

    assert [factor(share) for share in (0.0, 0.05, 0.1, 0.2)] == pytest.approx([0.0, 0.25, 0.5, 1.0])
    assert factor(0.6) == pytest.approx(0.5)
    assert factor(0.4) == pytest.approx(0.75 if schedule == "linear" else (1 + math.sqrt(0.5)) / 2)
    assert factor(1.0) == factor(1.2) == pytest.approx(0.0)
    assert rate_factor(0.0, schedule=schedule) == 1.0


def test_without_options_the_rate_falls_along_half_a_cosine():
    for step in range(24):
        assert rate_factor(step / 24) == 0.5 * (1.0 + math.cos(math.pi * (step / 24)))


def rates(monkeypatch):
    """The learning rates of all steps from here on, and a clock that each step moves by a second."""
    seen, now = [], [0.0]
    real = torch.optim.SGD.step

    def step(self, *arguments):
        seen.append({group["lr"] for group in self.param_groups})
        now[0] += 1.0
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    monkeypatch.setattr(loop, "_clock", lambda: now[0])
    return seen


def test_a_time_budget_ends_at_rate_zero_in_the_middle_of_an_epoch(stores, monkeypatch):
    seen = rates(monkeypatch)
    options = {"minutes": 15 / 60, "schedule": "linear", "warmup": 0.2, "epochs": 9, "decayed": "weights"}
    _, history = train(next(stores), with_options(options))
    expected = [rate_factor(second / 15, schedule="linear", warmup=0.2) * 0.1 for second in range(15)]
    assert [rate for (rate,) in seen] == pytest.approx(expected)
    assert [record.seconds for record in history] == [6.0, 6.0, 3.0]


def test_a_time_budget_that_is_never_used_up_leaves_the_schedule_to_the_epochs(stores, monkeypatch):
    seen = rates(monkeypatch)
    _, history = train(next(stores), with_options({"minutes": 1e6}))
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    assert [rate for (rate,) in seen] == pytest.approx([0.1 * rate_factor(step / 24) for step in range(24)])


def test_time_that_finished_epochs_took_is_part_of_the_budget_of_a_resumed_training(stores, monkeypatch):
    recipe, unbroken = with_options({"minutes": 15 / 60, "epochs": 9, "average": 0.9}), next(stores)
    with monkeypatch.context() as patch:
        rates(patch)
        expected, history = train(unbroken, recipe)
    store = next(stores)
    with monkeypatch.context() as patch:
        rates(patch)
        stopping_after(patch, 14)
        with pytest.raises(Stopped):
            train(store, recipe)
    rates(monkeypatch)
    resumed, again = train(store, recipe)
    assert again == history
    assert tensors_digest(resumed.state_dict()) == tensors_digest(expected.state_dict())
    finished, _ = train(store, recipe)  # stopped behind the last epoch
    assert tensors_digest(finished.state_dict()) == tensors_digest(expected.state_dict())


def test_alternating_flips_mirror_every_image_in_every_other_epoch(stores, monkeypatch):
    seen = []
    real = loop.augment
    monkeypatch.setattr(loop, "augment", lambda *a, **o: seen.append(o["flip"].float().mean()) or real(*a, **o))
    recipe = with_options({"flip": "alternating", "epochs": 2, "batch_size": 400})
    train(next(stores), recipe)
    first, second = seen
    assert 0.4 < first < 0.6
    assert first + second == pytest.approx(1.0)


def test_the_weight_decay_spares_what_is_no_weight_where_the_recipe_says_so():
    network = tiny_ann()
    weights = {
        f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    for decayed, expected in (("all", {name for name, _ in network.named_parameters()}), ("weights", weights)):
        groups = loop._parameter_groups([network], with_options({"decayed": decayed}))
        found = {group["weight_decay"]: {id(parameter) for parameter in group["params"]} for group in groups}
        named = {name for name, parameter in network.named_parameters() if id(parameter) in found[5e-4]}
        assert named == expected
        assert sum(len(group) for group in found.values()) == len(list(network.parameters()))


def test_the_average_weighs_late_weights_more_and_forgets_the_first():
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, 0.5)
    expected = network.weight.item()
    for step, value in enumerate((3.0, -1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0)):
        nn.init.constant_(network.weight, value)
        average.update(step)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * value
        assert average.tensors["weight"].item() == pytest.approx(expected)
    average.apply()
    assert network.weight.item() == pytest.approx(expected)


def test_statistics_are_the_plain_mean_over_the_batches_and_the_mode_stays():
    network = nn.Sequential(nn.BatchNorm2d(3)).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 4, 4, generator=generator) * scale + scale for scale in (1.0, 2.0, 5.0)]
    estimate_statistics(network, network, batches)
    assert network[0].running_mean.tolist() == pytest.approx(
        (sum(batch.mean((0, 2, 3)) for batch in batches) / 3).tolist(), rel=1e-5
    )
    assert network[0].running_var.tolist() == pytest.approx(
        (sum(batch.var((0, 2, 3)) for batch in batches) / 3).tolist(), rel=1e-5
    )
    assert not network.training
    assert network[0].momentum == 0.1


def test_without_a_cpp_compiler_training_says_so_and_does_without(stores, monkeypatch, capfd):
    monkeypatch.setattr(compilation.shutil, "which", lambda _name: None)
    monkeypatch.setattr(torch, "compile", lambda _function: pytest.fail("compiled"))
    plain, _ = train(next(stores), network=tiny_ann())
    found, _ = train(next(stores), with_options({"compile": True}), network=tiny_ann())
    assert capfd.readouterr().err.count("no C++ compiler") == 1
    assert tensors_digest(found.state_dict()) == tensors_digest(plain.state_dict())


@pytest.mark.usefixtures("eager_compilation")
def test_regularisers_see_every_layer_of_a_compiled_network(stores):
    class Counting(Regularizer):
        name = "counting"
        reference = "none"

        def loss(self, batch):
            seen.append([layer.output.shape for layer in batch.layers])
            return sum(layer.output.mean() for layer in batch.layers)

    spec, seen = RegularizerSpec(name="counting", weight=0.1), []
    for options in ({}, {"compile": True}):
        recipe = with_options({**options, "epochs": 1, "regularizer": spec})
        train(next(stores), recipe, network=tiny_ann(), regularizer=Counting())
    assert seen[:6] == seen[6:]
    assert len(seen[0]) == 2


def test_compilation_of_a_spiking_network_is_refused(stores):
    with pytest.raises(UsageError, match="compile"):
        train(next(stores), with_options({"compile": True}))


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        Recipe(epochs=1, momentum=0.0, nesterov=True)


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

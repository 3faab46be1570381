"""Converted networks against the ANNs that they come from."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_plugins.normalized_conversion import MaxNorm, PercentileNorm, ThresholdBalancing
from bench_plugins.qcfs import QCFS
from torch import nn

from bench_core import UsageError, load_registry, load_suite, load_trace
from bench_core.errors import StoreError
from bench_core.run.artifacts import Workload, conversion_key, spiking_network, trained_weights
from bench_core.store.inventory import entries, prune
from bench_core.store.local import Store, default_root
from bench_core.training import Recipe, train_network
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.numerics import make_exact
from tests.helpers.suites import CONVERTED, parsed_suite, tiny_registry
from tests.helpers.tiny_plugin import TinyConv, TinyShapes, shapes

ROOT = Path(__file__).parent.parent
CONVERTERS = [MaxNorm, PercentileNorm, ThresholdBalancing]
LARGE_T = 512


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A plain ReLU network trained on the training split, and 2,000 samples that it never saw: inputs, labels."""
    dataset = TinyShapes()
    torch.manual_seed(3)
    ann = TinyConv().analog(dataset.input_shape, 4, nn.ReLU)
    train_network(
        ann,
        dataset,
        dataset.split("train"),
        timesteps=1,
        recipe=Recipe(epochs=25, batch_size=50),
        seed=5,
        store=Store(tmp_path_factory.mktemp("store"), zoo=None),
        key="ann",
        title="train",
    )
    images, labels = shapes(10_000, 2_000)
    return ann.eval(), dataset.encode(images, 1), labels


@pytest.fixture(scope="module")
def accuracies(trained):
    """Accuracy of the ANN, and of each converted network by number of timesteps."""
    ann, inputs, labels = trained
    with torch.inference_mode():
        found = {"ann": (ann(inputs).argmax(1) == labels).float().mean().item()}
        for converter in CONVERTERS:
            network = converter().convert(copy.deepcopy(ann), calibration_inputs()).prepare_for_inference()
            totals = network.run(inputs, LARGE_T, fold=8).cumsum(0)
            found[converter.name] = {
                t: (totals[t - 1].argmax(1) == labels).float().mean().item() for t in (8, 32, LARGE_T)
            }
    return found


def calibration_inputs():
    dataset = TinyShapes()
    return dataset.encode(dataset.split("calibration").images, 1)


@pytest.mark.numerics
@pytest.mark.parametrize("converter", CONVERTERS, ids=lambda converter: converter.name)
def test_at_large_t_a_converted_network_is_as_accurate_as_its_ann(accuracies, converter):
    assert accuracies["ann"] > 0.85
    assert abs(accuracies[converter.name][LARGE_T] - accuracies["ann"]) <= 0.003


@pytest.mark.numerics
def test_lower_thresholds_need_fewer_timesteps(accuracies):
    """What outliers cost: max-norm is slower than the percentile, threshold balancing slower still."""
    at_8 = [accuracies[name][8] for name in ("percentile-norm", "max-norm", "threshold-balancing")]
    assert at_8[0] >= at_8[1] >= at_8[2]
    assert at_8[0] > at_8[2]


@pytest.mark.numerics
def test_qcfs_reaches_its_ann_at_four_times_l_and_not_at_l():
    """On the shipped network and the embedded calibration split, from the committed trace."""
    workload = Workload.resolve(load_suite("quick").workloads[0], load_registry())
    assert workload.spec.name == "fashion-qcfs"
    levels = workload.converter.parameters["levels"]
    ann = workload.fresh_network()
    ann.load_state_dict(trained_weights(workload, Store(default_root())).tensors)
    split = workload.dataset.split("calibration")
    with torch.inference_mode():
        said = [ann.eval()(workload.dataset.encode(part, 1)).argmax(1) for part in torch.split(split.images, 500)]
    accuracy = (torch.cat(said) == split.labels).double().mean().item()
    trace = load_trace(ROOT / "results" / "quick" / "traces" / "fashion-qcfs-calibration.safetensors")
    assert json.loads(trace.header["provenance"])["weights"] == trained_weights(workload, Store(default_root())).digest
    gaps = accuracy - trace.correct.double().mean(0)  # [T]
    assert (gaps[4 * levels - 1 :].abs() <= 0.005).all()
    assert gaps[levels - 1] > 0.02  # the board shows it: static accuracy at t = L


@pytest.mark.numerics
def test_thresholds_are_the_largest_activations(trained):
    ann, _, _ = trained
    inputs = calibration_inputs()
    network = MaxNorm(samples=150).convert(copy.deepcopy(ann), inputs)
    assert [neuron.threshold for neuron in network.neurons()] == pytest.approx(
        [values.max() for values in activations(ann, inputs[:150])], rel=1e-5
    )
    for neuron in network.neurons():
        assert (neuron.amplitude, neuron.initial) == (neuron.threshold, 0.0)
        assert (neuron.decay, neuron.reset_mode) == (1.0, "soft")


@pytest.mark.numerics
def test_thresholds_are_percentiles_of_the_activations(trained):
    ann, _, _ = trained
    inputs = calibration_inputs()
    network = PercentileNorm(percentile=90.0).convert(copy.deepcopy(ann), inputs)
    assert [neuron.threshold for neuron in network.neurons()] == pytest.approx(
        [np.percentile(values, 90.0) for values in activations(ann, inputs)], rel=1e-5
    )


def activations(ann, inputs):
    x, found = inputs.unsqueeze(0), []
    for layer in ann.layers:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            found.append(x.detach().numpy())
    return found


@pytest.mark.numerics
def test_balanced_thresholds_are_the_largest_currents_of_a_network_balanced_below(trained):
    ann = make_exact(copy.deepcopy(trained[0]).double())  # else rounding decides where a potential is the threshold
    inputs = calibration_inputs()[:40].double()
    network = ThresholdBalancing(timesteps=12).convert(copy.deepcopy(ann), inputs)
    first, second = network.neurons()
    stem, pool, behind = ann.layers[0], ann.layers[2], ann.layers[3]
    with torch.no_grad():
        current = stem(inputs.unsqueeze(0))[0]
        assert first.threshold == current.max().item()
        largest, potential = 0.0, torch.zeros_like(current)
        for _ in range(12):  # by hand: integrate, fire, subtract; a spike carries the threshold
            potential = potential + current
            spikes = (potential >= first.threshold).double()
            potential = potential - first.threshold * spikes
            largest = max(largest, behind(pool(first.threshold * spikes.unsqueeze(0))).max().item())
    assert second.threshold == largest


def test_the_initial_potential_is_a_share_of_the_threshold(trained):
    network = MaxNorm(initial=0.5).convert(copy.deepcopy(trained[0]), calibration_inputs())
    assert all(neuron.initial == 0.5 * neuron.threshold for neuron in network.neurons())


def test_a_silent_layer_does_not_divide_by_nought(trained):
    ann = copy.deepcopy(trained[0])
    nn.init.zeros_(ann.layers[0].operation.weight)
    nn.init.constant_(ann.layers[0].norm.bias, -1.0)
    for converter in CONVERTERS:
        network = converter().convert(copy.deepcopy(ann), calibration_inputs()).prepare_for_inference()
        assert torch.isfinite(network.run(calibration_inputs()[:5], 4)).all()


@pytest.mark.parametrize(
    ("converter", "knobs", "message"),
    [
        (PercentileNorm, {"percentile": 0}, r"percentile-norm: percentile = 0 is outside \(0, 100\]"),
        (MaxNorm, {"initial": 2}, r"max-norm: initial = 2 is outside \[0, 1\]"),
        (ThresholdBalancing, {"timesteps": 0}, r"threshold-balancing: timesteps = 0 is outside \[1, inf\)"),
    ],
)
def test_knobs_out_of_range_are_refused(converter, knobs, message):
    with pytest.raises(UsageError, match=message):
        converter(**knobs)


# --- a converted network is kept -------------------------------------------------------------------------------------


class AnotherLayer(MaxNorm):
    """A converter that does more than neurons and weights can say."""

    name = "another-layer"

    def convert(self, ann, inputs):
        network = super().convert(ann, inputs)
        network.layers[-1] = nn.Sequential(network.layers[-1], nn.Identity())
        return network


class Hooked(MaxNorm):
    """The same, in a way that doesn't show."""

    name = "hooked"

    def convert(self, ann, inputs):
        network = super().convert(ann, inputs)
        network.layers[-1].register_forward_hook(lambda _module, _inputs, output: 2 * output)
        return network


class OddNumbers(MaxNorm):
    """A threshold that is no JSON."""

    name = "odd-numbers"

    def convert(self, ann, inputs):
        network = super().convert(ann, inputs)
        next(network.neurons()).threshold = torch.tensor(0.5)
        return network


class Holding(MaxNorm):
    """A converter that holds more than its knobs."""

    name = "holding"

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.table = torch.zeros(3)


def converted_workload(converter):
    spec = parsed_suite(workloads=[CONVERTED]).workloads[0]
    found = Workload.resolve(spec, tiny_registry())
    return dataclasses.replace(found, converter=converter())


@pytest.fixture(scope="module")
def converted_store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("converted"), zoo=None)


def kept_networks(store):
    return sorted((store.root / "converted").rglob("*.safetensors"))


@pytest.mark.numerics
@pytest.mark.parametrize("converter", [QCFS, *CONVERTERS], ids=lambda converter: converter.name)
def test_a_converted_network_is_kept_and_runs_to_the_bit_as_it_did(converted_store, monkeypatch, converter):
    workload = converted_workload(converter)
    weights = trained_weights(workload, converted_store)
    before = len(kept_networks(converted_store))
    made = spiking_network(workload, weights, converted_store)
    assert len(kept_networks(converted_store)) == before + 1
    monkeypatch.setattr(converter, "convert", lambda *_: pytest.fail("converted again"))
    found = spiking_network(workload, weights, converted_store)
    assert repr(found) == repr(made)
    inputs = calibration_inputs()[:200]
    with torch.inference_mode():
        assert torch.equal(found.run(inputs, 8), made.run(inputs, 8))
        assert made.run(inputs, 8).std() > 0


def test_other_knobs_or_weights_are_converted_anew(converted_store):
    workload = converted_workload(MaxNorm)
    weights = trained_weights(workload, converted_store)
    other = dataclasses.replace(weights, metadata={"content": "other"})
    shifted = dataclasses.replace(workload, converter=MaxNorm(initial=0.5))
    keys = [conversion_key(workload, weights), conversion_key(workload, other), conversion_key(shifted, weights)]
    assert len(set(keys)) == 3
    assert conversion_key(dataclasses.replace(workload, converter=None), weights) is None


@pytest.mark.parametrize("converter", [AnotherLayer, Hooked, OddNumbers, Holding], ids=lambda one: one.name)
def test_a_network_that_is_more_than_weights_and_neurons_is_not_kept(converted_store, capfd, converter):
    workload = converted_workload(converter)
    weights = trained_weights(workload, converted_store)
    before = kept_networks(converted_store)
    capfd.readouterr()
    for _ in range(2):
        network = spiking_network(workload, weights, converted_store)
        assert torch.isfinite(network.run(calibration_inputs()[:5], 4)).all()
    assert kept_networks(converted_store) == before
    assert capfd.readouterr().err.count("convert converted: 1/1 network") == 2


NONSENSE = {
    "no neurons": lambda record: record | {"neurons": []},
    "too few neurons": lambda record: record | {"neurons": record["neurons"][1:]},
    "another reset": lambda record: record | {"neurons": [n | {"reset": "late"} for n in record["neurons"]]},
    "too much": lambda record: record | {"neurons": [n | {"colour": 1} for n in record["neurons"]]},
    "a word": lambda record: record | {"neurons": "none"},
    "nothing": lambda record: {},
}


@pytest.mark.parametrize("change", NONSENSE.values(), ids=NONSENSE)
def test_what_holds_no_network_is_named_and_made_again(tmp_path, converted_store, capfd, change):
    workload = converted_workload(MaxNorm)
    weights, store = trained_weights(workload, converted_store), Store(tmp_path, zoo=None)
    expected = repr(spiking_network(workload, weights, store))
    key = conversion_key(workload, weights)
    artifact = store.get("converted", key)
    record = {name: artifact.metadata[name] for name in ("workload", "neurons", "constant_input")}
    store.put("converted", key, artifact.tensors, change(record))
    capfd.readouterr()
    assert repr(spiking_network(workload, weights, store)) == expected
    assert f"{store.path('converted', key)}: no network of converted; it is made again" in capfd.readouterr().err
    store.put("converted", key, {"weight": torch.zeros(2)}, record)
    assert repr(spiking_network(workload, weights, store)) == expected
    assert "no network of converted" in capfd.readouterr().err
    (entry,) = (entry for entry in entries(store) if entry.kind == "converted")
    assert entry.what == "converted"


def test_a_store_that_cannot_be_written_to_is_said_and_converts_all_the_same(converted_store, monkeypatch, capfd):
    workload = converted_workload(functools.partial(MaxNorm, initial=0.25))
    weights = trained_weights(workload, converted_store)

    def full(*_arguments, **_options):
        raise StoreError("disk full")

    monkeypatch.setattr(converted_store, "put", full)
    spiking_network(workload, weights, converted_store)
    assert "disk full; the converted network of converted is not kept" in capfd.readouterr().err


def test_prune_knows_the_same_network_at_two_timesteps(tmp_path, converted_store, capfd):
    workload, store = converted_workload(MaxNorm), Store(tmp_path, zoo=None)
    weights = trained_weights(workload, converted_store)
    longer = dataclasses.replace(workload, spec=workload.spec.model_copy(update={"timesteps": 16}))
    for one in (workload, longer):
        spiking_network(one, weights, store)
    assert len(kept_networks(store)) == 2
    assert prune(store) == []
    (artifact,) = (entry for entry in entries(store) if entry.metadata["timesteps"] == 16)
    store.put("converted", "0" * 64, {}, artifact.metadata)
    assert [line.endswith("made again since") for line in prune(store)] == [True]


def test_an_offline_store_converts_and_keeps_nothing(tmp_path, converted_store):
    workload = converted_workload(MaxNorm)
    weights = trained_weights(workload, converted_store)
    offline = Store(tmp_path, zoo=None, offline=True)
    spiking_network(workload, weights, offline)
    assert kept_networks(offline) == []

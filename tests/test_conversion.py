"""Converted networks against the ANNs that they come from."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_plugins.normalized_conversion import MaxNorm, PercentileNorm, ThresholdBalancing
from torch import nn

from bench_core import UsageError, load_registry, load_suite, load_trace
from bench_core.stages import Workload, trained_weights
from bench_core.store import Store, default_root
from bench_core.training import Recipe, train_network
from tests.helpers import own_home  # noqa: F401  # switched on by being here
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


@pytest.mark.parametrize("converter", CONVERTERS, ids=lambda converter: converter.name)
def test_at_large_t_a_converted_network_is_as_accurate_as_its_ann(accuracies, converter):
    assert accuracies["ann"] > 0.85
    assert abs(accuracies[converter.name][LARGE_T] - accuracies["ann"]) <= 0.003


def test_lower_thresholds_need_fewer_timesteps(accuracies):
    """What outliers cost: max-norm is slower than the percentile, threshold balancing slower still."""
    at_8 = [accuracies[name][8] for name in ("percentile-norm", "max-norm", "threshold-balancing")]
    assert at_8[0] >= at_8[1] >= at_8[2]
    assert at_8[0] > at_8[2]


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


def test_thresholds_are_the_largest_activations(trained):
    ann, _, _ = trained
    inputs = calibration_inputs()
    network = MaxNorm(samples=150).convert(copy.deepcopy(ann), inputs)
    assert [neuron.threshold for neuron in network.neurons()] == pytest.approx(
        [values.max() for values in activations(ann, inputs[:150])], rel=1e-6
    )
    for neuron in network.neurons():
        assert (neuron.amplitude, neuron.initial) == (neuron.threshold, 0.0)
        assert (neuron.decay, neuron.reset_mode) == (1.0, "soft")


def test_thresholds_are_percentiles_of_the_activations(trained):
    ann, _, _ = trained
    inputs = calibration_inputs()
    network = PercentileNorm(percentile=90.0).convert(copy.deepcopy(ann), inputs)
    assert [neuron.threshold for neuron in network.neurons()] == pytest.approx(
        [np.percentile(values, 90.0) for values in activations(ann, inputs)], rel=1e-6
    )


def activations(ann, inputs):
    x, found = inputs.unsqueeze(0), []
    for layer in ann.layers:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            found.append(x.detach().numpy())
    return found


def test_balanced_thresholds_are_the_largest_currents_of_a_network_balanced_below(trained):
    ann, _, _ = trained
    inputs = calibration_inputs()[:40]
    network = ThresholdBalancing(timesteps=12).convert(copy.deepcopy(ann), inputs)
    first, second = network.neurons()
    stem, pool, behind = ann.layers[0], ann.layers[2], ann.layers[3]
    with torch.no_grad():
        current = stem(inputs.unsqueeze(0))[0]
        assert first.threshold == pytest.approx(current.max().item(), rel=1e-6)
        largest, potential = 0.0, torch.zeros_like(current)
        for _ in range(12):  # by hand: integrate, fire, subtract; a spike carries the threshold
            potential = potential + current
            spikes = (potential >= first.threshold).float()
            potential = potential - first.threshold * spikes
            largest = max(largest, behind(pool(first.threshold * spikes.unsqueeze(0))).max().item())
    assert second.threshold == pytest.approx(largest, rel=1e-5)


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

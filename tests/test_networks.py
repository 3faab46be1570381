"""Spiking networks: all ways of running one agree, and its gradients are those of the plain loop."""

import copy

import pytest
import torch
from torch import nn

from bench_core.conversion import replace_activations
from bench_core.snn import AveragePool, Flatten, SpikingNetwork, SpikingNeuron, Synapse, if_neuron, lif_neuron
from bench_core.snn.models import Parts
from bench_core.snn.state_rows import kept_rows, overwrite_rows
from bench_core.snn.surrogate import triangle
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.numerics import assert_agree, make_exact
from tests.helpers.tiny_plugin import TinyConv, TinyEvents, TinyShapes

pytestmark = pytest.mark.numerics

T, B, K = 6, 5, 4
NEURONS = {
    "lif": lif_neuron,
    "if": lambda: if_neuron(0.75),
    "soft lif": lambda: SpikingNeuron(decay=0.5, reset="soft"),
}


def network(node=lif_neuron, *, constant_input=True, dtype=torch.float32, fused=True, exact=False):
    """A tiny network with weights and normalisation statistics that are all different, and lively.

    Args:
        exact: with rounded weights, so that no result depends on the order of a sum.
    """
    torch.manual_seed(3)
    shape = TinyShapes.input_shape if constant_input else TinyEvents.input_shape
    found = SpikingNetwork(TinyConv().layers(shape, K, Parts(node)), constant_input=constant_input).to(dtype)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.2, 0.6)
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.uniform_(module.bias, 0.0, 0.6)
    found.eval()
    found = found.prepare_for_inference() if fused else found
    return make_exact(found) if exact else found


def frames(*, constant_input=True, dtype=torch.float32, batch=B):
    """Network input, and the same as a list of T frames."""
    dataset = TinyShapes() if constant_input else TinyEvents()
    inputs = dataset.encode(dataset.split("test").images[:batch], T).to(dtype)
    return inputs, [inputs] * T if constant_input else list(inputs)


def spikes_of(net):
    """Record what every neuron layer of a network sends, [T', B, ...] per call."""
    sent = {index: [] for index, layer in enumerate(net.layers) if isinstance(layer, SpikingNeuron)}
    for index, calls in sent.items():
        net.layers[index].register_forward_hook(lambda _m, _i, output, calls=calls: calls.append(output.clone()))
    return sent


def stepped(net, steps):
    net.reset()
    return torch.stack([net.step(frame) for frame in steps])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("constant_input", [True, False], ids=["constant", "events"])
@pytest.mark.parametrize("node", NEURONS.values(), ids=NEURONS)
def test_folded_any_fold_and_stepwise_are_equal_where_arithmetic_is_exact(node, constant_input):
    net = network(node, constant_input=constant_input, exact=True)
    sent = spikes_of(net)
    inputs, steps = frames(constant_input=constant_input)
    expected = net.run(inputs, T)
    spikes = {index: torch.cat(calls) for index, calls in sent.items()}
    assert expected.shape == (T, B, K)
    assert all(0 < (layer != 0).float().mean() < 1 for layer in spikes.values())
    for fold in (1, 2, 4, T, T + 3):
        assert torch.equal(net.run(inputs, T, fold=fold), expected), fold
    for calls in sent.values():
        calls.clear()
    assert torch.equal(stepped(net, steps), expected)
    for index, calls in sent.items():
        assert torch.equal(torch.cat(calls), spikes[index]), index


@pytest.mark.parametrize("constant_input", [True, False], ids=["constant", "events"])
@pytest.mark.parametrize("node", NEURONS.values(), ids=NEURONS)
def test_folded_any_fold_and_stepwise_agree(node, constant_input):
    net = network(node, constant_input=constant_input)
    inputs, steps = frames(constant_input=constant_input, batch=100)
    expected = net.run(inputs, T)
    for fold in (1, 2, 4, T + 3):
        assert_agree(net.run(inputs, T, fold=fold), expected, samples=1)
    assert_agree(stepped(net, steps), expected, samples=1)


def test_state_made_in_inference_mode_can_be_gone_on_with_outside_of_it():
    net = network(exact=True)
    inputs, sequence = frames()
    with torch.inference_mode():
        expected = net.run(inputs, T)
    net.reset()
    with torch.inference_mode():
        first = net.step(sequence[0])
    with torch.no_grad():
        second = net.step(sequence[1])
    with torch.inference_mode():
        third = net.step(sequence[2])
    assert torch.equal(torch.stack([first, second, third]), expected[:3])


def test_a_run_starts_afresh():
    net = network(exact=True)
    inputs, steps = frames()
    first = net.run(inputs, T)
    assert torch.equal(net.run(inputs, T), first)
    net.step(steps[0])
    assert torch.equal(net.run(inputs, T), first)
    assert torch.equal(stepped(net, steps), first)


def test_a_shorter_run_is_the_beginning_of_a_longer_one():
    net = network(exact=True)
    inputs, _ = frames()
    assert torch.equal(net.run(inputs, 2), net.run(inputs, T)[:2])


def test_under_constant_input_the_first_layer_runs_once():
    net = network()
    calls = []
    net.layers[0].register_forward_hook(lambda *_: calls.append(1))
    inputs, steps = frames()
    net.run(inputs, T, fold=2)
    assert len(calls) == 1
    stepped(net, steps)
    assert len(calls) == 2


@pytest.mark.parametrize("constant_input", [True, False], ids=["constant", "events"])
@pytest.mark.parametrize("node", NEURONS.values(), ids=NEURONS)
def test_going_on_with_some_samples_equals_running_them_alone(node, constant_input):
    net = network(node, constant_input=constant_input, exact=True)
    sent = spikes_of(net)
    inputs, steps = frames(constant_input=constant_input)
    drops = {2: torch.tensor([4, 0, 2]), 4: torch.tensor([2, 1])}  # after step t, go on with these of the rest
    alive = torch.arange(B)
    logits, spikes = {}, {index: {} for index in sent}
    net.reset()
    for t, frame in enumerate(steps, start=1):
        answer = net.step(frame[alive])
        for position, sample in enumerate(alive.tolist()):
            logits[t, sample] = answer[position]
            for index, calls in sent.items():
                spikes[index][t, sample] = calls[-1][0, position]
        if t in drops:
            net.keep(drops[t])
            alive = alive[drops[t]]
    assert alive.tolist() == [2, 0]
    for sample in range(B):
        for calls in sent.values():
            calls.clear()
        alone = net.run(inputs[sample : sample + 1] if constant_input else inputs[:, sample : sample + 1], T)
        for (t, which), expected in logits.items():
            if which == sample:
                assert torch.equal(alone[t - 1, 0], expected)
                for index, calls in sent.items():
                    assert torch.equal(calls[0][t - 1, 0], spikes[index][t, sample])


def test_keeping_all_samples_changes_nothing_and_keeping_none_leaves_none():
    net = network(exact=True)
    _, steps = frames()
    expected = stepped(net, steps)
    net.reset()
    first = net.step(steps[0])
    net.keep(torch.arange(B))
    assert torch.equal(torch.stack([first, net.step(steps[1])]), expected[:2])
    net.keep(torch.zeros(0, dtype=torch.int64))
    assert net.step(steps[2][:0]).shape == (0, K)


LAYOUTS = {
    "one dimension": lambda: torch.randn(9),
    "two": lambda: torch.randn(9, 5),
    "contiguous": lambda: torch.randn(9, 5, 4, 3),
    "channels last": lambda: torch.randn(9, 5, 4, 3).to(memory_format=torch.channels_last),
    "a single channel": lambda: torch.randn(9, 1, 4, 3).to(memory_format=torch.channels_last),
    "float64": lambda: torch.randn(9, 5, 4, 3, dtype=torch.float64).to(memory_format=torch.channels_last),
    "bfloat16": lambda: torch.randn(9, 5, 4, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
    "gaps": lambda: torch.randn(9, 8, 6, 3)[:, ::2, 1:4],
}


@pytest.mark.parametrize("made", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("places", [[], [4], [8, 0, 3], list(range(9))], ids=str)
def test_rows_are_kept_and_overwritten_as_by_indexing_whatever_their_layout(made, places):
    state, index = made(), torch.tensor(places, dtype=torch.int64)
    kept = kept_rows(state, index)
    assert torch.equal(kept, state[index])
    for layout in (torch.contiguous_format, torch.channels_last) if state.dim() == 4 else (torch.contiguous_format,):
        assert kept.is_contiguous(memory_format=layout) or not state.is_contiguous(memory_format=layout)
    kept.zero_()
    assert not (state == 0).any()  # it was a copy
    for values in (7.0, torch.randn(len(places), *state.shape[1:], dtype=state.dtype)):
        expected = state.clone()
        expected[index] = values
        overwrite_rows(state, index, values)
        assert torch.equal(state, expected)


def test_the_order_of_kept_samples_is_the_order_asked_for():
    net = network(exact=True)
    _, steps = frames()
    expected = stepped(net, steps)
    order = torch.tensor([3, 1, 4, 0, 2])
    net.reset()
    net.step(steps[0])
    net.keep(order)
    assert torch.equal(net.step(steps[1][order]), expected[1][order])


# --- neurons ---------------------------------------------------------------------------------------------------------


def plain_neuron(current, decay, threshold, reset, initial, amplitude):
    """One neuron in plain Python: a current per step to what it sends."""
    potential, sent = initial, []
    for value in current:
        potential = decay * potential + value
        spike = potential >= threshold
        sent.append(amplitude if spike else 0.0)
        if spike:
            potential = 0.0 if reset == "hard" else potential - threshold
    return sent


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_a_neuron_does_what_its_equation_says(decay, reset, gradients):
    generator = torch.Generator().manual_seed(7)
    current = torch.randint(-8, 16, (12, 40), generator=generator).double() / 8  # exact in binary
    neuron = SpikingNeuron(decay=decay, threshold=0.75, reset=reset, initial=0.25, amplitude=2.0)
    with torch.set_grad_enabled(gradients):
        found = neuron(current.requires_grad_(gradients))
    for column in range(current.shape[1]):
        expected = plain_neuron(current[:, column].tolist(), decay, 0.75, reset, 0.25, 2.0)
        assert found[:, column].tolist() == expected
    assert 0 < (found != 0).double().mean() < 1


def test_a_potential_at_the_threshold_spikes():
    neuron = SpikingNeuron(decay=1.0, threshold=1.0)
    assert neuron(torch.tensor([[[0.5]], [[0.5]], [[0.75]]])).flatten().tolist() == [0.0, 1.0, 0.0]


def test_the_shipped_neurons_are_those_of_their_papers():
    lif, integrate = lif_neuron(), if_neuron(3.0)
    assert (lif.decay, lif.threshold, lif.reset_mode, lif.initial, lif.amplitude) == (0.5, 1.0, "hard", 0.0, 1.0)
    assert (integrate.decay, integrate.threshold, integrate.reset_mode) == (1.0, 3.0, "soft")
    assert (integrate.initial, integrate.amplitude) == (1.5, 3.0)


# --- gradients -------------------------------------------------------------------------------------------------------


class PlainSpike(torch.autograd.Function):
    """The spike with the triangle written out as its derivative."""

    @staticmethod
    def forward(ctx, distance):
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (distance,) = ctx.saved_tensors
        return gradient * torch.where(distance.abs() < 1, 1 - distance.abs(), torch.zeros_like(distance))


def plain_sequence(current, initial, decay, threshold, reset):
    """The loop over time that autograd differentiates by itself."""
    potential, spikes = initial, []
    for step in current:
        potential = decay * potential + step
        spike = PlainSpike.apply(potential - threshold)
        potential = potential * (1 - spike) if reset == "hard" else potential - threshold * spike
        spikes.append(spike)
    return torch.stack(spikes), potential


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize(("decay", "threshold"), [(0.5, 1.0), (1.0, 1.0), (0.9, 0.4)])
@pytest.mark.parametrize("through", ["spikes", "potential", "both"])
def test_the_backward_pass_is_that_of_autograd_through_the_loop(reset, decay, threshold, through):
    generator = torch.Generator().manual_seed(11)
    weights = torch.randn(T, B, 9, generator=generator, dtype=torch.float64)
    last = torch.randn(B, 9, generator=generator, dtype=torch.float64)
    start = torch.rand(B, 9, generator=generator, dtype=torch.float64)
    values = torch.randn(T, B, 9, generator=generator, dtype=torch.float64)
    gradients = []
    for plain in (True, False):
        current, initial = values.clone().requires_grad_(), start.clone().requires_grad_()
        with torch.enable_grad():
            if plain:
                spikes, potential = plain_sequence(current, initial, decay, threshold, reset)
            else:
                neuron = SpikingNeuron(decay=decay, threshold=threshold, reset=reset)
                neuron.potential = initial
                spikes = neuron(current)
                potential = neuron.potential
            loss = (spikes * weights).sum() * (through != "potential") + (potential * last).sum() * (
                through != "spikes"
            )
        gradients.append((spikes.detach(), *torch.autograd.grad(loss, (current, initial))))
    for expected, found in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert gradients[0][1].abs().sum() > 0


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_gradients_of_a_network_do_not_depend_on_the_fold(fold):
    gradients = []
    for size in (T, fold):
        net = network(dtype=torch.float64, fused=False)
        inputs, _ = frames(dtype=torch.float64)
        with torch.enable_grad():
            net.run(inputs, T, fold=size)[1:].square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for expected, found in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_training_and_inference_send_the_same_spikes():
    net = network(fused=False, exact=True)
    inputs, _ = frames()
    expected = net.run(inputs, T)
    with torch.enable_grad():
        found = net.run(inputs, T)
    assert found.requires_grad
    assert torch.equal(found.detach(), expected)


def test_the_surrogate_is_a_triangle():
    points = [-2.0, -1.0, -0.75, -0.5, 0.0, 0.25, 1.0, 3.0]
    assert triangle(torch.tensor(points)).tolist() == [0.0, 0.0, 0.25, 0.5, 1.0, 0.75, 0.0, 0.0]
    assert triangle(torch.tensor(points), 2.0).tolist() == [max(0.0, 2.0 - abs(x)) / 4 for x in points]


# --- fusing, pooling, converting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_fusing_changes_a_synapse_by_rounding_only(bias):
    torch.manual_seed(5)
    synapse = Synapse(nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=bias), nn.BatchNorm2d(8))
    synapse.norm.running_mean.normal_()
    synapse.norm.running_var.uniform_(0.1, 4.0)
    nn.init.normal_(synapse.norm.weight)
    nn.init.normal_(synapse.norm.bias)
    synapse.eval().double()
    x = torch.randn(T, B, 3, 8, 8, dtype=torch.float64)
    expected = synapse(x)
    synapse.fuse()
    assert synapse.norm is None
    assert torch.allclose(synapse(x), expected, rtol=0, atol=1e-12)
    synapse.fuse()
    assert torch.allclose(synapse(x), expected, rtol=0, atol=1e-12)


def test_a_fused_network_sends_the_same_spikes():
    plain = network(dtype=torch.float64, fused=False)
    fused = copy.deepcopy(plain).prepare_for_inference()
    sent = spikes_of(plain), spikes_of(fused)
    inputs, _ = frames(dtype=torch.float64)
    assert torch.allclose(fused.run(inputs, T), plain.run(inputs, T), rtol=0, atol=1e-9)
    for index, calls in sent[0].items():
        assert torch.equal(calls[0], sent[1][index][0])


def test_pooling_averages_each_timestep_by_itself():
    x = torch.arange(2 * 1 * 1 * 4 * 4.0).reshape(2, 1, 1, 4, 4)
    assert AveragePool(2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]
    assert Flatten()(x).shape == (2, 1, 16)


def test_replacing_activations_keeps_all_other_layers():
    ann = TinyConv().analog((1, 8, 8), K, nn.ReLU)
    before = list(ann.layers)
    places = [index for index, layer in enumerate(before) if isinstance(layer, nn.ReLU)]
    assert [before[index] for index in places] == list(ann.activations)
    neurons = [if_neuron(1.0 + index) for index in places]
    snn = replace_activations(ann, neurons, constant_input=True)
    assert [snn.layers[index] for index in places] == neurons
    for index, layer in enumerate(snn.layers):
        assert index in places or layer is before[index]


def test_the_ann_twin_runs_its_layers_in_order():
    ann = TinyConv().analog((1, 8, 8), K, nn.ReLU).eval()
    inputs, _ = frames()
    x = inputs
    for layer in ann.layers:
        x = layer(x.unsqueeze(0))[0]
    assert torch.equal(ann(inputs), x)
    assert ann(inputs).shape == (B, K)

"""The ledger on residual networks: against a loop over every spike and weight, and against what a hand can compute."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench_core.recording.ledger import OperationLedger, UncountableLayerError
from bench_core.snn import (
    AveragePool,
    Flatten,
    GlobalAveragePool,
    Residual,
    SpikingNetwork,
    SpikingNeuron,
    Synapse,
    if_neuron,
    lif_neuron,
)
from bench_core.snn.models.resnet import ResNet8
from bench_core.snn.models.sew_resnet import SewResNet34
from bench_core.snn.models.vgg import VggSnn
from bench_core.snn.normalization import TemporalScale
from tests.reference.operations import PlainLedger, synapses_met

pytestmark = pytest.mark.numerics

T, B = 3, 2
SHAPE = (2, 7, 7)


class Scripted(SpikingNeuron):
    """A layer of neurons that sends what it is told to, whatever it receives."""

    def __init__(self, amplitude=1.0):
        super().__init__(decay=1.0, amplitude=amplitude)
        self.script = None  # makes spikes (0 or 1) of a shape

    def forward(self, current):
        return self.amplitude * self.script(current.shape)


def conv(*sizes, **options):
    return Synapse(nn.Conv2d(*sizes, bias=False, **options))


def linear(inputs, outputs):
    return Synapse(nn.Linear(inputs, outputs))


n = Scripted

NETS = {
    "convolutional shortcut": lambda: [
        *(conv(2, 4, 3, padding=1), n(), Residual([conv(4, 6, 3, padding=1, stride=2), n(), conv(6, 6, 3, padding=1)],
        [conv(4, 6, 1, stride=2)]), n(), GlobalAveragePool(), linear(6, 5)),
    ],
    "identity shortcut": lambda: [
        *(conv(2, 4, 3, padding=1), n(), AveragePool(2)),
        *(Residual([conv(4, 4, 3, padding=1, groups=2), n(), conv(4, 4, 3, padding=1)]), n()),
        *(Residual([conv(4, 4, 3, padding=1), n(), conv(4, 4, 3, padding=1)]), n(), Flatten(), linear(36, 5)),
    ],
    "spikes added": lambda: [
        *(conv(2, 4, 3, padding=1), n()),
        Residual([conv(4, 4, 3, padding=1), n(), conv(4, 4, 3, padding=1, groups=4), n()]),
        Residual([conv(4, 4, 3, padding=1), n(), conv(4, 4, 3, padding=1), n()]),
        Residual([conv(4, 6, 3, padding=1, stride=2), n(), conv(6, 6, 1), n()], [conv(4, 6, 1, stride=2), n()]),
        *(AveragePool(2), Residual([conv(6, 6, 3, padding=1), n(), conv(6, 6, 3, padding=1), n()])),
        *(GlobalAveragePool(), linear(6, 5)),
    ],
    "spikes of several sizes added": lambda: [
        *(conv(2, 4, 3, padding=1), n(0.5), Residual([conv(4, 4, 3, padding=1), n(1.7)]), Flatten(), linear(196, 5)),
    ],
    "pooled shortcut": lambda: [
        *(conv(2, 4, 3, padding=1), n()),
        *(Residual([conv(4, 4, 3, padding=1, stride=2), n(), conv(4, 4, 2)], [AveragePool(2)]), n()),
        *(Flatten(), linear(36, 7), n(), linear(7, 5)),
    ],
    "a sum of spikes into a sum of currents": lambda: [
        *(conv(2, 3, 2, dilation=2), n(), Residual([conv(3, 3, 3, padding=1), n()])),
        *(Residual([conv(3, 3, 1)]), n(), Flatten(), linear(75, 5)),
    ],
    "a pool that keeps all, and a sum": lambda: [
        *(conv(2, 4, 2), n(0.3), AveragePool(2), Residual([conv(4, 4, 3, padding=1), n(), conv(4, 4, 1)]), n()),
        *(Flatten(), linear(36, 5)),
    ],
    "pools that keep all": lambda: [
        *(conv(2, 4, 4), n(1.7), AveragePool(2), AveragePool(2), Residual([conv(4, 3, 1)], [conv(4, 3, 1)]), n()),
        *(Flatten(), linear(3, 5)),
    ],
    "one pool over everything": lambda: [conv(2, 4, 1), n(0.7), AveragePool(7), Flatten(), linear(4, 5)],
    "pools in branches": lambda: [
        *(conv(2, 4, 2), n(), Residual([conv(4, 4, 3, padding=1), n(0.9), AveragePool(3)], [AveragePool(3)])),
        *(Residual([conv(4, 4, 3, padding=1), n(0.3), AveragePool(2), conv(4, 4, 1)], [conv(4, 4, 2)]), n()),
        *(Flatten(), linear(4, 5)),
    ],
    "pools in rows": lambda: [
        *(conv(2, 4, 2), nn.Sequential(n(0.4), AveragePool(2), conv(4, 4, 2), nn.Sequential(n(1.3), AveragePool(2)))),
        *(Flatten(), linear(4, 5)),
    ],
    "neurons at the end of a row": lambda: [
        *(conv(2, 4, 2), nn.Sequential(n(0.4)), AveragePool(2), conv(4, 4, 2), n(), AveragePool(2)),
        *(Flatten(), linear(4, 5)),
    ],
    "a sum within a sum": lambda: [
        *(conv(2, 3, 3), n(), Residual([conv(3, 3, 3, padding=1)], [Residual([conv(3, 3, 1)], [conv(3, 3, 1)])]), n()),
        *(Flatten(), linear(75, 5)),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def built():
    """Each network with its plain ledger, which remembers prices."""
    found = {}
    for name, layers in NETS.items():
        torch.manual_seed(0)
        net = SpikingNetwork(layers(), constant_input=False).prepare_for_inference()
        script(net, torch.zeros)  # so that the ledger can look at shapes
        found[name] = net, PlainLedger(net), OperationLedger(net, SHAPE), OperationLedger(net, SHAPE, per_layer=True)
    return found


def script(net, make):
    for neuron in net.neurons():
        neuron.script = make


def plain_count(net, plain, inputs, sent):
    """What every layer of a network spent, from ``sent``, by neuron: (accumulates, spikes) by module, [B][T] each."""
    modules = list(net.modules())
    acs = {module: [[0] * T for _ in range(B)] for module in modules}
    spikes = {module: [[0] * T for _ in range(B)] for module in modules}
    for neuron, output in sent.items():
        for t, sample, *place in torch.nonzero(output).tolist():
            spikes[neuron][sample][t] += 1
            for layer, met in plain.price(neuron, tuple(place), output.shape[2:]).items():
                acs[layer][sample][t] += met
    for t, sample, *place in torch.nonzero(inputs).tolist():
        for _ in range(int(inputs[(t, sample, *place)])):
            for layer, met in plain.event(tuple(place), SHAPE).items():
                acs[layer][sample][t] += met
    return acs, spikes


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), density=st.sampled_from([0.0, 0.02, 0.3, 1.0]), fold=st.integers(1, T))
def test_counts_are_those_of_a_loop_over_every_spike_and_weight(built, name, seed, density, fold):
    net, plain, ledger, by_layer = built[name]
    generator = torch.Generator().manual_seed(seed)
    script(net, lambda shape: (torch.rand(shape, generator=generator) < density).float())
    inputs = torch.randint(0, 3, (T, B, *SHAPE), generator=generator).float() * (density > 0)
    sent = {neuron: [] for neuron in net.neurons()}
    hooks = [m.register_forward_hook(lambda m, _i, output: sent[m].append(output)) for m in sent]
    with torch.inference_mode(), ledger.counting() as collect, by_layer.counting() as collect_by_layer:
        net.run(inputs, T, fold=fold)
        found, detail = collect(inputs), collect_by_layer(inputs)
    for hook in hooks:
        hook.remove()
    acs, spikes = plain_count(net, plain, inputs, {neuron: torch.cat(calls) for neuron, calls in sent.items()})
    names = {module: name for name, module in net.named_modules()}
    expected_acs, expected_spikes = ({names[m]: values for m, values in x.items()} for x in (acs, spikes))
    for place, layer in enumerate(by_layer.layers):
        assert detail["layer_acs"][..., place].tolist() == expected_acs.pop(layer.name), layer
        assert detail["layer_spikes"][..., place].tolist() == expected_spikes.pop(layer.name), layer
    for rest in (*expected_acs.values(), *expected_spikes.values()):  # nothing was spent elsewhere
        assert not any(any(row) for row in rest)
    assert torch.equal(detail["layer_acs"].sum(2), found["acs"])
    assert torch.equal(detail["layer_spikes"].sum(2), found["spikes"])
    assert all(torch.equal(found[key], detail[key]) for key in found)
    assert found.keys() == {"acs", "spikes"}
    assert (found["acs"].sum() > 0) == (density > 0)


def test_a_layer_is_told_of_by_its_place_with_its_size_and_synapses(built):
    net, _, ledger, _ = built["identity shortcut"]
    told = {layer.name: (layer.kind, layer.size, layer.synapses) for layer in ledger.layers}
    inside = 3 * 3 * 9 - 4 * 3 * 3 + 4  # 3 x 3 weights over a 3 x 3 image, one channel to one
    stem = sum(
        synapses_met(net.layers[0].operation, (c, y, x), SHAPE) for c in range(2) for y in range(7) for x in range(7)
    )
    assert told == {
        "layers.0": ("synapses", 4 * 49, stem),
        "layers.1": ("neurons", 4 * 49, 0),
        "layers.3": ("sum", 36, 36),
        "layers.3.body.0": ("synapses", 36, 4 * 2 * inside),
        "layers.3.body.1": ("neurons", 36, 0),
        "layers.3.body.2": ("synapses", 36, 4 * 4 * inside),
        "layers.4": ("neurons", 36, 0),
        "layers.5": ("sum", 36, 36),
        "layers.5.body.0": ("synapses", 36, 16 * inside),
        "layers.5.body.1": ("neurons", 36, 0),
        "layers.5.body.2": ("synapses", 36, 16 * inside),
        "layers.6": ("neurons", 36, 0),
        "layers.8": ("synapses", 5, 36 * 5),
    }
    assert ledger.neuron_updates == 4 * 49 + 4 * 36


@pytest.mark.parametrize(
    ("name", "at"),
    {
        "identity shortcut": ["1", "3.body.1", "4", "5.body.1", "6"],  # its pool drops a rim
        "a pool that keeps all, and a sum": ["2", "3.body.1", "4"],
        "pools that keep all": ["2", "5"],
        "one pool over everything": ["2"],
        "pools in branches": ["1", "2.body.2", "3.body.2", "4"],
        "pools in rows": ["1.1", "1.3.1"],
        "neurons at the end of a row": ["1.0", "5"],
    }.items(),
)
def test_spikes_are_counted_in_a_pool_behind_them_that_keeps_all(built, name, at):
    net, _, ledger, _ = built[name]
    with ledger.counting():
        found = [place for place, module in net.named_modules() if module._forward_hooks]
    assert found == [f"layers.{place}" for place in at]


class SumPool(AveragePool):
    """A pool that isn't what it is derived from."""

    def forward(self, x):
        return self.size**2 * super().forward(x)


class Louder(nn.Sequential):
    """A row that isn't one."""

    def forward(self, x):
        return self[1](3 * self[0](x))


@pytest.mark.parametrize(
    "row",
    [
        lambda neuron: [neuron, SumPool(2)],
        lambda neuron: [Louder(neuron, AveragePool(2))],
    ],
    ids=["a pool of its own kind", "a row of its own kind"],
)
def test_spikes_are_counted_in_no_pool_that_may_do_anything(row):
    neuron = n()
    layers = [conv(2, 4, 2), *row(neuron), Flatten(), linear(36, 5)]
    net = SpikingNetwork(layers, constant_input=False).prepare_for_inference()
    script(net, torch.ones)
    inputs = torch.zeros(T, B, *SHAPE)
    ledger = OperationLedger(net, SHAPE)
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, T)
        assert collect(inputs)["spikes"].tolist() == [[4 * 36] * T] * B


@pytest.mark.parametrize("amplitude", [0.1, 0.3, 0.7, 1.0, 1e-3 / 3])
@pytest.mark.parametrize(("channels", "side"), [(32, 56), (64, 32), (8, 64), (1, 224), (6, 28), (1024, 2), (2048, 2)])
def test_a_pool_counts_only_where_it_rounds_nothing_away(amplitude, channels, side):
    net = SpikingNetwork(
        [conv(1, channels, 1), n(amplitude), AveragePool(side), Flatten(), linear(channels, 3)], constant_input=False
    ).prepare_for_inference()
    script(net, torch.ones)
    ledger = OperationLedger(net, (1, side, side))
    inputs = torch.zeros(1, 1, 1, side, side)
    for density in (1.0, 0.9):
        sent = torch.full((1, 1, channels, side, side), density).bernoulli_()
        script(net, lambda _shape, sent=sent: sent)
        with torch.inference_mode(), ledger.counting() as collect:
            net.run(inputs, 1)
            found = collect(inputs)
        assert found["spikes"].item() == sent.sum(dtype=torch.float64).item()
        assert found["acs"].item() == 3 * found["spikes"].item()


@pytest.mark.parametrize("fold", [1, 2, T])
def test_spikes_that_overwrite_each_other_are_all_counted(fold):
    torch.manual_seed(0)
    net = SpikingNetwork([linear(6, 8), lif(), linear(8, 5)], constant_input=True).prepare_for_inference()
    sent = []
    net.layers[1].register_forward_hook(lambda _m, _i, output: sent.append(output.clone()))
    inputs, ledger = torch.randn(B, 6), OperationLedger(net, (6,))
    sent.clear()  # of what the ledger looked at
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, T, fold=fold)
        assert collect(inputs)["spikes"].tolist() == torch.cat(sent).sum(2).t().tolist()
    assert len({tuple(spikes.flatten().tolist()) for spikes in torch.cat(sent)}) > 1


# --- by hand ---------------------------------------------------------------------------------------------------------


def price_of(layers, neuron, place):
    """Accumulates of one spike of the ``neuron``-th layer of neurons at ``place``; nothing else is sent."""
    net = SpikingNetwork(layers, constant_input=True).prepare_for_inference()
    script(net, torch.zeros)
    ledger = OperationLedger(net, SHAPE)

    def one(shape):
        spikes = torch.zeros(shape)
        spikes[(0, 0, *place)] = 1
        return spikes

    list(net.neurons())[neuron].script = one
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(torch.rand(1, *SHAPE), 1)
        found = collect(torch.rand(1, *SHAPE))
    assert found["spikes"].tolist() == [[1]]
    return found["acs"].item()


def residual_net():
    body = [conv(3, 3, 3, padding=1), n(), conv(3, 3, 3, padding=1)]
    return [conv(2, 3, 3, padding=1), n(), Residual(body), n(), GlobalAveragePool(), linear(3, 5)]


def spike_sum_net(blocks):
    added = [Residual([conv(3, 3, 3, padding=1), n()]) for _ in range(blocks)]
    return [conv(2, 3, 3, padding=1), n(), *added, GlobalAveragePool(), linear(3, 5)]


def test_a_spike_costs_the_convolution_and_one_for_the_identity_shortcut():
    assert price_of(residual_net(), 0, (0, 3, 3)) == 3 * 9 + 1
    assert price_of(residual_net(), 0, (2, 4, 2)) == 3 * 9 + 1  # the same wherever the fan-out is
    assert price_of(residual_net(), 0, (0, 0, 3)) == 3 * 6 + 1  # less at a border
    assert price_of(residual_net(), 0, (0, 0, 0)) == 3 * 4 + 1  # and at a corner
    assert price_of(residual_net(), 1, (0, 3, 3)) == 3 * 9  # inside the block there is no shortcut
    assert price_of(residual_net(), 2, (0, 3, 3)) == 5  # behind the sum: the pooled spike meets the linear layer


def test_stride_groups_and_bias():
    def net(**options):
        return [
            conv(2, 4, 3, padding=1),
            n(),
            Synapse(nn.Conv2d(4, 8, 3, **options)),
            n(),
            GlobalAveragePool(),
            linear(8, 5),
        ]

    assert price_of(net(), 0, (0, 3, 3)) == 8 * 9
    assert price_of(net(bias=False), 0, (0, 3, 3)) == 8 * 9
    assert price_of(net(groups=4), 0, (0, 3, 3)) == 2 * 9
    assert price_of(net(stride=2), 0, (0, 3, 3)) == 8 * 1  # only one window has an odd place
    assert price_of(net(stride=2), 0, (0, 2, 2)) == 8 * 4


def test_each_spike_of_a_sum_of_spikes_goes_on_by_itself():
    assert price_of(spike_sum_net(1), 0, (0, 3, 3)) == 27 + 5  # the block's convolution, and past it the linear layer
    assert price_of(spike_sum_net(1), 1, (0, 3, 3)) == 5
    assert price_of(spike_sum_net(3), 0, (0, 3, 3)) == 3 * 27 + 5
    assert price_of(spike_sum_net(3), 1, (0, 0, 0)) == 2 * 12 + 5


def test_currents_that_a_pool_drops_are_not_paid_for():
    layers = [conv(2, 3, 3, padding=1), n(), conv(3, 4, 1), AveragePool(2), n(), Flatten(), linear(36, 5)]
    assert price_of(layers, 0, (0, 3, 3)) == 4
    assert price_of(layers, 0, (0, 6, 3)) == 0


# --- what can't be counted -------------------------------------------------------------------------------------------


class Doubling(nn.Module):
    def forward(self, x):
        return 2 * x


lif = lif_neuron


def behind(*layers):
    """A network with these layers behind 3 x 5 x 5 spikes, and before 3 x 5 x 5 spikes."""
    return [conv(2, 3, 3), lif(), *layers, lif(), Flatten(), linear(75, 5)]


UNCOUNTABLE = {
    "an unknown layer in a body": (
        lambda: behind(Residual([conv(3, 3, 1), Doubling()])),
        r"layers\.2\.body\.1 \(Doubling\)",
    ),
    "an unknown layer in a shortcut": (
        lambda: behind(Residual([conv(3, 3, 1)], [Doubling()])),
        r"layers\.2\.shortcut\.0 \(Doubling\)",
    ),
    "an analogue shortcut": (
        lambda: [conv(2, 3, 3), Residual([lif(), conv(3, 3, 1)]), lif(), Flatten(), linear(75, 5)],
        r"layers\.1 \(Residual\), which isn't fed by spikes",
    ),
    "a sum of currents and spikes that goes to a synapse": (
        lambda: [conv(2, 3, 3), lif(), Residual([conv(3, 3, 1)]), Flatten(), linear(75, 5)],
        r"layers\.2\.body\.0 \(Synapse\), whose currents meet another synapse",
    ),
    "spikes that are scaled": (
        lambda: behind(Residual([conv(3, 3, 1)], [TemporalScale(T)])),
        r"layers\.2 \(Residual\), which isn't fed by spikes",
    ),
    "a layer that is used twice": (
        lambda: [conv(2, 3, 3, padding=1), lif(), *[AveragePool(2)] * 2, Flatten(), linear(3, 5)],
        r"layers\.2 \(AveragePool\), which is used twice",
    ),
    "a padding that isn't zeros": (
        lambda: behind(conv(3, 3, 3, padding=1, padding_mode="circular")),
        r"layers\.2 \(Synapse\), whose operation is Conv2d",
    ),
    "a linear layer on images": (
        lambda: behind(linear(5, 5)),
        r"layers\.2 \(Synapse\), whose operation is Linear",
    ),
    "no neurons": (lambda: [conv(2, 3, 7), Flatten()], "a network without neurons"),
}


@pytest.mark.parametrize(("layers", "message"), UNCOUNTABLE.values(), ids=UNCOUNTABLE)
def test_a_layer_without_a_rule_is_named(layers, message):
    net = SpikingNetwork(layers(), constant_input=True)
    with pytest.raises(UncountableLayerError, match=message):
        OperationLedger(net, SHAPE)
    assert all(not module._forward_hooks for module in net.modules())


def test_logits_take_currents_as_neurons_do():
    layers = [conv(2, 3, 3), lif(), Flatten(), Residual([linear(75, 75)])]
    ledger = OperationLedger(SpikingNetwork(layers, constant_input=True), SHAPE)
    assert [layer.name for layer in ledger.layers] == ["layers.0", "layers.1", "layers.3", "layers.3.body.0"]


@pytest.mark.parametrize(
    ("model", "shape", "normalization"),
    [
        (ResNet8(), (3, 16, 16), "tdbn"),
        (ResNet8(), (3, 16, 16), "tebn"),
        (SewResNet34(), (3, 32, 32), "bn"),
        (VggSnn(), (2, 16, 16), "bn"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_shipped_families_can_be_counted(model, shape, normalization):
    net = model.spiking(shape, 10, constant_input=True, normalization=normalization, timesteps=2)
    ledger = OperationLedger(net.prepare_for_inference(), shape, per_layer=True)
    dense = sum(layer.synapses for layer in ledger.layers if layer.kind == "synapses")
    assert ledger.macs_once == ledger.layers[0].synapses > 0
    assert dense < sum(layer.size for layer in ledger.layers) * 9 * 512
    inputs = torch.randn(2, *shape)
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, 2)
        found = collect(inputs)
    assert found["layer_acs"].shape == (2, 2, len(ledger.layers))
    assert (found["acs"] > 0).all()


def test_converted_spikes_carry_thresholds_through_shortcuts():
    torch.manual_seed(0)
    body = [conv(3, 3, 3, padding=1)]
    layers = [conv(2, 3, 3, padding=1), if_neuron(0.3), Residual(body), if_neuron(0.7), Flatten(), linear(147, 5)]
    net = SpikingNetwork(layers, constant_input=True).prepare_for_inference()
    sent = {}
    for neuron in net.neurons():
        neuron.register_forward_hook(lambda m, _i, output: sent.__setitem__(m, output.clone()))
    ledger, plain = OperationLedger(net, SHAPE), PlainLedger(net)
    inputs = torch.randn(B, *SHAPE)
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, T)
        found = collect(inputs)
    acs, spikes = plain_count(net, plain, torch.zeros(0, 0), sent)
    assert found["acs"].tolist() == torch.tensor(list(acs.values())).sum(0).tolist()
    assert found["spikes"].tolist() == torch.tensor(list(spikes.values())).sum(0).tolist()
    assert found["spikes"].sum() > 0

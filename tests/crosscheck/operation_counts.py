"""The ledger beside NeuroBench's metric, SpikingJelly's counter and snnTorch's neurons: ``tox -e crosscheck``.

Not collected by the plain run, whose environment lacks these packages. What the rules differ in, and why, stands in
docs/counting.md; each difference that it names is a test here.
"""

import pytest
import snntorch
import torch
from neurobench.metrics.workload import SynapticOperations
from neurobench.models import SNNTorchModel
from neurobench.models.neurobench_model import NeuroBenchModel
from spikingjelly.activation_based.op_counter import ACCounter, DispatchCounterMode, SynOpCounter
from torch import nn

from bench_core.recording.ledger import OperationLedger
from bench_core.snn import AveragePool, Flatten, GlobalAveragePool, Residual, SpikingNetwork, Synapse, lif_neuron
from tests.helpers.numerics import make_exact, rounded

T, B = 4, 3
SHAPE = (2, 9, 9)
lif = lif_neuron


def conv(*sizes, **options):
    return Synapse(nn.Conv2d(*sizes, bias=False, **options))


def linear(inputs, outputs):
    return Synapse(nn.Linear(inputs, outputs))


def block(channels, *end):
    return [conv(channels, channels, 3, padding=1), lif(), conv(channels, channels, 3, padding=1, groups=2), *end]


NETS = {
    "chain": lambda: [
        *(conv(2, 4, 3, padding=1), lif(), conv(4, 6, 3, stride=2, padding=1), lif()),
        *(conv(6, 6, 3, groups=3, dilation=2), lif(), Flatten(), linear(6, 20), lif(), linear(20, 5)),
    ],
    "residual": lambda: [
        *(conv(2, 4, 3, padding=1), lif(), Residual(block(4)), lif()),
        *(Residual([conv(4, 6, 3, stride=2)], [conv(4, 6, 3, stride=2)]), lif(), Flatten(), linear(96, 5)),
    ],
    "pooled": lambda: [
        *(conv(2, 4, 3, padding=1), lif(), AveragePool(2), conv(4, 6, 3, padding=1), lif()),
        *(conv(6, 6, 3, padding=1), lif(), GlobalAveragePool(), linear(6, 5)),
    ],
    "spikes added": lambda: [
        *(conv(2, 4, 3, padding=1), lif(), Residual(block(4, lif())), Residual(block(4, lif()))),
        *(Flatten(), linear(324, 5)),
    ],
}


class Wrapped(NeuroBenchModel):
    """A network of ours as NeuroBench wants it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def __call__(self, inputs):
        return self.net.run(inputs, T)

    def __net__(self):
        return self.net


def build(name, *, constant_input):
    torch.manual_seed(6)
    net = SpikingNetwork(NETS[name](), constant_input=constant_input)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight, -0.4, 0.8)
    make_exact(net.prepare_for_inference())
    for parameter in net.parameters():
        parameter.data.masked_fill_(parameter == 0, 2**-8)  # NeuroBench leaves out synapses of weight 0
    generator = torch.Generator().manual_seed(1)
    if constant_input:
        return net, rounded(torch.randn(B, *SHAPE, generator=generator)) + 2**-5  # none is 0
    return net, (torch.rand(T, B, *SHAPE, generator=generator) < 0.3).float()


def ours(net, inputs):
    """Accumulates of each layer, over batch and time, by name; and the ledger."""
    ledger = OperationLedger(net, SHAPE, per_layer=True)
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, T)
        counts = collect(inputs)["layer_acs"].sum((0, 1)).tolist()
    return {layer.name: acs for layer, acs in zip(ledger.layers, counts, strict=True)}, ledger


def neurobench(model, inputs):
    """NeuroBench's accumulates and multiply-accumulates, over batch and time."""
    model.register_hooks()
    metric = SynapticOperations()
    with torch.no_grad():
        metric(model, model(inputs), (torch.zeros(1), None))
    model.cleanup_hooks()
    return metric.AC, metric.MAC


def spikingjelly(net, inputs, counter):
    """What a counter of SpikingJelly counted, over batch and time."""
    with torch.no_grad(), DispatchCounterMode([counter]):
        net.run(inputs, T)
    return counter.get_total()


def fed_by(net, inputs):
    """Names of the synapses whose inputs were all 0 or 1, and of the others behind the first layer."""
    binary = {name: True for name, module in net.named_modules() if isinstance(module, Synapse)}
    names = {module: name for name, module in net.named_modules()}

    def look(module, arguments):
        binary[names[module]] &= bool(((arguments[0] == 0) | (arguments[0] == 1)).all())

    hooks = [module.register_forward_pre_hook(look) for module in names if isinstance(module, Synapse)]
    with torch.no_grad():
        net.run(inputs, T)
    for hook in hooks:
        hook.remove()
    if net.constant_input:
        del binary["layers.0"]
    return [name for name, all_binary in binary.items() if all_binary], [name for name in binary if not binary[name]]


@pytest.mark.parametrize("constant_input", [True, False], ids=["constant", "events"])
@pytest.mark.parametrize("name", NETS)
def test_synapses_that_meet_spikes_are_counted_alike(name, constant_input):
    net, inputs = build(name, constant_input=constant_input)
    acs, ledger = ours(net, inputs)
    binary, others = fed_by(net, inputs)
    expected = sum(acs[layer] for layer in binary)
    assert expected > 0
    assert neurobench(Wrapped(net), inputs)[0] == expected
    assert spikingjelly(net, inputs, SynOpCounter()) == expected
    assert bool(others) == (name in ("pooled", "spikes added"))
    shortcuts = sum(acs[layer.name] for layer in ledger.layers if layer.kind == "sum")
    assert sum(acs.values()) == expected + shortcuts + sum(acs[layer] for layer in others)
    assert (shortcuts > 0) == (name == "residual")


@pytest.mark.parametrize("name", ["chain", "residual"])
def test_the_first_layer_is_multiplied_once(name):
    net, inputs = build(name, constant_input=True)
    ledger = ours(net, inputs)[1]
    assert neurobench(Wrapped(net), inputs)[1] == B * ledger.macs_once
    half = inputs * (torch.arange(9) % 2)  # NeuroBench leaves out inputs that are nought, a dense layer doesn't
    assert neurobench(Wrapped(net), half)[1] < 0.6 * B * ledger.macs_once
    assert ours(net, half)[1].macs_once == ledger.macs_once


def test_neurobench_takes_pooled_spikes_for_analogue_and_counts_a_window_once():
    net, inputs = build("pooled", constant_input=False)
    acs, _ = ours(net, inputs)
    pooled = fed_by(net, inputs)[1]
    assert pooled == ["layers.3", "layers.8"]
    macs = neurobench(Wrapped(net), inputs)[1]
    windows = {}

    def look(module, arguments):
        windows[module] = (arguments[0] != 0).double()

    for layer in (net.layers[3], net.layers[8]):
        layer.register_forward_pre_hook(look)
    with torch.no_grad():
        net.run(inputs, T)
    met = sum(float((values * layer.fan_out(values.shape[2:])).sum()) for layer, values in windows.items())
    assert macs == met
    assert macs < sum(acs[layer] for layer in pooled)  # several spikes of a window are several accumulates


def test_neurobench_counts_a_sum_of_spikes_once_and_spikingjelly_not_at_all():
    net, inputs = build("spikes added", constant_input=False)
    acs, _ = ours(net, inputs)
    binary, others = fed_by(net, inputs)
    found, macs = neurobench(Wrapped(net), inputs)
    assert found == sum(acs[layer] for layer in binary)
    assert 0 < macs < sum(acs[layer] for layer in others)
    assert spikingjelly(net, inputs, SynOpCounter()) == found


def test_spikingjellys_hardware_counter_adds_every_element_of_a_residual_sum():
    net, inputs = build("residual", constant_input=False)
    acs, ledger = ours(net, inputs)
    synapses = spikingjelly(net, inputs, SynOpCounter())
    everything = spikingjelly(net, inputs, ACCounter())
    sizes = [layer.size for layer in ledger.layers if layer.kind == "sum"]
    assert len(sizes) == 1
    assert everything - synapses >= T * B * sizes[0] > acs["layers.2"]  # ours: one per spike that comes along


class InSnnTorch(nn.Module):
    """The chain with snnTorch's neurons: frames [B, C, H, W] to (logits, potential), a timestep a call."""

    def __init__(self, net):
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in net.layers:
            if isinstance(layer, Synapse):
                self.layers.append(layer.operation)
            elif isinstance(layer, Flatten):
                self.layers.append(nn.Flatten())
            else:
                options = {"threshold": layer.threshold, "reset_mechanism": "zero", "init_hidden": True}
                self.layers.append(snntorch.Leaky(beta=0.5, **options))

    def reset(self):
        for layer in self.layers:
            if isinstance(layer, snntorch.Leaky):
                layer.reset_mem()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x, x


def test_the_same_network_in_snntorch_says_and_spends_the_same():
    net, inputs = build("chain", constant_input=False)
    for neuron in net.neurons():
        neuron.threshold = 1 - 2**-20  # which no potential equals: in snnTorch it has to be above
    acs, _ = ours(net, inputs)
    model = SNNTorchModel(InSnnTorch(net))
    with torch.no_grad():
        assert torch.equal(model(inputs.transpose(0, 1)).transpose(0, 1), net.run(inputs, T))
    assert neurobench(model, inputs.transpose(0, 1)) == (sum(acs.values()), 0)


def test_synapses_of_weight_nought_are_left_out_by_neurobench_only():
    net, inputs = build("chain", constant_input=False)
    with torch.no_grad():
        net.layers[0].operation.weight[:2] = 0.0
    acs, _ = ours(net, inputs)
    assert acs["layers.0"] > 0
    assert neurobench(Wrapped(net), inputs)[0] == sum(acs.values()) - acs["layers.0"] // 2
    assert spikingjelly(net, inputs, SynOpCounter()) == sum(acs.values())


def test_spikes_that_carry_a_threshold_are_taken_for_analogue():
    net, inputs = build("chain", constant_input=False)
    for neuron in net.neurons():
        neuron.amplitude = 0.7
    acs, _ = ours(net, inputs)
    first = acs.pop("layers.0")
    assert neurobench(Wrapped(net), inputs) == (first, sum(acs.values()))
    assert spikingjelly(net, inputs, SynOpCounter()) == first

"""The model families: published sizes, one result in every way of running them, and their conversion."""

import pytest
import torch
from bench_plugins.normalized_conversion import MaxNorm, ThresholdBalancing
from bench_plugins.qcfs import QCFS
from torch import nn

from bench_core import load_registry
from bench_core.conversion import replace_activations
from bench_core.errors import UsageError
from bench_core.snn import (
    AveragePool,
    GlobalAveragePool,
    Residual,
    SpikingNetwork,
    SpikingNeuron,
    Synapse,
    if_neuron,
    lif_neuron,
)
from bench_core.snn.models import Parts, resnet, sew_resnet, vgg
from bench_core.snn.models.chain import POOL
from bench_core.snn.models.resnet import ResNet, ResNet8, ResNet18, ResNet19, ResNet20, ResNet20Seenn, ResNet34
from bench_core.snn.models.sew_resnet import SewResNet34
from bench_core.snn.models.vgg import Vgg16, VggSnn
from bench_core.snn.normalization import ThresholdDependentBatchNorm
from tests.helpers.numerics import assert_agree, make_exact, rounded

pytestmark = pytest.mark.numerics

SMALL, LARGE = (3, 32, 32), (3, 224, 224)
T, B, K = 4, 3, 10

# model, input, classes, parameters, multiply-accumulates per image and timestep, published: (figure, its rounding)
SIZES = [
    (ResNet8(), SMALL, 10, 78_042, 12_501_632, {"macs": (12.50e6, 0.005e6)}),
    (ResNet20(), SMALL, 10, 272_474, 40_813_184, {"parameters": (0.27e6, 0.005e6), "macs": (41e6, 0.5e6)}),
    (ResNet20Seenn(), SMALL, 10, 175_258, 26_657_408, {}),
    (ResNet19(), SMALL, 10, 12_569_226, 2_285_245_440, {"macs": (2.285e9, 0.0005e9)}),
    (ResNet18(), SMALL, 10, 11_173_962, 555_422_720, {"parameters": (11.17e6, 0.005e6), "macs": (0.56e9, 0.005e9)}),
    (ResNet34(), LARGE, 1000, 21_797_672, 3_663_761_408, {"parameters": (21.8e6, 0.05e6), "macs": (3.6e9, 0.1e9)}),
    (SewResNet34(), LARGE, 1000, 21_797_672, 3_663_761_408, {"parameters": (21.8e6, 0.05e6)}),
    (Vgg16(), SMALL, 10, 14_724_042, 313_201_664, {"parameters": (14.7e6, 0.05e6), "macs": (313e6, 0.5e6)}),
    (VggSnn(), (2, 48, 48), 10, 9_268_746, 1_361_654_784, {}),
]


def size(network, inputs):
    """Parameters, and multiply-accumulates as papers count them: every output times every weight of its channel."""
    macs = 0

    def count(module, _inputs, output):
        nonlocal macs
        macs += output[0].numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    if isinstance(network, SpikingNetwork):
        network.run(inputs, 1)
    else:
        network(inputs)
    return sum(parameter.numel() for parameter in network.parameters()), macs


@pytest.mark.parametrize(
    ("model", "shape", "classes", "parameters", "macs", "published"), SIZES, ids=lambda v: getattr(v, "name", None)
)
def test_sizes_are_the_published_ones(model, shape, classes, parameters, macs, published):
    with torch.device("meta"):  # no values: nothing is computed
        ann = size(model.analog(shape, classes, nn.ReLU), torch.zeros(1, *shape))
        snn = size(model.spiking(shape, classes, constant_input=True), torch.zeros(1, *shape))
    assert ann == snn == (parameters, macs)
    for name, (figure, rounding) in published.items():
        assert abs({"parameters": parameters, "macs": macs}[name] - figure) <= rounding


def test_all_families_are_registered_and_tabulated_with_their_figures():
    models = load_registry().models
    text = resnet.__doc__ + sew_resnet.__doc__ + vgg.__doc__
    for model, _, _, parameters, macs, _ in SIZES:
        assert type(models[model.name]) is type(model)
        if model.name != "sew-resnet-34":
            row = next(line for line in text.splitlines() if line.startswith(f"``{model.name}``"))
            assert f"{parameters:,}" in row
            assert any(shown in row for shown in (f"{macs / 1e6:,.2f} M", f"{macs / 1e9:.3f} G", f"{macs / 1e9:.4f} G"))


@pytest.mark.parametrize(("model", "blocks"), [(ResNet8(), 3), (ResNet20(), 9), (ResNet18(), 8), (ResNet19(), 8)])
def test_a_resnet_has_its_blocks(model, blocks):
    with torch.device("meta"):
        net = model.spiking(SMALL, K, constant_input=True)
        assert sum(isinstance(layer, Residual) for layer in net.layers) == blocks
        assert sum(1 for _ in net.neurons()) == 1 + 2 * blocks
        shortcuts = [layer for layer in net.layers if isinstance(layer, Residual) and len(layer.shortcut)]
        assert len(shortcuts) == len(model.widths) - 1  # where the size changes


def test_frames_that_are_too_small_are_refused():
    with pytest.raises(UsageError, match=r"vgg-16 needs frames of at least 32 x 32, not 28 x 28"):
        Vgg16().analog((1, 28, 28), K, nn.ReLU)


def test_branches_that_are_added_share_the_norm_of_tdbn():
    net = ResNet8().spiking(SMALL, K, constant_input=True, normalization="tdbn")
    factors = {
        name: module.factor for name, module in net.named_modules() if isinstance(module, ThresholdDependentBatchNorm)
    }
    for name, factor in factors.items():
        added = ".body.2." in name or ".shortcut." in name
        assert factor == pytest.approx(0.5**0.5 if added else 1.0), name
    sew = SewResNet34().layers(SMALL, K, Parts(lif_neuron, "tdbn"))
    assert {m.factor for layer in sew for m in layer.modules() if isinstance(m, ThresholdDependentBatchNorm)} == {1.0}


# --- ways of running -------------------------------------------------------------------------------------------------


class SmallSew(SewResNet34):
    """Two stages of SEW blocks on small images."""

    name = "small-sew"
    widths = (8, 16)
    blocks = (2, 2)


class SmallVgg(VggSnn):
    name = "small-vgg"
    plan = (8, 8, POOL, 16, POOL)


RUNS = {"resnet": (ResNet8(), "bn"), "resnet tdbn": (ResNet8(), "tdbn"), "resnet tebn": (ResNet8(), "tebn")} | {
    "sew": (SmallSew(), "bn"),
    "sew tebn": (SmallSew(), "tebn"),
    "vgg": (SmallVgg(), "bn"),
}


def lively(model, normalization="bn", *, constant_input=True, neuron="lif", dtype=torch.float32):
    """A network that has seen data once, so that every layer spikes."""
    torch.manual_seed(1)
    shape = (2, 16, 16)
    net = model.spiking(
        shape, K, constant_input=constant_input, normalization=normalization, timesteps=T, neuron=neuron
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.uniform_(module.bias, 0.0, 0.5)
            module.momentum = 1.0
    inputs = rounded(torch.randn(B, *shape)) if constant_input else (torch.rand(T, B, *shape) < 0.3).float()
    with torch.no_grad():
        net.train().run(inputs, T)
    return net.eval().to(dtype), inputs.to(dtype)


@pytest.mark.parametrize("constant_input", [True, False], ids=["constant", "events"])
@pytest.mark.parametrize("neuron", ["lif", "if"])
@pytest.mark.parametrize(("model", "normalization"), RUNS.values(), ids=RUNS)
def test_all_ways_of_running_agree(model, normalization, neuron, constant_input):
    net, inputs = lively(model, normalization, constant_input=constant_input, neuron=neuron)
    make_exact(net.prepare_for_inference())
    frames = [inputs] * T if constant_input else list(inputs)
    rates = []
    hooks = [m.register_forward_hook(lambda _m, _i, out: rates.append(out.mean().item())) for m in net.neurons()]
    with torch.inference_mode():
        folded = net.run(inputs, T)
        for hook in hooks:
            hook.remove()
        assert min(rates) > 0
        for fold in (1, 2, 3):
            assert torch.equal(net.run(inputs, T, fold=fold), folded), fold
        net.reset()
        assert torch.equal(torch.stack([net.step(frame) for frame in frames]), folded)
        used = {neuron.spike_memory for neuron in net.neurons()}
        assert normalization == "tebn" or used == {"current", "own" if constant_input else "current"}
        for neuron in net.neurons():
            neuron.spike_memory = "new"
        assert torch.equal(net.run(inputs, T), folded)


@pytest.mark.parametrize(("model", "normalization"), RUNS.values(), ids=RUNS)
def test_all_ways_of_running_agree_where_sums_are_rounded(model, normalization):
    net, inputs = lively(model, normalization, dtype=torch.float64)
    net.prepare_for_inference()
    with torch.inference_mode():
        folded = net.run(inputs, T)
        for fold in (1, 3):
            assert_agree(net.run(inputs, T, fold=fold), folded, samples=1)
        net.reset()
        assert_agree(torch.stack([net.step(inputs) for _ in range(T)]), folded, samples=1)


@pytest.mark.parametrize(("model", "normalization"), RUNS.values(), ids=RUNS)
def test_dropping_samples_changes_nothing_for_the_others(model, normalization):
    net, inputs = lively(model, normalization)
    make_exact(net.prepare_for_inference())
    with torch.inference_mode():
        expected = net.run(inputs, T)
        net.reset()
        net.step(inputs)
        kept = torch.tensor([2, 0])
        net.keep(kept)
        for t in range(1, T):
            assert torch.equal(net.step(inputs[kept]), expected[t][kept])


@pytest.mark.parametrize(("model", "normalization"), RUNS.values(), ids=RUNS)
def test_fusing_reaches_every_normalisation(model, normalization):
    net, inputs = lively(model, normalization, dtype=torch.float64)
    with torch.inference_mode():
        expected = net.run(inputs, T)
        net.prepare_for_inference()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        assert torch.allclose(net.run(inputs, T), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("model", "normalization"), RUNS.values(), ids=RUNS)
def test_every_weight_gets_a_gradient(model, normalization):
    net, inputs = lively(model, normalization)
    net.train().run(inputs, T).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


class Skip(nn.Sequential):
    """A module that isn't what it is derived from: its input to the neuron is needed once more."""

    def forward(self, x):
        current = self[0](x)
        return current - 0.5 * self[1](current)


def synapse():
    torch.manual_seed(2)
    return make_exact(Synapse(nn.Conv2d(3, 3, 3, padding=1)), bits=6)


def soft():
    return SpikingNeuron(decay=0.75, threshold=0.375, reset="soft", amplitude=0.375)


ODD = {
    "derived": lambda: [synapse(), soft(), Skip(synapse(), soft()), synapse()],
    "sequential": lambda: [synapse(), nn.Sequential(soft(), synapse(), soft()), synapse()],
    "starts with a sequential": lambda: [nn.Sequential(synapse()), soft(), synapse()],
    "starts with a residual": lambda: [Residual([synapse()]), soft(), synapse()],
    "branch starts with a neuron": lambda: [synapse(), Residual([soft(), synapse()]), soft(), synapse()],
    "shortcut starts with a neuron": lambda: [synapse(), Residual([synapse()], [soft(), synapse()]), soft(), synapse()],
    "two neurons": lambda: [synapse(), soft(), soft(), synapse()],
}


@pytest.mark.parametrize("constant_input", [True, False], ids=["constant", "events"])
@pytest.mark.parametrize("made", ODD.values(), ids=ODD)
def test_spikes_overwrite_no_current_that_is_used_again(made, constant_input):
    inputs = rounded(torch.randn(*(() if constant_input else (T,)), B, 3, 6, 6))
    frames = [inputs] * T if constant_input else list(inputs)
    plain = SpikingNetwork(made(), constant_input=constant_input).eval().to(memory_format=torch.channels_last)
    prepared = SpikingNetwork(made(), constant_input=constant_input).prepare_for_inference()
    with torch.inference_mode():
        expected = plain.run(inputs, T)
        assert expected.std() > 0
        for fold in (1, 2, T):
            assert torch.equal(prepared.run(inputs, T, fold=fold), expected)
        prepared.reset()
        assert torch.equal(torch.stack([prepared.step(frame) for frame in frames]), expected)


class Delay(nn.Module):
    """Gives what it was given a timestep ago, and holds it without a copy."""

    def __init__(self):
        super().__init__()
        self.held = None

    def forward(self, x):
        before = torch.zeros_like(x[:1]) if self.held is None else self.held
        self.held = x[-1:]
        return torch.cat([before, x[:-1]])


class Behind(nn.Sequential):
    """A row of layers, of a kind of its own."""


HOLDING = {
    "as a layer": lambda: [synapse(), soft(), Delay(), synapse()],
    "in a shortcut": lambda: [synapse(), soft(), Residual([synapse()], [Delay()]), synapse()],
    "in a row": lambda: [synapse(), soft(), nn.Sequential(Delay()), synapse()],
    "in another row": lambda: [synapse(), soft(), Behind(Delay()), synapse()],
}


@pytest.mark.parametrize("constant_input", [True, False], ids=["constant", "events"])
@pytest.mark.parametrize("made", HOLDING.values(), ids=HOLDING)
def test_spikes_overwrite_no_spikes_that_are_held(made, constant_input):
    inputs = rounded(torch.randn(*(() if constant_input else (T,)), B, 3, 6, 6))
    with torch.inference_mode():
        plain = SpikingNetwork(made(), constant_input=constant_input).eval().to(memory_format=torch.channels_last)
        expected = plain.run(inputs, T)
        assert expected.std() > 0
        assert not torch.equal(expected[0], expected[1])
        for fold in (1, 2, T):
            prepared = SpikingNetwork(made(), constant_input=constant_input).prepare_for_inference()
            assert torch.equal(prepared.run(inputs, T, fold=fold), expected)


@pytest.mark.parametrize("behind", [lambda: AveragePool(2), synapse, lambda: Residual([synapse()])])
def test_spikes_behind_a_current_that_is_kept_have_one_place_in_memory(behind):
    net = SpikingNetwork([synapse(), soft(), behind(), synapse()], constant_input=True).prepare_for_inference()
    places, x = [], rounded(torch.randn(B, 3, 6, 6))
    net.layers[1].register_forward_hook(lambda _m, _i, spikes: places.append(spikes.data_ptr()))
    with torch.inference_mode():
        expected = net.run(x, T, fold=1)
        assert len(set(places)) == 1
    with torch.no_grad():  # where what was made in inference mode can't be written to
        assert torch.equal(net.run(x, T, fold=1), expected)
        net.reset()
        for t in range(T):
            with torch.inference_mode(t % 2 == 0):
                assert torch.equal(net.step(x), expected[t])
            net.keep(torch.arange(B - 1 if t else B))
            x, expected = x[: B - 1 if t else B], expected[:, : B - 1 if t else B]
    with torch.inference_mode():
        net.reset()
        net.step(x)
        net.double()
        net._current = net._current.double()
        assert net.step(x.double()).dtype == torch.float64
    net.reset()
    assert net.layers[1]._spikes is None


@pytest.mark.parametrize("behind", [nn.Identity, lambda: nn.Sequential(synapse()), lambda: AveragePool(1)])
def test_a_network_can_be_prepared_anew(behind):
    x = rounded(torch.randn(B, 3, 6, 6))

    def made(*, constant_input):
        return SpikingNetwork([synapse(), soft(), behind(), synapse()], constant_input=constant_input)

    plain = made(constant_input=True).eval().to(memory_format=torch.channels_last)
    layers = made(constant_input=False).prepare_for_inference().layers
    prepared = SpikingNetwork(list(layers), constant_input=True).prepare_for_inference()
    with torch.inference_mode():
        assert torch.equal(prepared.run(x, T, fold=1), plain.run(x, T))


def test_a_prepared_network_can_have_gradients_behind_frozen_layers():
    net = SpikingNetwork([synapse(), soft(), synapse()], constant_input=True).prepare_for_inference()
    net.layers[0].requires_grad_(requires_grad=False)
    net.run(torch.randn(B, 3, 6, 6), T, fold=1).square().sum().backward()
    assert net.layers[2].operation.weight.grad.abs().sum() > 0


def test_a_sum_of_spikes_is_a_whole_number_that_grows():
    net, inputs = lively(SmallSew())
    net.prepare_for_inference()
    sums = []
    for layer in net.layers:
        if isinstance(layer, Residual):
            layer.register_forward_hook(lambda _m, _i, output: sums.append(output))
    with torch.inference_mode():
        net.run(inputs.round(), T)
    assert all(torch.equal(output, output.round()) for output in sums[2:])  # behind the pooled stem: quarters
    assert max(output.max() for output in sums) > 1


def test_a_residual_adds_its_branches():
    x = torch.randn(T, B, 4, 5, 5)
    assert torch.equal(Residual([])(x), 2 * x)
    double = nn.Hardtanh(-0.5, 0.5)
    assert torch.equal(Residual([double])(x), double(x) + x)
    assert torch.equal(Residual([double], [nn.ReLU(), double])(x), double(x) + double(x.relu()))
    assert torch.allclose(GlobalAveragePool()(x), x.mean((3, 4)), atol=1e-6)


# --- the twins and their conversion ----------------------------------------------------------------------------------


class TinyResNet(ResNet):
    """Three blocks, one of them with a convolution as shortcut."""

    name = "tiny-resnet"
    widths = (6, 12)
    blocks = (2, 1)


class TinySew(SewResNet34):
    """The same with spikes added."""

    name = "tiny-sew"
    widths = (6, 12)
    blocks = (2, 1)


TWINS = [TinyResNet(), TinySew(), SmallVgg()]


def twin(model, activation):
    """An ANN with random weights whose normalisation has seen the inputs, and the inputs."""
    torch.manual_seed(5)
    inputs = torch.randn(8, 3, 16, 16)
    ann = model.analog((3, 16, 16), K, activation)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.bias, 0.0, 0.5)
    with torch.no_grad():
        ann.train()(inputs)
    return ann.eval(), inputs


@pytest.mark.parametrize("model", TWINS, ids=lambda model: model.name)
def test_activations_stand_in_the_order_of_the_neurons(model):
    ann, inputs = twin(model, nn.ReLU)
    called = []
    for activation in ann.activations:
        activation.register_forward_hook(lambda module, _i, _o: called.append(module))
    ann(inputs)
    assert called == list(ann.activations)
    neurons = [if_neuron(1.0 + place) for place in range(len(called))]
    snn = replace_activations(ann, neurons, constant_input=True)
    assert list(snn.neurons()) == neurons
    assert not any(isinstance(module, nn.ReLU) for module in snn.modules())


@pytest.mark.parametrize("model", TWINS, ids=lambda model: model.name)
def test_a_converted_network_approaches_its_ann(model):
    converter = QCFS(levels=256, initial_scale=3.0)
    ann, inputs = twin(model, converter.activation)
    with torch.inference_mode():
        expected = ann(inputs)
        snn = converter.convert(ann, inputs).prepare_for_inference()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in snn.modules())
        logits = snn.run(inputs, 256, fold=16).double()
    error = {t: (logits[:t].mean(0) - expected).abs().mean() / expected.abs().mean() for t in (4, 32, 256)}
    assert error[256] < 0.02
    assert error[256] < error[32] < error[4]


@pytest.mark.parametrize(
    "converter", [MaxNorm(initial=0.5), ThresholdBalancing(initial=0.5, timesteps=16)], ids=lambda c: c.name
)
@pytest.mark.parametrize("model", TWINS, ids=lambda model: model.name)
def test_networks_of_plain_relus_convert_too(model, converter):
    ann, inputs = twin(model, converter.activation)
    with torch.inference_mode():
        expected = ann(inputs)
        snn = converter.convert(ann, inputs).prepare_for_inference()
        found = snn.run(inputs, 256, fold=16).double().mean(0)
    assert (found - expected).abs().mean() / expected.abs().mean() < 0.15

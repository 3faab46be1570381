"""tdBN and TEBN against their equations, folded and step by step."""

import pytest
import torch
from torch import nn

from bench_core.recording.ledger import OperationLedger
from bench_core.snn import Synapse
from bench_core.snn.normalization import TemporalScale, ThresholdDependentBatchNorm, batch_norm
from tests.helpers.numerics import make_exact, rounded
from tests.helpers.tiny_plugin import TinyConv

pytestmark = pytest.mark.numerics

T, B = 5, 6


@pytest.mark.parametrize(("threshold", "branches"), [(1.0, 1), (0.5, 1), (1.0, 2), (2.0, 3)])
def test_tdbn_normalises_to_alpha_times_the_threshold(threshold, branches):
    torch.manual_seed(0)
    norm = ThresholdDependentBatchNorm(3, threshold=threshold, branches=branches)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    x = 3 * torch.randn(8, 3, 4, 4) + 1
    found = norm(x)
    for channel in range(3):
        values = x[:, channel].flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        gamma, beta = norm.weight[channel].item(), norm.bias[channel].item()
        for v, y in zip(values[:20], found[:, channel].flatten().tolist()[:20], strict=True):
            scale = threshold / branches**0.5
            assert y == pytest.approx(gamma * scale * (v - mean) / (variance + norm.eps) ** 0.5 + beta, abs=1e-4)


def test_tdbn_of_a_chain_with_threshold_one_is_plain_batch_normalisation():
    x = torch.randn(8, 3, 4, 4)
    assert torch.equal(batch_norm("tdbn", 3)(x), batch_norm("bn", 3)(x))
    assert type(batch_norm("tebn", 3)) is nn.BatchNorm2d


def test_a_fused_tdbn_gives_the_same():
    torch.manual_seed(0)
    synapse = Synapse(nn.Conv2d(2, 3, 3, bias=False), ThresholdDependentBatchNorm(3, branches=2))
    for _ in range(3):
        synapse(torch.randn(T, B, 2, 6, 6))
    nn.init.uniform_(synapse.norm.bias, -1.0, 1.0)
    synapse.eval().double()
    x = torch.randn(T, B, 2, 6, 6, dtype=torch.float64)
    before = synapse(x)
    synapse.fuse()
    assert synapse.norm is None
    assert torch.allclose(synapse(x), before, rtol=0, atol=1e-12)


def network(*, constant_input):
    torch.manual_seed(4)
    shape = (1 if constant_input else 2, 8, 8)
    found = TinyConv().spiking(shape, 4, constant_input=constant_input, normalization="tebn", timesteps=T)
    for module in found.modules():
        if isinstance(module, TemporalScale):
            nn.init.uniform_(module.scale, 0.3, 3.0)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1.0, 3.0)
    inputs = rounded(torch.randn(B, 1, 8, 8)) if constant_input else (torch.rand(T, B, 2, 8, 8) < 0.4).float()
    return found, inputs


@pytest.mark.parametrize("constant_input", [True, False])
def test_a_network_with_tebn_is_the_same_folded_and_step_by_step(constant_input):
    net, inputs = network(constant_input=constant_input)
    make_exact(net.prepare_for_inference())
    with torch.inference_mode():
        folded = net.run(inputs, T)
        assert torch.equal(net.run(inputs, T, fold=2), folded)
        net.reset()
        frames = [inputs] * T if constant_input else list(inputs)
        stepwise = torch.stack([net.step(frame) for frame in frames])
        assert torch.equal(stepwise, folded)
        assert not torch.equal(folded[0], folded[1])
        net.reset()
        net.step(frames[0])
        kept = torch.tensor([4, 1])
        net.keep(kept)
        assert torch.equal(net.step(frames[1][kept]), folded[1][kept])


def test_each_timestep_has_a_scale_of_its_own():
    layer = TemporalScale(3)
    layer.scale.data = torch.tensor([1.0, 10.0, 100.0])
    x = torch.ones(3, 2, 1)
    assert layer(x)[:, 0, 0].tolist() == [1.0, 10.0, 100.0]
    layer.reset()
    assert [layer(x[:1])[0, 0, 0].item() for _ in range(3)] == [1.0, 10.0, 100.0]
    with pytest.raises(ValueError, match=r"timestep 4 of a network whose normalisation \(tebn\) knows 3"):
        layer(x[:1])


def test_scales_are_learnt():
    net, inputs = network(constant_input=True)
    net.train().run(inputs, T).square().sum().backward()
    scales = [module.scale for module in net.modules() if isinstance(module, TemporalScale)]
    assert len(scales) == 2
    assert all((scale.grad.abs() > 0).all() for scale in scales)


def test_the_ledger_counts_the_spikes_behind_a_scale():
    net, inputs = network(constant_input=True)
    net.prepare_for_inference()
    ledger = OperationLedger(net, (1, 8, 8))
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, T)
        spikes = collect(inputs)["spikes"]
    seen = torch.zeros(T)

    def look(_module, _inputs, output):
        seen.add_(output.flatten(1).sum(1))

    hooks = [neuron.register_forward_hook(look) for neuron in net.neurons()]
    with torch.inference_mode():
        net.run(inputs, T)
    for hook in hooks:
        hook.remove()
    assert spikes.sum(0).tolist() == seen.tolist()

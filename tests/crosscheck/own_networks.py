"""Networks of snnTorch and SpikingJelly, recorded as they are: ``tox -e crosscheck``.

Not collected by the plain run, whose environment lacks these packages.
"""

import re
import sys
from pathlib import Path

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from bench_core import Dataset, ImageSplit, load_trace
from bench_core.cli import main
from bench_core.errors import UsageError
from bench_core.recording.own_network import record_network
from tests.helpers.numerics import make_exact

DOCS = (Path(__file__).parent.parent.parent / "docs" / "networks.md").read_text(encoding="utf-8")
N, T, B, K = 23, 5, 4, 3


class Frames(Dataset):
    """Random frames of 1 x 6 x 6; events, or the first of them as an image."""

    name, classes, input_shape = "frames", K, (1, 6, 6)
    licence = reference = "the tests"
    identity = {"name": "frames"}

    def __init__(self, constant_input):
        self.constant_input = constant_input

    def split(self, name):
        images = torch.randint(0, 256, (N, 1, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        return ImageSplit(name, images, torch.arange(N) % K, torch.arange(N))

    def encode(self, images, timesteps, frames=None):
        if self.constant_input:
            return images / 128
        return torch.stack([images / (64 * 2 ** (t % 3)) for t in range(timesteps if frames is None else frames)])

    def shown(self):
        """What every sample sees, [T, N, 1, 6, 6]."""
        encoded = self.encode(self.split("test").images, T)
        return encoded.expand(T, *encoded.shape) if self.constant_input else encoded


@pytest.fixture(params=[True, False], ids=["images", "events"])
def data(request):
    return Frames(request.param)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(4)


def recorded(module, data, **options):
    """Logits [N, T, K] of a module recorded in batches of B."""
    return record_network(module, data, "test", T, name="theirs", batch=B, **options).logits


# --- snnTorch --------------------------------------------------------------------------------------------------------


def snntorch_net(make):
    """A net with a neuron below another module, where ``snntorch.utils.reset`` doesn't look."""
    hidden = nn.Sequential(nn.Linear(36, 9), make(9, 0.8))
    net = nn.Sequential(nn.Flatten(), hidden, nn.Linear(9, K), make(K, 0.9))
    with torch.no_grad():
        for synapse in (hidden[0], net[2]):
            synapse.weight.mul_(6)  # so that there are spikes
    return make_exact(net)


def leaky_by_hand(x, potential, beta, threshold=1.0):
    """snnTorch's Leaky with reset by subtraction, written from its equation."""
    fired = (potential > threshold).float()
    potential = beta * potential + x - fired * threshold
    return (potential > threshold).float(), potential


def test_snntorch_neurons_say_what_their_equations_say(data):
    net = snntorch_net(lambda size, beta: snntorch.Leaky(beta=beta, init_hidden=True))
    found = recorded(net, data)
    first, second = net[1][0], net[2]
    one, two, expected = torch.zeros(N, 9), torch.zeros(N, K), []
    with torch.no_grad():
        for frame in data.shown():
            spikes, one = leaky_by_hand(first(frame.flatten(1)), one, 0.8)
            spikes, two = leaky_by_hand(second(spikes), two, 0.9)
            expected.append(spikes)
    assert torch.equal(found, torch.stack(expected, dim=1))
    assert 0 < found.mean() < 1


KINDS = {
    "Leaky": lambda size, beta: snntorch.Leaky(beta=beta, init_hidden=True),
    "Lapicque": lambda size, beta: snntorch.Lapicque(beta=beta, init_hidden=True),
    "Synaptic": lambda size, beta: snntorch.Synaptic(alpha=0.7, beta=beta, init_hidden=True),
    "Alpha": lambda size, beta: snntorch.Alpha(alpha=0.85, beta=0.6, init_hidden=True),
    "RLeaky": lambda size, beta: snntorch.RLeaky(beta=beta, linear_features=size, init_hidden=True),
    "RSynaptic": lambda size, beta: snntorch.RSynaptic(alpha=0.7, beta=beta, linear_features=size, init_hidden=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_snntorch_neuron_starts_each_batch_anew(kind, data):
    """Beside fresh networks, one per sample: whatever a batch left behind would show."""
    net = snntorch_net(KINDS[kind]).eval()
    found, expected = recorded(net, data), []
    weights = net.state_dict()
    for sample in range(N):
        fresh = snntorch_net(KINDS[kind]).eval()
        fresh.load_state_dict(weights)
        with torch.no_grad():
            expected.append(torch.cat([fresh(frame[sample : sample + 1]) for frame in data.shown()]))
    assert torch.equal(found, torch.stack(expected))
    assert found.any()


def test_of_an_snntorch_layer_that_gives_spikes_and_potential_the_spikes_are_taken(data, capfd):
    net = snntorch_net(KINDS["Leaky"])
    spikes = recorded(net, data)
    net[3].output = True
    assert torch.equal(recorded(net, data), spikes)
    assert capfd.readouterr().err.count("forward gives 2 things; the first is taken as o_t") == 1


def test_an_snntorch_module_may_follow_the_protocol_instead(data):
    class ByPotential(nn.Module):
        def __init__(self):
            super().__init__()
            self.synapse, self.neuron = nn.Linear(36, K), snntorch.Leaky(beta=0.9, reset_mechanism="none")

        def reset(self):
            self.potential = self.neuron.reset_mem()

        def step(self, x):
            _, self.potential = self.neuron(self.synapse(x.flatten(1)), self.potential)
            return self.potential

    module = ByPotential()
    found, potential = recorded(module, data), torch.zeros(N, K)
    for t, frame in enumerate(data.shown()):
        potential = 0.9 * potential + module.synapse(frame.flatten(1)).detach()
        assert torch.allclose(found[:, t], potential, atol=1e-5)


class AsInTutorials(nn.Module):
    """All timesteps in one call."""

    def __init__(self):
        super().__init__()
        self.synapse, self.neuron = nn.Linear(36, K), snntorch.Leaky(beta=0.9)

    def forward(self, x):
        potential, spikes = self.neuron.reset_mem(), []
        for _ in range(T):
            fired, potential = self.neuron(self.synapse(x.flatten(1)), potential)
            spikes.append(fired)
        return torch.stack(spikes)


def test_an_snntorch_forward_over_all_timesteps_is_refused(data):
    with pytest.raises(UsageError, match=r"forward gave \[5, 4, 3\], expected \[4, 3\].*one timestep.*reset\(\)"):
        recorded(AsInTutorials(), data)


def test_snntorch_neurons_without_hidden_state_in_a_chain_are_told_what_they_lack(data):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), snntorch.Leaky(beta=0.9), nn.Linear(9, K))
    with pytest.raises(UsageError, match=r"forward on a frame .* raised TypeError: .*; .*init_hidden=True"):
        recorded(net, data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: snntorch.LeakyParallel(input_size=9, hidden_size=9),
        lambda: snntorch.StateLeaky(beta=0.9, channels=9),
        lambda: snntorch.AssociativeLeaky(in_dim=9, d_value=3, d_key=3, num_spiking_neurons=9),
    ],
    ids=["LeakyParallel", "StateLeaky", "AssociativeLeaky"],
)
def test_snntorch_neurons_that_take_all_timesteps_are_refused_by_name(data, make):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), make(), nn.Linear(9, K))
    kind = type(net[2]).__name__
    with pytest.raises(UsageError, match=rf"neuron 2 \({kind}\) takes all timesteps at once; give it reset\(\)"):
        recorded(net, data)


# --- SpikingJelly ----------------------------------------------------------------------------------------------------

NODES = {
    "IF": neuron.IFNode,
    "LIF": lambda: neuron.LIFNode(tau=2.0),
    "ParametricLIF": lambda: neuron.ParametricLIFNode(init_tau=2.0),
    "LIF, soft reset": lambda: neuron.LIFNode(tau=2.0, v_reset=None),
}


def spikingjelly_net(node):
    net = nn.Sequential(
        *(layer.Conv2d(1, 4, 3, padding=1), layer.BatchNorm2d(4), NODES[node](), layer.MaxPool2d(2)),
        nn.Sequential(layer.Flatten(), layer.Linear(36, 9), NODES[node]()),
        layer.Linear(9, K),
    )
    with torch.no_grad():
        for weight in (net[0].weight, net[4][1].weight):
            weight.mul_(4)  # so that there are spikes
    return make_exact(net.eval())


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("node", NODES)
def test_a_spikingjelly_network_says_what_it_says_in_multi_step_mode(node, mode, data):
    net = spikingjelly_net(node)
    functional.set_step_mode(net, mode)
    found = recorded(net, data)
    functional.set_step_mode(net, "m")
    functional.reset_net(net)
    with torch.no_grad():
        expected = net(data.shown().contiguous())
    assert torch.equal(found, expected.transpose(0, 1))
    assert found.std(dim=1).max() > 0


@pytest.mark.parametrize("make", [lambda: neuron.PSN(T=T), lambda: layer.SeqToANNContainer(nn.Linear(K, K))])
def test_what_has_no_single_step_in_spikingjelly_is_refused_by_name(make):
    net = nn.Sequential(layer.Flatten(), layer.Linear(36, K), make())
    kind = type(net[2]).__name__
    with pytest.raises(UsageError, match=rf"module 2 \({kind}\) has no step mode 's'; give it reset\(\)"):
        record_network(
            net, Frames(constant_input=True), "test", T, name="theirs", batch=T
        )  # a batch could pass for time


# --- as the documents show it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["snntorch", "spikingjelly"])
def test_the_examples_of_the_documents_are_recorded_by_the_command_line(library, tmp_path, monkeypatch, capfd):
    (block,) = [
        text for text in re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL) if f"def {library}_net" in text
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / f"shown_{library}.py").write_text(block)
    shown = {}
    exec(block, shown)
    torch.save(shown[f"{library}_net"]().state_dict(), "net.pt")
    own = ["--model", f"shown_{library}:{library}_net", "--checkpoint", "net.pt", "--dataset", "fashion-mnist"]
    monkeypatch.setattr(sys, "argv", ["exitbench", "record", *own, "--timesteps", "4", "--split", "calibration"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, capfd.readouterr().err
    trace = load_trace(tmp_path / f"{library}_net-calibration.safetensors")
    assert (len(trace), trace.timesteps, trace.classes) == (5000, 4, 10)
    assert f'"adapter": "{library}"' in trace.header["provenance"]

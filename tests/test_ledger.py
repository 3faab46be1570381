"""The operation ledger counts what a plain loop over every spike and every weight counts."""

import json

import pytest
import torch
from torch import nn

from bench_core.recording.ledger import OperationLedger, UncountableLayerError
from bench_core.recording.record import Recording, record
from bench_core.run.run import run_suite
from bench_core.snn import AveragePool, Flatten, SpikingNetwork, SpikingNeuron, Synapse, if_neuron, lif_neuron
from bench_core.store.local import Store
from bench_core.trace.files import load_trace, save_trace
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.numerics import make_exact, rounded
from tests.helpers.suites import parsed_suite, tiny_registry
from tests.helpers.tiny_plugin import TinyConv, TinyEvents, TinyShapes
from tests.reference.operations import synapses_met
from tests.traces import tensors_of

pytestmark = pytest.mark.numerics

T, B = 4, 3


def conv(*sizes, **options):
    return Synapse(nn.Conv2d(*sizes, bias=False, **options))


def linear(inputs, outputs):
    return Synapse(nn.Linear(inputs, outputs, bias=False))


lif, flat, pool = lif_neuron, Flatten, AveragePool

NETS = {
    "padding": lambda: [conv(2, 3, 3, padding=1), lif(), conv(3, 4, 3, padding=1), lif(), flat(), linear(4 * 81, 5)],
    "stride": lambda: [
        conv(2, 3, 3, stride=2),
        lif(),
        conv(3, 4, 3, stride=2, padding=1),
        lif(),
        flat(),
        linear(16, 5),
    ],
    "groups": lambda: [conv(2, 4, 3, padding=1), lif(), conv(4, 8, 3, groups=2), lif(), flat(), linear(8 * 49, 5)],
    "dilation and no square": lambda: [
        *(conv(2, 3, (1, 3), padding=(0, 2)), lif(), conv(3, 2, 3, dilation=2), lif(), flat(), linear(2 * 5 * 7, 5)),
    ],
    "pool that drops a rim": lambda: [
        *(conv(2, 3, 3, padding=1), lif(), pool(2), conv(3, 4, 3, padding=1), lif(), pool(2), flat(), linear(16, 5)),
    ],
    "two pools in a row": lambda: [
        *(conv(2, 3, 3, padding=1), lif(), pool(2), pool(2), conv(3, 4, 2), lif(), flat(), linear(4, 5)),
    ],
    "spikes that carry a threshold": lambda: [
        *(conv(2, 3, 3, padding=1), if_neuron(0.3), pool(3), conv(3, 4, 3, padding=1), if_neuron(1.7)),
        *(flat(), linear(36, 5)),
    ],
    "linear layers": lambda: [conv(2, 1, 9), lif(), flat(), linear(1, 7), lif(), linear(7, 5)],
}
SHAPE = (2, 9, 9)


def build(layers, *, constant_input):
    torch.manual_seed(2)
    net = SpikingNetwork(layers(), constant_input=constant_input)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight, -0.4, 0.9)
    return make_exact(net.prepare_for_inference())


def network_input(*, constant_input):
    generator = torch.Generator().manual_seed(4)
    if constant_input:
        return rounded(torch.rand(B, *SHAPE, generator=generator))
    return torch.randint(0, 3, (T, B, *SHAPE), generator=generator).float()


def count(net, inputs):
    """What the ledger counts: accumulates and spikes, [B, T]."""
    ledger = OperationLedger(net, SHAPE)
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, T)
        return tuple(collect(inputs).values())


# --- the plain loop --------------------------------------------------------------------------------------------------


def spike_costs(layers, index, shape):
    """Weights met by a spike at each position behind layer ``index``, as a dictionary."""
    costs = {}
    for channel in range(shape[0]):
        for row in range(shape[1]):
            for column in range(shape[2]):
                place, size = (row, column), shape[1:]
                behind = index + 1
                while not isinstance(layers[behind], Synapse):
                    if isinstance(layers[behind], AveragePool):
                        pool = layers[behind].size
                        place, size = (place[0] // pool, place[1] // pool), (size[0] // pool, size[1] // pool)
                    behind += 1
                inside = place[0] < size[0] and place[1] < size[1]
                costs[channel, row, column] = (
                    synapses_met(layers[behind].operation, (channel, *place), (channel + 1, *size)) if inside else 0
                )
    return costs


def plain_count(net, inputs):
    """Accumulates and spikes by going through every spike, [B][T] each."""
    layers = list(net.layers)
    sent = {}
    for index, layer in enumerate(layers):
        if isinstance(layer, SpikingNeuron):
            layer.register_forward_hook(lambda _m, _i, output, index=index: sent.__setitem__(index, output.clone()))
    with torch.inference_mode():
        net.run(inputs, T)
    acs = [[0] * T for _ in range(B)]
    spikes = [[0] * T for _ in range(B)]
    for index, output in sent.items():
        shape = (*output.shape[2:], 1, 1)[:3]
        costs = spike_costs(layers, index, shape)
        for t, sample, *place in torch.nonzero(output).tolist():
            acs[sample][t] += costs[(*place, 0, 0)[:3]]
            spikes[sample][t] += 1
    if not net.constant_input:
        costs = spike_costs([None, layers[0]], 0, SHAPE)
        for t, sample, *place in torch.nonzero(inputs).tolist():
            acs[sample][t] += costs[tuple(place)] * int(inputs[(t, sample, *place)])
    return acs, spikes


@pytest.mark.parametrize("constant_input", [True, False], ids=["constant", "events"])
@pytest.mark.parametrize("layers", NETS.values(), ids=NETS)
def test_accumulates_and_spikes_are_those_of_a_loop_over_every_spike(layers, constant_input):
    net = build(layers, constant_input=constant_input)
    inputs = network_input(constant_input=constant_input)
    acs, spikes = count(net, inputs)
    expected_acs, expected_spikes = plain_count(net, inputs)
    assert acs.dtype == spikes.dtype == torch.int64
    assert acs.tolist() == expected_acs
    assert spikes.tolist() == expected_spikes
    assert spikes.sum() > 0


@pytest.mark.parametrize("layers", NETS.values(), ids=NETS)
def test_the_first_layer_is_multiplied_once_for_every_weight_inside_the_image(layers):
    net = build(layers, constant_input=True)
    operation = net.layers[0].operation
    positions = [(c, y, x) for c in range(2) for y in range(9) for x in range(9)]
    expected = sum(synapses_met(operation, place, SHAPE) for place in positions)
    assert OperationLedger(net, SHAPE).macs_once == expected
    assert OperationLedger(build(layers, constant_input=False), SHAPE).macs_once == 0


def test_every_neuron_is_updated_once_a_timestep():
    net = build(NETS["pool that drops a rim"], constant_input=True)
    assert OperationLedger(net, SHAPE).neuron_updates == 3 * 9 * 9 + 4 * 4 * 4


@pytest.mark.parametrize("layers", NETS.values(), ids=NETS)
def test_no_event_costs_nothing(layers):
    acs, spikes = count(build(layers, constant_input=False), torch.zeros(T, B, *SHAPE))
    assert acs.tolist() == spikes.tolist() == [[0] * T] * B


def test_an_event_at_a_border_costs_less_than_one_inside():
    net = build(NETS["padding"], constant_input=False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)  # so that only the event itself is paid for
    inputs = torch.zeros(T, B, *SHAPE)
    inputs[0, 0, 0, 0, 0] = inputs[1, 0, 0, 0, 4] = inputs[2, 0, 0, 4, 4] = 1
    inputs[3, 0, 0, 4, 4] = 2
    acs, _ = count(net, inputs)
    assert acs[0].tolist() == [3 * 4, 3 * 6, 3 * 9, 2 * 3 * 9]
    assert acs[1:].sum() == 0


def test_counts_do_not_depend_on_how_timesteps_are_folded():
    net = build(NETS["padding"], constant_input=False)
    inputs = network_input(constant_input=False)
    expected = count(net, inputs)
    ledger = OperationLedger(net, SHAPE)
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, T, fold=3)
        folded = tuple(collect(inputs).values())
        net.reset()
        for frame in inputs:
            net.step(frame)
        stepped = tuple(collect(inputs).values())
    for found in (folded, stepped):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_counting_ends_with_its_block():
    net = build(NETS["padding"], constant_input=True)
    ledger = OperationLedger(net, SHAPE)
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(network_input(constant_input=True), T)
        collect(network_input(constant_input=True))
    assert all(not layer._forward_hooks for layer in net.layers)


# --- what can't be counted -------------------------------------------------------------------------------------------


class Doubling(nn.Module):
    """A layer that the ledger has no rule for."""

    def forward(self, x):
        return 2 * x


UNCOUNTABLE = {
    "an unknown layer": lambda: [conv(2, 3, 3), Doubling(), lif(), flat(), linear(147, 5)],
    "an unknown layer in front": lambda: [Doubling(), conv(2, 3, 3), lif(), flat(), linear(147, 5)],
    "neurons behind neurons": lambda: [conv(2, 3, 3), lif(), lif(), flat(), linear(147, 5)],
    "neurons at the end": lambda: [conv(2, 3, 3), lif(), flat(), linear(147, 5), lif()],
    "a synapse fed by a synapse": lambda: [conv(2, 3, 3), conv(3, 3, 1), lif(), flat(), linear(147, 5)],
    "a synapse fed by a flattened synapse": lambda: [conv(2, 3, 9), flat(), linear(3, 6), lif(), linear(6, 5)],
}


@pytest.mark.parametrize("layers", UNCOUNTABLE.values(), ids=UNCOUNTABLE)
def test_a_layer_without_a_rule_is_refused(layers):
    net = SpikingNetwork(layers(), constant_input=True)
    with pytest.raises(UncountableLayerError):
        OperationLedger(net, SHAPE)


class TinyDoubling(TinyConv):
    """The tiny network with a layer that has no rule."""

    name = "tiny-doubling"

    def layers(self, input_shape, classes, parts):
        first, *others = super().layers(input_shape, classes, parts)
        return [first, Doubling(), *others]


def test_an_unknown_layer_is_named(tmp_path):
    net = TinyDoubling().spiking((1, 8, 8), 4, constant_input=True)
    with pytest.raises(UncountableLayerError, match="Doubling"):
        OperationLedger(net, (1, 8, 8))


@pytest.mark.parametrize("dataset", [TinyShapes(), TinyEvents()], ids=lambda dataset: dataset.name)
def test_a_recorded_trace_holds_what_was_counted(dataset):
    torch.manual_seed(1)
    net = TinyConv().spiking(dataset.input_shape, 4, constant_input=dataset.constant_input).prepare_for_inference()
    split = dataset.split("calibration")
    trace = record(Recording(net, dataset, split, T), title="record")
    assert {name: tuple(values.shape) for name, values in trace.counts.items()} == dict.fromkeys(
        ("macs", "acs", "neuron_updates", "spikes"), (200, T)
    )
    assert trace.counts["macs"].sum() == 0
    assert trace.counts["neuron_updates"].unique().tolist() == [4 * 64 + 8 * 16]
    first_layer = 4 * (36 * 9 + 4 * 6 * 6 + 4 * 4)  # weights inside the image, 3 x 3 over 8 x 8
    assert trace.macs_once.unique().tolist() == [first_layer if dataset.constant_input else 0]
    some = torch.arange(150, 170)
    inputs = dataset.encode(split.images[some], T)
    ledger = OperationLedger(net, dataset.input_shape)
    with torch.inference_mode(), ledger.counting() as collect:
        net.run(inputs, T)
        acs, spikes = collect(inputs).values()
    assert torch.equal(trace.counts["acs"][some], acs)
    assert torch.equal(trace.counts["spikes"][some], spikes)


@pytest.mark.parametrize("dataset", [TinyShapes(), TinyEvents()], ids=lambda dataset: dataset.name)
def test_counts_by_layer_are_kept_where_they_are_asked_for(dataset, tmp_path):
    torch.manual_seed(1)
    net = TinyConv().spiking(dataset.input_shape, 4, constant_input=dataset.constant_input).prepare_for_inference()
    split = dataset.split("calibration")
    plain = record(Recording(net, dataset, split, T), title="record")
    save_trace(
        record(Recording(net, dataset, split, T, per_layer=True), title="record"), tmp_path / "trace.safetensors"
    )
    trace = load_trace(tmp_path / "trace.safetensors")
    assert plain.layer_counts == {}
    assert plain.layers == []
    for name, values in tensors_of(plain).items():
        assert torch.equal(tensors_of(trace)[name], values), name
    kinds = [(layer["name"], layer["kind"], layer["size"]) for layer in trace.layers]
    assert kinds == [
        ("layers.0", "synapses", 4 * 64),
        ("layers.1", "neurons", 4 * 64),
        ("layers.3", "synapses", 8 * 16),
        ("layers.4", "neurons", 8 * 16),
        ("layers.6", "synapses", 4),
    ]
    acs, spikes = trace.layer_counts["layer_acs"], trace.layer_counts["layer_spikes"]
    assert torch.equal(acs.sum(2), plain.counts["acs"])
    assert torch.equal(spikes.sum(2), plain.counts["spikes"])
    assert torch.equal(acs[..., 4], 4 * spikes[..., 3])  # every spike of the last layer meets four weights
    assert (acs[..., 0].sum() > 0) == (not dataset.constant_input)
    assert acs[..., [1, 3]].sum() == spikes[..., [0, 2, 4]].sum() == 0


def test_a_network_with_an_unknown_layer_is_recorded_without_counts(capfd):
    dataset = TinyShapes()
    net = TinyDoubling().spiking((1, 8, 8), 4, constant_input=True).prepare_for_inference()
    trace = record(Recording(net, dataset, dataset.split("calibration"), T, per_layer=True), title="record")
    assert trace.counts == trace.layer_counts == {}
    assert trace.macs_once is None
    assert trace.logits.shape == (200, T, 4)
    assert "Doubling" in capfd.readouterr().err


def test_energies_that_were_not_counted_are_not_available(tmp_path):
    registry = tiny_registry()
    registry.models["tiny-doubling"] = TinyDoubling()
    suite = parsed_suite()
    workload = suite.workloads[0].model_copy(update={"model": "tiny-doubling"})
    board = run_suite(
        suite.model_copy(update={"workloads": [workload]}),
        registry=registry,
        output=tmp_path / "board",
        store=Store(tmp_path / "store", zoo=None),
    )
    assert (board.rows["status"] == "ok").all()
    assert board.rows[["energy_cmos45_joules", "energy_cmos45_share"]].isna().all(axis=None)
    header, _, *lines = (tmp_path / "board" / "leaderboard.md").read_text().split("| rank")[1].splitlines()
    place = next(number for number, title in enumerate(header.split("|")) if "µJ" in title)
    shown = [line.split("|")[place + 1].strip() for line in lines if line.startswith("|")]
    assert len(shown) == 3
    assert set(shown) == {"n/a"}
    assert json.loads((tmp_path / "board" / "manifest.json").read_text())["workloads"]

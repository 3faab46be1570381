"""The operation ledger: counts the operations of a spiking network, per sample, timestep and layer, while it runs.

Rules. They describe hardware that sends spikes as events.

- An analogue input costs multiply-accumulates with all of its weights, zeros included; a weight that would reach
  outside the image is not counted.
- A spike (or an input event) costs one accumulate for every synapse it meets, regardless of the synapse's weight.
- Average pooling passes each spike on to the next layer, since the pool's constant can be folded into that layer's
  weights: a pooled spike costs the fan-out at its pooled position, and nothing in a rim that the pool drops.
- In a sum of currents, a convolution as shortcut is a layer like any other, and an identity shortcut costs one
  accumulate for every spike that it carries.
- In a sum of spikes (SEW) nothing is added up: each branch's spikes travel separately, so that a sum of k counts as k
  spikes and costs k times the fan-out of the following layer.
- Biases, thresholds, potentials and learnt scales per timestep belong to the neuron update, one per neuron and step.

By every rule, a spike's price depends only on the place that sent it. So the price of each neuron is computed once,
from the network's end to its beginning, and counting is one product per layer of neurons.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import torch
from torch import nn

from bench_core.snn.layers import AveragePool, Flatten, GlobalAveragePool, Residual, Synapse
from bench_core.snn.network import SpikingNetwork
from bench_core.snn.neurons import SpikingNeuron
from bench_core.snn.normalization import TemporalScale

__all__ = ["CountedLayer", "OperationLedger", "UncountableLayerError"]


class UncountableLayerError(Exception):
    """A layer without a counting rule, named by its place in the network; energies of the workload are n/a."""


@dataclass(frozen=True)
class CountedLayer:
    """A layer for which operations are reported.

    Attributes:
        name: its place in the network, as in the names of its weights.
        kind: ``synapses`` (accumulates), ``sum`` (those of an identity shortcut) or ``neurons`` (updates and spikes).
        size: outputs.
        synapses: connections inside the image; 0 for neurons.
    """

    name: str
    kind: str
    size: int
    synapses: int = 0


class OperationLedger:
    """Counts operations of one network on inputs of one shape.

    Args:
        network: the network that will run.
        input_shape: (C, H, W) of a frame.
        per_layer: report accumulates and spikes layer by layer as well.

    Raises:
        UncountableLayerError: naming the layer.

    Attributes:
        macs_once: multiply-accumulates spent once per sample, under constant input, by the first layer; else 0.
        neuron_updates: per sample and timestep.
        layers: those for which operations are reported, input to output.
    """

    def __init__(self, network: SpikingNetwork, input_shape: tuple[int, int, int], *, per_layer: bool = False) -> None:
        """Compute the prices of all spikes; see the class."""
        self._constant_input = network.constant_input
        prices = _Prices(network, input_shape)
        self.layers = prices.layers
        self._position = {module: index for index, module in enumerate(prices.counted)}
        self._per_layer = per_layer
        self._input = _Synapses(prices.input, 1.0, apart=per_layer)
        self._seen_at = {neuron: sent.seen_at for neuron, sent in prices.sent.items()}
        self._neurons = {
            neuron: _Synapses(sent.costs, sent.unit, apart=per_layer) for neuron, sent in prices.sent.items()
        }
        self.neuron_updates = sum(layer.size for layer in self.layers if layer.kind == "neurons")
        self.macs_once = self.layers[0].synapses if network.constant_input else 0
        self._counted: dict[SpikingNeuron, list[torch.Tensor]] = {neuron: [] for neuron in self._neurons}

    @contextmanager
    def counting(self) -> Iterator[Callable[[torch.Tensor], dict[str, torch.Tensor]]]:
        """Count the network's operations inside the block.

        Yields a function that, given the network's input, returns the operations since its last call: ``acs`` and
        ``spikes``, int64 [B, T], and with ``per_layer`` also ``layer_acs`` and ``layer_spikes``, int64 [B, T, L].
        """
        hooks = [place.register_forward_hook(partial(self._count, neuron)) for neuron, place in self._seen_at.items()]
        try:
            yield self._collect
        finally:
            for hook in hooks:
                hook.remove()
            self._forget()

    def _count(self, neuron: SpikingNeuron, _place: object, _inputs: object, output: torch.Tensor) -> None:
        self._counted[neuron].append(self._neurons[neuron].gather(output))

    def _forget(self) -> None:
        for folds in self._counted.values():
            folds.clear()

    def _collect(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        counted = {  # [T, B, columns]
            neuron: self._neurons[neuron].meet(torch.cat(folds)) for neuron, folds in self._counted.items()
        }
        self._forget()
        acs = torch.stack([values[..., :-1].sum(-1) for values in counted.values()]).sum(0)
        spikes = torch.stack([values[..., -1] for values in counted.values()]).sum(0)
        events = None
        if not self._constant_input:  # each event counts like a spike
            events = self._input.meet(self._input.gather(inputs))[..., :-1]
            acs = acs + events.sum(-1)
        found = {"acs": acs, "spikes": spikes}
        if self._per_layer:
            found |= self._by_layer(counted, events)
        return {name: values.transpose(0, 1).round().to(torch.int64) for name, values in found.items()}

    def _by_layer(
        self, counted: dict[SpikingNeuron, torch.Tensor], events: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        some = next(iter(counted.values()))
        acs, spikes = some.new_zeros((2, *some.shape[:2], len(self.layers)))
        for neuron, values in counted.items():
            spikes[..., self._position[neuron]] = values[..., -1]
            for column, layer in enumerate(self._neurons[neuron].layers):
                acs[..., self._position[layer]] += values[..., column]
        if events is not None:
            acs[..., 0] += events[..., 0]
        return {"layer_acs": acs, "layer_spikes": spikes}


class _Synapses:
    """The synapses after a layer of neurons: how many each of its spikes meets.

    Args:
        costs: accumulates that a spike seen at each position causes, by the layer that performs them, float64 [C, H, W]
            or [F].
        unit: contribution of one spike to the values seen.
        apart: count each layer separately.

    Attributes:
        layers: the following layers, in the order of the columns.
    """

    def __init__(self, costs: dict[nn.Module, torch.Tensor], unit: float, *, apart: bool) -> None:
        self.layers = list(costs)
        self._unit = unit
        fan_outs = list(costs.values()) if apart else [torch.stack(list(costs.values())).sum(0)]
        self._channels_alike = all(values.dim() == 3 and bool((values == values[:1]).all()) for values in fan_outs)
        columns = [(values[0] if self._channels_alike else values).flatten() for values in fan_outs]
        self._weights = torch.stack([*columns, torch.ones_like(columns[0])], dim=1)

    def gather(self, seen: torch.Tensor) -> torch.Tensor:
        """Return the input of ``meet`` from values seen [T, B, ...], multiples of the unit: [T, B, positions], a copy.

        If the fan-out is the same in every channel, these are the sums over channels.
        """
        return seen.sum(2).flatten(2) if self._channels_alike else seen.flatten(2).clone()

    def meet(self, gathered: torch.Tensor) -> torch.Tensor:
        """Return synapses met, by column, and last the spikes, per timestep and sample, float64 [T, B, columns].

        Whole numbers, exact below 2**53.
        """
        spikes = gathered.to(torch.float64)
        if self._unit != 1.0:
            spikes = (spikes / self._unit).round_()
        self._weights = self._weights.to(spikes.device)
        return spikes @ self._weights


@dataclass(frozen=True)
class _Behind:
    """The destinations of a place in the network's output.

    Attributes:
        reached: for currents: 1 where they reach neurons or the logits, 0 where a pool drops them, float64; None if
            nothing takes a current.
        costs: for spikes: accumulates that one causes, by the layer that performs them, float64 each; None if nothing
            takes a spike.
    """

    reached: torch.Tensor | None = None
    costs: dict[nn.Module, torch.Tensor] | None = None

    def before(self, spread: Callable[[torch.Tensor], torch.Tensor]) -> "_Behind":
        """Return the destinations of the input of a pass-through layer; ``spread`` maps its outputs to its inputs."""
        reached = None if self.reached is None else spread(self.reached)
        costs = None if self.costs is None else {layer: spread(values) for layer, values in self.costs.items()}
        return _Behind(reached, costs)


@dataclass(frozen=True)
class _Sent:
    """Spikes of a layer of neurons, and where they are seen.

    Attributes:
        seen_at: the neurons themselves, or an average pool directly after them: it holds every spike in fewer values.
        unit: contribution of one spike to the output there.
        costs: accumulates of a spike, by the layer that performs them, float64 [C, H, W] or [F] of that output.
    """

    seen_at: nn.Module
    unit: float
    costs: dict[nn.Module, torch.Tensor]


class _Prices:
    """The cost of a spike from every place that sends one.

    Attributes:
        input: accumulates of an input event, by layer, float64 [C, H, W] each.
        sent: the spikes of each layer of neurons.
        counted: the modules that perform operations, input to output.
        layers: their descriptions, in the same order.
    """

    def __init__(self, network: SpikingNetwork, input_shape: tuple[int, int, int]) -> None:
        self._names = {module: name for name, module in network.named_modules()}
        self._shapes = self._measure(network, input_shape)
        self._synapses: dict[nn.Module, int] = {}
        self._costs: dict[nn.Module, dict[nn.Module, torch.Tensor]] = {}  # of a spike at a layer's output
        self._next: dict[nn.Module, nn.Module | None] = {}  # the following layer, in a row of layers
        stem, *others = network.layers
        logits = _Behind(torch.ones(self._shapes[network.layers[-1]][1], dtype=torch.float64))
        behind = self._walk(others, logits)
        if not isinstance(stem, Synapse):
            raise self._uncountable(stem, "which reads the input and is no Synapse")
        costs = self._step(stem, behind).costs
        assert costs is not None
        self.input = costs
        self.sent = {neuron: self._spikes_of(neuron) for neuron in network.neurons()}
        if not self.sent:
            raise UncountableLayerError("a network without neurons")
        self.counted = [module for module in network.modules() if module in self._synapses or module in self.sent]
        self.layers = tuple(self._describe(module) for module in self.counted)

    def _walk(self, row: Iterable[nn.Module], behind: _Behind) -> _Behind:
        layers = list(row)
        for layer, following in reversed(list(zip_longest(layers, layers[1:]))):
            if type(row) in (list, nn.Sequential):  # a subclass may do anything between two layers
                self._next[layer] = following
            behind = self._step(layer, behind)
        return behind

    def _step(self, layer: nn.Module, behind: _Behind) -> _Behind:
        """Return the destinations of the input of ``layer``, given those of its output, ``behind``."""
        if behind.costs is not None:
            self._costs[layer] = behind.costs
        if isinstance(layer, SpikingNeuron):
            if behind.costs is None:
                raise self._uncountable(layer, "whose spikes meet no synapse")
            return _Behind(torch.ones(self._shapes[layer][1], dtype=torch.float64))
        if isinstance(layer, Synapse):
            return self._before_synapse(layer, behind)
        if isinstance(layer, Residual):
            return self._before_residual(layer, behind)
        if isinstance(layer, nn.Sequential):
            return self._walk(layer, behind)
        return self._before_what_passes_on(layer, behind)

    def _before_synapse(self, layer: Synapse, behind: _Behind) -> _Behind:
        operation, entered = layer.operation, self._shapes[layer][0]
        if behind.reached is None:
            raise self._uncountable(layer, "whose currents meet another synapse")
        if isinstance(operation, nn.Linear):
            known = len(entered) == 1
        else:
            known = isinstance(operation, nn.Conv2d) and operation.padding_mode == "zeros"
        if not known:
            raise self._uncountable(layer, f"whose operation is {operation}")
        fan_out = layer.fan_out(entered, behind.reached)
        self._synapses[layer] = int(fan_out.sum())
        return _Behind(costs={layer: fan_out})

    def _before_residual(self, layer: Residual, behind: _Behind) -> _Behind:
        if behind.reached is not None and behind.costs is None:  # a spike that reaches a sum of currents is added
            behind = _Behind(behind.reached, {layer: behind.reached})
        body, shortcut = (self._walk(branch, behind).costs for branch in (layer.body, layer.shortcut))
        if body is None or shortcut is None:
            raise self._uncountable(layer, "which isn't fed by spikes")
        costs = dict(body)
        for target, values in shortcut.items():
            costs[target] = costs[target] + values if target in costs else values
        if layer in costs:
            self._synapses[layer] = int(costs[layer].sum())
        return _Behind(costs=costs)

    def _before_what_passes_on(self, layer: nn.Module, behind: _Behind) -> _Behind:
        if isinstance(layer, TemporalScale):
            return _Behind(behind.reached)  # only currents: a scaled spike would no longer be a spike
        if isinstance(layer, Flatten):
            return behind.before(lambda values: values.reshape(self._shapes[layer][0]))
        if isinstance(layer, GlobalAveragePool):
            return behind.before(lambda values: values[:, None, None].expand(self._shapes[layer][0]))
        if isinstance(layer, AveragePool):
            return behind.before(lambda values: _spread(values, layer.size, self._shapes[layer][0]))
        raise self._uncountable(layer)

    def _spikes_of(self, neuron: SpikingNeuron) -> _Sent:
        channels, *sides = self._shapes[neuron][1]
        pool = self._next.get(neuron)
        if type(pool) is AveragePool and all(side % pool.size == 0 for side in sides):
            window = pool.size**2
            # The float32 error of the pool and the sum over channels is at most this over 2**24 spikes: a quarter.
            if window * channels * (window + channels) <= 2**22:
                return _Sent(pool, neuron.amplitude / window, self._costs[pool])
        return _Sent(neuron, neuron.amplitude, self._costs[neuron])

    def _describe(self, module: nn.Module) -> CountedLayer:
        kinds = {Synapse: "synapses", Residual: "sum", SpikingNeuron: "neurons"}
        kind = next(kind for known, kind in kinds.items() if isinstance(module, known))
        return CountedLayer(self._names[module], kind, self._shapes[module][1].numel(), self._synapses.get(module, 0))

    def _measure(
        self, network: SpikingNetwork, input_shape: tuple[int, int, int]
    ) -> dict[nn.Module, tuple[torch.Size, torch.Size]]:
        """Return the shapes of one sample's input and output at each layer, without time and batch."""
        shapes: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}

        def look(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            if module in shapes:
                raise self._uncountable(module, "which is used twice")
            if inputs and isinstance(output, torch.Tensor):
                shapes[module] = inputs[0].shape[2:], output.shape[2:]

        hooks = [module.register_forward_hook(look) for module in self._names if module is not network]
        parameter = next(network.parameters())
        frame = torch.zeros((1, *input_shape), dtype=parameter.dtype, device=parameter.device)
        try:
            network.reset()
            with torch.no_grad():
                network.step(frame)
        finally:
            network.reset()
            for hook in hooks:
                hook.remove()
        return shapes

    def _uncountable(self, layer: nn.Module, why: str = "") -> UncountableLayerError:
        return UncountableLayerError(f"{self._names[layer]} ({type(layer).__name__})" + (f", {why}" if why else ""))


def _spread(values: torch.Tensor, size: int, entered: torch.Size) -> torch.Tensor:
    """Map values from the outputs of an average pool to its inputs; a rim that the pool drops gets zero."""
    before = torch.zeros(entered, dtype=torch.float64)
    spread = values.repeat_interleave(size, 1).repeat_interleave(size, 2)
    before[:, : spread.shape[1], : spread.shape[2]] = spread
    return before

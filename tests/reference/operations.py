"""What spikes cost, by following every spike to every weight that it meets, in plain Python."""

from collections import Counter

from torch import nn

from bench_core.snn import AveragePool, Flatten, GlobalAveragePool, Residual, SpikingNeuron, Synapse


def synapses_met(operation, place, size):
    """How many weights an input at ``place`` in a volume of ``size`` meets: one per output that it reaches."""
    if isinstance(operation, nn.Linear):
        return sum(1 for _output in range(operation.out_features))
    channel, row, column = place
    stride, padding, dilation = operation.stride, operation.padding, operation.dilation
    kernel = operation.kernel_size
    out_height = (size[1] + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    out_width = (size[2] + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    in_group = operation.in_channels // operation.groups
    out_group = operation.out_channels // operation.groups
    met = 0
    for output in range(operation.out_channels):
        if output // out_group != channel // in_group:
            continue
        for out_row in range(out_height):
            for out_column in range(out_width):
                for down in range(kernel[0]):
                    for right in range(kernel[1]):
                        at_row = out_row * stride[0] - padding[0] + down * dilation[0]
                        at_column = out_column * stride[1] - padding[1] + right * dilation[1]
                        met += (at_row, at_column) == (row, column)
    return met


def price(place, size, layers, residual=None):
    """Accumulates of one spike at ``place`` in a volume of ``size``, by the layer that does them, as a Counter.

    ``layers`` is all that lies between the spike and the logits, in order; ``residual`` the last sum that it came to.
    """
    for index, layer in enumerate(layers):
        if isinstance(layer, Synapse):
            return Counter({layer: synapses_met(layer.operation, place, size)})
        if isinstance(layer, SpikingNeuron):  # it got here by an identity shortcut: added to the current
            return Counter({residual: 1})
        if isinstance(layer, Residual):
            rest = layers[index + 1 :]
            ways = ([*branch, *rest] for branch in (layer.body, layer.shortcut))
            found = Counter()
            for way in ways:
                found.update(price(place, size, way, layer))
            return found
        if isinstance(layer, nn.Sequential):
            return price(place, size, [*layer, *layers[index + 1 :]], residual)
        if isinstance(layer, AveragePool):
            place = (place[0], place[1] // layer.size, place[2] // layer.size)
            size = (size[0], size[1] // layer.size, size[2] // layer.size)
            if place[1] >= size[1] or place[2] >= size[2]:
                return Counter()  # in the rim that the pool drops
        elif isinstance(layer, GlobalAveragePool):
            place, size = place[:1], size[:1]
        elif isinstance(layer, Flatten):
            place, size = ((place[0] * size[1] + place[1]) * size[2] + place[2],), (size[0] * size[1] * size[2],)
        else:
            raise AssertionError(f"what is a {layer}?")
    raise AssertionError("a spike left the network")


def neurons_with_what_lies_behind(layers, rest=()):
    """(layer of neurons, all layers between it and the logits), input to output."""
    for index, layer in enumerate(layers):
        behind = [*layers[index + 1 :], *rest]
        if isinstance(layer, SpikingNeuron):
            yield layer, behind
        elif isinstance(layer, nn.Sequential):
            yield from neurons_with_what_lies_behind(list(layer), behind)
        elif isinstance(layer, Residual):
            yield from neurons_with_what_lies_behind(list(layer.body), behind)
            yield from neurons_with_what_lies_behind(list(layer.shortcut), behind)


class PlainLedger:
    """Counts a network's operations from what its neurons sent; prices are remembered by place."""

    def __init__(self, network):
        self.stem = network.layers[0]
        self.behind = dict(neurons_with_what_lies_behind(list(network.layers)))
        self._prices = {}

    def price(self, neuron, place, size):
        """Of one spike of a layer of neurons."""
        if (neuron, place) not in self._prices:
            self._prices[neuron, place] = price(place, size, self.behind[neuron])
        return self._prices[neuron, place]

    def event(self, place, size):
        """Of one input event."""
        if (None, place) not in self._prices:
            self._prices[None, place] = Counter({self.stem: synapses_met(self.stem.operation, place, size)})
        return self._prices[None, place]

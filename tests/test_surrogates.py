"""Surrogate gradients against the steps that they are the slopes of, alone and in the neurons' backward pass."""

import math

import pytest
import torch

from bench_core.errors import SuiteError
from bench_core.run.artifacts import Workload
from bench_core.snn import SpikingNeuron
from bench_core.snn.neurons import NEURONS, trained_neuron
from bench_core.snn.surrogate import SURROGATES, arctan, dspike, rectangle, triangle
from bench_core.training import Recipe
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import CONVERTED, DIRECT, parsed_suite, tiny_registry
from tests.helpers.tiny_plugin import TinyConv

pytestmark = pytest.mark.numerics

T, B = 5, 4


def triangle_step(x, width=1.0):
    """From 0 at -width to 1 at width, two parabolas."""
    if abs(x) >= width:
        return float(x > 0)
    rise = (width - abs(x)) ** 2 / (2 * width**2)
    return rise if x < 0 else 1 - rise


def rectangle_step(x, width=1.0):
    return min(1.0, max(0.0, x / width + 0.5))


def arctan_step(x, sharpness=2.0):
    return math.atan(math.pi / 2 * sharpness * x) / math.pi + 0.5


def dspike_step(x, region=3.0, temperature=3.0):
    inside = min(region, max(-region, x))
    return math.tanh(temperature * inside) / (2 * math.tanh(region * temperature)) + 0.5


CASES = {
    "triangle": (triangle, triangle_step, {}),
    "a wide triangle": (triangle, triangle_step, {"width": 2.5}),
    "rectangle": (rectangle, rectangle_step, {}),
    "a narrow rectangle": (rectangle, rectangle_step, {"width": 0.3}),
    "arctan": (arctan, arctan_step, {}),
    "a sharp arctan": (arctan, arctan_step, {"sharpness": 5.0}),
    "dspike": (dspike, dspike_step, {}),
    "a cut dspike": (dspike, dspike_step, {"region": 0.7, "temperature": 1.5}),
}
POINTS = [-4.01, -3.02, -2.51, -1.03, -0.71, -0.49, -0.151, -0.149, -0.01, 0.0, 0.02, 0.33, 0.69, 0.98, 1.7, 2.49, 3.1]


@pytest.mark.parametrize(("surrogate", "step", "parameters"), CASES.values(), ids=CASES)
def test_a_surrogate_is_the_slope_of_its_step(surrogate, step, parameters):
    found = surrogate(torch.tensor(POINTS, dtype=torch.float64), **parameters).tolist()
    h = 1e-6
    for x, slope in zip(POINTS, found, strict=True):
        assert slope == pytest.approx((step(x + h, **parameters) - step(x - h, **parameters)) / (2 * h), abs=1e-5)
    assert step(-50, **parameters) == pytest.approx(0, abs=1e-2)
    assert step(50, **parameters) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_a_surrogate_gives_a_tensor_of_its_own(surrogate):
    distance = torch.randn(7)
    before = distance.clone()
    surrogate(distance).mul_(0.0)
    assert torch.equal(distance, before)


class PlainSpike(torch.autograd.Function):
    """A spike whose derivative is the slope of a smooth step, by autograd of the formula."""

    @staticmethod
    def forward(ctx, distance, step):
        ctx.save_for_backward(distance)
        ctx.step = step
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (distance,) = ctx.saved_tensors
        with torch.enable_grad():
            x = distance.detach().requires_grad_()
            (slope,) = torch.autograd.grad(ctx.step(x).sum(), x)
        return gradient * slope, None


STEPS = {
    "triangle": lambda x: torch.where(x < 0, (1 + x.clamp(-1, 1)).square() / 2, 1 - (1 - x.clamp(-1, 1)).square() / 2),
    "rectangle": lambda x: (x + 0.5).clamp(0, 1),
    "arctan": lambda x: torch.arctan(math.pi * x) / math.pi + 0.5,
    "dspike": lambda x: torch.tanh(3 * x.clamp(-3, 3)) / (2 * math.tanh(9)) + 0.5,
}


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_backward_pass_is_that_of_autograd_through_the_loop(surrogate, decay, reset):
    generator = torch.Generator().manual_seed(3)
    weights, values = torch.randn(2, T, B, 9, generator=generator, dtype=torch.float64)
    gradients = []
    for plain in (True, False):
        current = values.clone().requires_grad_()
        if plain:
            potential, sent = torch.zeros(B, 9, dtype=torch.float64), []
            for step in current:
                potential = decay * potential + step
                spike = PlainSpike.apply(potential - 0.8, STEPS[surrogate])
                potential = potential * (1 - spike) if reset == "hard" else potential - 0.8 * spike
                sent.append(spike)
            spikes = torch.stack(sent)
        else:
            spikes = SpikingNeuron(decay=decay, threshold=0.8, reset=reset, surrogate=surrogate)(current)
        gradients.append((spikes.detach(), *torch.autograd.grad((spikes * weights).sum(), current)))
    for expected, found in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert gradients[0][1].abs().sum() > 0


# --- how a recipe chooses --------------------------------------------------------------------------------------------


def test_neurons_that_are_trained_directly():
    lif, integrate = trained_neuron(), trained_neuron("if", "dspike")
    assert (lif.decay, lif.threshold, lif.reset_mode, lif.amplitude, lif.surrogate) == (
        0.5,
        1.0,
        "hard",
        1.0,
        "triangle",
    )
    assert (integrate.decay, integrate.threshold, integrate.reset_mode, integrate.surrogate) == (
        1.0,
        1.0,
        "hard",
        "dspike",
    )
    assert set(Recipe.model_fields["neuron"].annotation.__args__) == set(NEURONS)
    assert set(Recipe.model_fields["surrogate"].annotation.__args__) == set(SURROGATES)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_recipe_chooses_neurons_and_surrogate(neuron, surrogate):
    recipe = {**DIRECT["recipe"], "neuron": neuron, "surrogate": surrogate}
    registry = tiny_registry()
    plain, chosen = (
        Workload.resolve(parsed_suite(workloads=[{**DIRECT, "recipe": r}]).workloads[0], registry)
        for r in (DIRECT["recipe"], recipe)
    )
    for layer in chosen.fresh_network().neurons():
        assert (layer.decay, layer.surrogate) == (NEURONS[neuron], surrogate)
    assert (plain.training_key == chosen.training_key) == ((neuron, surrogate) == ("lif", "triangle"))
    assert "surrogate" not in plain.spec.recipe.identity


def test_a_conversion_brings_its_own_neurons():
    recipe = {**CONVERTED["recipe"], "neuron": "if"}
    with pytest.raises(SuiteError, match="a conversion brings its neurons"):
        parsed_suite(workloads=[{**CONVERTED, "recipe": recipe}])


def test_a_branch_has_the_neurons_of_its_trunk():
    with pytest.raises(SuiteError, match="neuron = if, but its trunk has lif"):
        parsed_suite(workloads=[{**DIRECT, "recipe": {**DIRECT["recipe"], "neuron": "if", "trunk": DIRECT["recipe"]}}])


def test_surrogates_train_differently():
    gradients = []
    for surrogate in SURROGATES:
        torch.manual_seed(0)
        net = TinyConv().spiking((1, 8, 8), 4, constant_input=True, surrogate=surrogate)
        net.run(torch.randn(B, 1, 8, 8), T).square().sum().backward()
        gradients.append(net.layers[0].operation.weight.grad)
    assert all(not torch.allclose(a, b) for place, a in enumerate(gradients) for b in gradients[:place])

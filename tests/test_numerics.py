"""The contract that tests hold numbers to finds what it should, and exact networks are exact."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from bench_core.snn import SpikingNetwork, lif_neuron
from bench_core.snn.models import Parts
from tests.helpers.another_cpu import COMPUTED, AnotherCpu
from tests.helpers.numerics import assert_agree, make_exact, rounded
from tests.helpers.tiny_plugin import TinyConv, TinyShapes

pytestmark = pytest.mark.numerics

N, T, K = 100, 3, 4
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@pytest.fixture(autouse=True)
def this_cpu():
    """Compute as this CPU does, also where the plugin is switched on."""
    with _disable_current_modes():
        yield


def logits(dtype, samples=N):
    return torch.randn(samples, T, K, dtype=dtype, generator=torch.Generator().manual_seed(0))


def changed(values, samples, by):
    """The same logits with one of the last timestep changed in so many samples."""
    found = values.clone()
    found[:samples, -1, 1] += by
    return found


# --- the contract ----------------------------------------------------------------------------------------------------


@DTYPES
def test_rounding_agrees(dtype):
    expected = logits(dtype)
    assert_agree(expected, expected, samples=0)
    assert_agree(expected * (1 + 4 * torch.finfo(dtype).eps), expected, samples=0)


@DTYPES
@pytest.mark.parametrize("samples", [3, N])
def test_a_deliberate_change_of_a_thousandth_is_found(dtype, samples):
    expected = logits(dtype)
    with pytest.raises(AssertionError, match=rf"^{samples} of 100 samples are off by more than .*, by up to 0\.001"):
        assert_agree(changed(expected, samples, 1e-3), expected, samples=0)


def test_two_percent_of_the_samples_may_be_off_in_float32_and_none_in_float64():
    assert_agree(changed(logits(torch.float32), 2, 1e-3), logits(torch.float32), samples=0)
    with pytest.raises(AssertionError, match=r"1 of 100 samples .* \(allowed: 0\)"):
        assert_agree(changed(logits(torch.float64), 1, 1e-8), logits(torch.float64), samples=0)


def test_in_a_few_samples_none_may_be_off():
    few = logits(torch.float32, 49)
    with pytest.raises(AssertionError, match=r"1 of 49 samples .* \(allowed: 0\)"):
        assert_agree(changed(few, 1, 1e-3), few, samples=0)


def test_samples_are_counted_in_the_dimension_that_is_named():
    expected = logits(torch.float32).transpose(0, 1)  # [T, N, K]
    off = changed(expected.transpose(0, 1), 2, 1e-3).transpose(0, 1)
    assert_agree(off, expected, samples=1)
    with pytest.raises(AssertionError, match="1 of 3 samples"):
        assert_agree(off, expected, samples=0)


@pytest.mark.parametrize(
    "found",
    [
        logits(torch.float32).double(),
        logits(torch.float32)[:-1],
        changed(logits(torch.float32), 1, torch.nan),
        changed(logits(torch.float32), 1, torch.inf),
    ],
    ids=["another type", "a sample less", "NaN", "infinite"],
)
def test_what_can_not_be_compared_does_not_agree(found):
    with pytest.raises(AssertionError):
        assert_agree(found, logits(torch.float32), samples=0)


# --- exact networks --------------------------------------------------------------------------------------------------


def small(dtype, *, fused):
    """A network with normalisation that isn't trivial."""
    torch.manual_seed(7)
    net = SpikingNetwork(TinyConv().layers(TinyShapes.input_shape, K, Parts(lif_neuron)), constant_input=True)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.1, 0.9)
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.uniform_(module.bias, 0.0, 0.6)
    net.eval().to(dtype)
    net.layers[-1].operation.weight.data.div_(3.0)  # whose sums would be exact in float64
    return net.prepare_for_inference() if fused else net


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "with normalisation"])
def test_an_exact_network_says_the_same_in_both_precisions_and_on_another_cpu(fused):
    images = TinyShapes().split("test").images[:30]

    def said(dtype, *, exact):
        """Logits in several ways of running, and the first samples of them in several batches."""
        net, x = small(dtype, fused=fused), TinyShapes().encode(images, T).to(dtype)
        net = make_exact(net) if exact else net
        with torch.inference_mode(), AnotherCpu():
            runs = [net.run(x, T, fold=fold) for fold in range(1, T + 1)]
            return [run[:, :5] for run in runs] + [net.run(x[:batch], T)[:, :5] for batch in range(5, 20)]

    one, wide = (said(dtype, exact=True) for dtype in (torch.float32, torch.float64))
    assert wide[0].std() > 0
    assert all(torch.equal(found.double(), wide[0]) for found in one)
    assert all(torch.equal(found, wide[0]) for found in wide)
    rough = said(torch.float64, exact=False)
    assert not all(torch.equal(found, rough[0]) for found in rough)
    for found in rough:
        assert_agree(found, rough[0], samples=1)


# --- another CPU -----------------------------------------------------------------------------------------------------


def test_another_cpu_rounds_otherwise_at_other_shapes_and_alike_at_the_same():
    generator = torch.Generator().manual_seed(1)
    weight, x = (torch.randn(40, 50, generator=generator) for _ in range(2))
    with AnotherCpu():
        products = {rows: nn.functional.linear(x[:rows], weight)[:2] for rows in range(2, 20)}
        again = nn.functional.linear(x[:9], weight)[:2]
    assert torch.equal(again, products[9])
    assert not all(torch.equal(product, products[2]) for product in products.values())
    for product in products.values():
        assert torch.allclose(product, products[2], rtol=0, atol=1e-4)


def some_of(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


CALLS = {
    "linear": lambda n: nn.functional.linear(some_of((n, 20)), some_of((3, 20)), some_of((3,))),
    "matmul": lambda n: some_of((n, 5, 20)) @ some_of((n, 20, 3)),
    "conv2d": lambda n: nn.functional.conv2d(some_of((n, 4, 6, 6)), some_of((3, 4, 3, 3))),
    "sum": lambda n: some_of((n, 20)).sum(),
    "sum over a dimension": lambda n: some_of((n, 20)).sum(1),
    "mean": lambda n: some_of((n, 20)).mean(),
    "mean over a dimension": lambda n: some_of((n, 20)).mean(1),
    "exp": lambda n: some_of((n, 20)).exp(),
    "log": lambda n: some_of((n, 20)).log(),
    "logsumexp": lambda n: some_of((n, 20)).logsumexp(1),
    "softmax": lambda n: some_of((n, 20)).softmax(1),
    "log_softmax": lambda n: some_of((n, 20)).log_softmax(1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_another_cpu_computes_everything_it_lists_otherwise_by_rounding_only(call):
    differing = 0
    for n in range(1, 12):
        expected = call(n)
        with AnotherCpu():
            found = call(n)
        assert found.shape == expected.shape
        assert found.stride() == expected.stride()
        assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)
        differing += not torch.equal(found, expected)
    assert differing > 0
    assert len(COMPUTED) == 14  # each of them is called above


def test_another_cpu_computes_exactly_what_is_exact():
    whole = rounded(torch.randn(9, 16, generator=torch.Generator().manual_seed(3)))
    with AnotherCpu():
        assert torch.equal((whole @ whole.T).double(), whole.double() @ whole.double().T)
        assert torch.zeros(7, dtype=torch.float64).exp().tolist() == [1.0] * 7
        assert torch.ones(7, dtype=torch.float64).log().tolist() == [0.0] * 7

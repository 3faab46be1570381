"""A pytest plugin that computes as another CPU might: ``pytest -p tests.helpers.another_cpu``.

Which bits a sum, a product of matrices, a convolution, an exponential or a logarithm ends with is up to the CPU, the
number of threads and the shapes of a call. Here it is up to the shapes alone, and more often than on any real CPU: a
third of them are computed as usual, a third in another order, and a third correctly rounded or in yet another order.
What is exact in binary stays so, the same call with the same shapes gives the same bits, and all else differs from what
is computed as usual by rounding only.
"""

import zlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def way(*shapes):
    """Choose one of three ways to compute calls of these shapes."""
    return zlib.crc32(repr([tuple(shape) for shape in shapes]).encode()) % 3


def in_double(op, *arguments, **options):
    """Compute in float64, and round to float32 or whatever type the tensors have."""
    (dtype,) = {value.dtype for value in arguments if isinstance(value, torch.Tensor)}
    wide = [value.double() if isinstance(value, torch.Tensor) else value for value in arguments]
    return op(*wide, **options).to(dtype)


def product(op, *operands):
    """Multiply matrices, and add the product to something where asked."""
    *added, one, other = operands
    how, half = way(one.shape, other.shape), one.shape[-1] // 2
    if how == 1:
        return op(*added, one.flip(-1), other.flip(-2))
    if how == 2 and one.dtype != torch.float64:
        return in_double(op, *operands)
    if how == 2 and half:
        return op(*added, one[..., :half], other[..., :half, :]) + one[..., half:] @ other[..., half:, :]
    return op(*operands)


def convolution(op, x, weight, bias, *options):
    """Add two convolutions with half of the weights in each, the others 0."""
    how = way(x.shape, weight.shape)
    if how == 0:
        return op(x, weight, bias, *options)
    if how == 2 and x.dtype != torch.float64:
        return in_double(op, x, weight, bias, *options)
    place = torch.arange(weight[0].numel()).view(weight.shape[1:])
    first = place < weight[0].numel() / 2 if how == 1 else place % 2 == 0
    return op(x, weight * first, bias, *options).add_(op(x, weight * ~first, None, *options))


def reduction(op, x, *options, **more):
    """Take a sum or mean over all or some dimensions."""
    how = way(x.shape, options[:1])
    if how == 0 or not x.is_floating_point() or more.get("dtype") is not None:
        return op(x, *options, **more)
    if how == 2 and x.dtype != torch.float64:
        return in_double(op, x, *options, **more)
    dims = list(options[0]) if options and options[0] else list(range(x.dim()))
    return op(x.flip(dims) if how == 1 else x.roll([1] * len(dims), dims), *options, **more)


def transcendental(op, x, *options):
    """Round an exponential, logarithm or softmax correctly, or change the last bit of what isn't a whole number."""
    how, found = way(x.shape), op(x, *options)
    if how == 0 or not x.is_floating_point():
        return found
    if how == 2 and x.dtype != torch.float64:
        return in_double(op, x, *options)
    inexact = found.isfinite() & (found != found.round()) & (found.abs() > 1e-300)
    if op in (aten._softmax.default, aten._log_softmax.default):  # of equal values every CPU makes 1 / K
        inexact &= (x != x.amax(options[0], keepdim=True)).any(options[0], keepdim=True)
    return torch.where(inexact, torch.nextafter(found, torch.zeros_like(found)), found)


COMPUTED = {
    aten.mm.default: product,
    aten.addmm.default: product,
    aten.bmm.default: product,
    aten.baddbmm.default: product,
    aten.convolution.default: convolution,
    aten.sum.default: reduction,
    aten.sum.dim_IntList: reduction,
    aten.mean.default: reduction,
    aten.mean.dim: reduction,
    aten.exp.default: transcendental,
    aten.log.default: transcendental,
    aten.logsumexp.default: transcendental,
    aten._softmax.default: transcendental,
    aten._log_softmax.default: transcendental,
}


class AnotherCpu(TorchDispatchMode):
    """Computes what CPUs round differently in a way of its own."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        compute = COMPUTED.get(func)
        if compute is None and torch.is_inference_mode_enabled():  # where a linear layer comes as one operation
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if compute is None or (kwargs and compute is not reduction) or any(t.device.type != "cpu" for t in tensors):
            return func(*args, **kwargs)
        if len({t.dtype for t in tensors}) != 1 or not all(t.numel() for t in tensors):
            return func(*args, **kwargs)
        return compute(func, *args, **kwargs)


def pytest_configure(config):
    """Compute as another CPU might until the end of the session."""
    mode = AnotherCpu()
    mode.__enter__()
    config.add_cleanup(lambda: mode.__exit__(None, None, None))


def pytest_report_header():
    """Say so at the top of the report."""
    return "computing as another CPU might"

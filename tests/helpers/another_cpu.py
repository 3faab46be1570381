"""A pytest plugin that computes as another CPU might: ``pytest -p tests.helpers.another_cpu``.

Which bits a sum, a matrix product, a convolution, an exponential or a logarithm ends with is up to the CPU, the number of
threads and the shapes of a call. Here it is up to the shapes, more often than on any real CPU: a third of them are
computed as usual, a third with the terms of every sum reversed, a third in float64 and rounded (or, in float64, with the
last bit of exponentials and logarithms changed where they aren't exact). What is exact in binary stays so, the same call
with the same shapes gives the same bits, and numbers differ from those computed as usual by rounding only.
"""

import zlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def way(*shapes):
    """Which of three ways to compute calls of these shapes."""
    return zlib.crc32(repr([tuple(shape) for shape in shapes]).encode()) % 3


def in_double(op, *arguments, **options):
    """The result of an operation in float64, rounded to the type of its tensors; float64 as it is."""
    (dtype,) = {value.dtype for value in arguments if isinstance(value, torch.Tensor)}
    wide = [value.double() if isinstance(value, torch.Tensor) else value for value in arguments]
    return op(*wide, **options).to(dtype)


def product(op, *operands):
    """A matrix product, with or without a matrix or vector to be added first."""
    *added, one, other = operands
    how = way(one.shape, other.shape)
    if how == 1:
        return op(*added, one.flip(-1), other.flip(-2))
    return in_double(op, *operands) if how == 2 else op(*operands)


def convolution(op, x, weight, bias, *options):
    """A convolution; reversing the channels of every group reverses most of each sum."""
    how, groups = way(x.shape, weight.shape), options[-1]
    if how == 1 and groups == 1 and not options[-3]:
        return op(x.flip(1), weight.flip(1), bias, *options)
    return in_double(op, x, weight, bias, *options) if how == 2 else op(x, weight, bias, *options)


def reduction(op, x, *options, **more):
    """A sum or mean over all or some dimensions."""
    how = way(x.shape, options[:1])
    if not x.is_floating_point() or more.get("dtype") is not None:
        return op(x, *options, **more)
    if how == 1:
        return op(x.flip(options[0] if options and options[0] else list(range(x.dim()))), *options, **more)
    return in_double(op, x, *options, **more) if how == 2 else op(x, *options, **more)


def transcendental(op, x, *options):
    """An exponential, logarithm or softmax: correctly rounded, or its last bit changed where it isn't a whole number."""
    how, found = way(x.shape), op(x, *options)
    if how == 0 or not x.is_floating_point():
        return found
    if how == 2 and x.dtype != torch.float64:
        return in_double(op, x, *options)
    inexact = found.isfinite() & (found != found.round()) & (found.abs() > 1e-300)
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
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if compute is None or (kwargs and compute is not reduction) or any(t.device.type != "cpu" for t in tensors):
            return func(*args, **kwargs)
        if len({t.dtype for t in tensors}) != 1 or not all(t.numel() for t in tensors):
            return func(*args, **kwargs)
        return compute(func, *args, **kwargs)


def pytest_configure(config):
    """Compute so until the end."""
    mode = AnotherCpu()
    mode.__enter__()
    config.add_cleanup(lambda: mode.__exit__(None, None, None))


def pytest_report_header():
    """Say so."""
    return "computing as another CPU might"

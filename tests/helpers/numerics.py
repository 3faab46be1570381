"""What a test may assert of numbers that were computed, and networks whose arithmetic is exact.

A CPU chooses the last bits of a sum, a product of matrices, an exponential or a logarithm, and chooses others for other
shapes of the same numbers. The contract, which is all that tests may assert:

- The same call with the same shapes in the same process and with as many threads: equal bytes, ``torch.equal``.
- Other shapes, folds, batches, numbers of threads, CPUs: logits agree, ``assert_agree``. A rounded potential may cross
  its threshold, so in float32 up to 2 % of the samples may be off by more than 1e-4; in float64 none by more than 1e-9.
- Decisions from given logits (predictions, exit timesteps, counts, histograms): equal on every machine. Scores and
  knobs: to 1e-9, ``pytest.approx(rel=1e-9)``.

What isn't computed (copies, files, integers) and single IEEE operations on elements are equal everywhere. Where a test
is about algebra, such as that folding equals stepping, ``make_exact`` lets it assert equality all the same.
``another_cpu`` shows what a test asserts beyond that.
"""

import torch
from torch import nn

__all__ = ["MAY_BE_OFF", "TOLERANCE", "assert_agree", "make_exact", "rounded"]

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of a logit; far more than rounding, less than a flipped spike
MAY_BE_OFF = {torch.float32: 0.02, torch.float64: 0.0}  # share of samples


def assert_agree(found, expected, *, samples):
    """Assert that logits which were computed in different ways agree as the contract says.

    Args:
        found: logits, of any shape.
        expected: the same, of the same shape and type.
        samples: the dimension of the samples, in which those that are off are counted.

    Raises:
        AssertionError: another shape or type, numbers that aren't finite, or too many samples that are off.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.isfinite().all() and expected.isfinite().all()
    difference = (found - expected).abs().movedim(samples, 0).flatten(1)
    off = difference.amax(1) > TOLERANCE[found.dtype]
    allowed = int(MAY_BE_OFF[found.dtype] * len(off))  # rounded down: in a few samples none
    assert int(off.sum()) <= allowed, (
        f"{int(off.sum())} of {len(off)} samples are off by more than {TOLERANCE[found.dtype]:g} "
        f"(allowed: {allowed}), by up to {float(difference.max()):.3g}; the first ones: {off.nonzero()[:9, 0].tolist()}"
    )


def make_exact(network, *, bits=8):
    """Round weights so that a small network computes exactly; changes the network and returns it.

    With weights that are multiples of 2**-bits, and inputs and spikes that are multiples of a power of two as well,
    every product and every sum fits the mantissa, in whatever order a CPU adds. The decay, threshold and amplitude of
    neurons have to be such numbers too. Normalisation that isn't fused divides by a power of two afterwards.

    Args:
        network: any module, in evaluation mode.
        bits: how many binary digits weights have behind the point.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
                module.running_mean.copy_(rounded(module.running_mean, bits))
                module.running_var.copy_(4.0 ** (module.running_var.log2() / 2).round())
        for parameter in network.parameters():
            parameter.copy_(rounded(parameter, bits))
    return network


def rounded(values, bits=4):
    """Round numbers to multiples of 2**-bits, such as the inputs of an exact network."""
    return (values * 2**bits).round() / 2**bits

"""RCS by loops over samples, layers and timesteps, from the equations. No torch."""

import math


def peak_over_rms(layers, right):
    """RCS for ANNs. ``layers``: pre-activations [L][B][values]; ``right``: [B]."""
    total = 0.0
    for layer in layers:
        positive = [[max(z, 0.0) for z in sample] for sample in layer]
        peak = max(max(sample) for sample in positive)
        worst = 0.0
        for sample, counts in zip(positive, right, strict=True):
            if counts:
                worst = max(worst, peak / math.sqrt(sum(z * z for z in sample) / len(sample) + 1e-5))
        total += worst
    return total / len(layers)


def one_over_cosine(layers, right, last):
    """RCS for SNNs. ``layers``: (spikes, potentials, threshold), [T][B][values]; ``last``: length of the end."""
    total = 0.0
    for spikes, potentials, threshold in layers:
        steps = len(spikes)
        worst = 0.0
        for sample in range(len(right)):
            activity = [
                [s + max(u / threshold, 0.0) for s, u in zip(spikes[t][sample], potentials[t][sample], strict=True)]
                for t in range(steps)
            ]
            end = [sum(values) / last for values in zip(*activity[-last:], strict=True)]
            similarity = sum(cosine(activity[t], end) for t in range(steps)) / steps
            if right[sample]:
                worst = max(worst, 1.0 / (similarity + 1e-5))
        total += worst
    return total / len(layers)


def cosine(a, b):
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0

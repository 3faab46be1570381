"""Decision rules of the exit methods, a sample at a time, in lists and loops.

A sample is its logits o_t as ``[T][K]`` floats; a data set is a list of samples. Timesteps are 1-based, a decision is
asked for t < T, comparisons are strict, T is forced, and a prediction is the lowest class with the largest S_t.
"""

import math

Sample = list[list[float]]


def totals(sample: Sample) -> Sample:
    """S_t = o_1 + … + o_t for t = 1 .. T."""
    running = [0.0] * len(sample[0])
    sums = []
    for step in sample:
        running = [a + b for a, b in zip(running, step, strict=True)]
        sums.append(running)
    return sums


def prediction(total: list[float]) -> int:
    """The lowest class with the largest value."""
    best = 0
    for k, value in enumerate(total):
        if value > total[best]:
            best = k
    return best


def predictions(sample: Sample) -> list[int]:
    """argmax S_t for t = 1 .. T."""
    return [prediction(total) for total in totals(sample)]


def correctness(samples: list[Sample], labels: list[int]) -> list[list[bool]]:
    """Whether argmax S_t is the label, [N][T]."""
    return [[p == label for p in predictions(sample)] for sample, label in zip(samples, labels, strict=True)]


def readouts(sample: Sample, accumulate: str = "sum", alpha: float = 1.0) -> Sample:
    """What the softmax is taken of: S_t / alpha, or (S_t / t) / alpha."""
    found = []
    for t, total in enumerate(totals(sample), start=1):
        divisor = {"sum": 1, "mean": t}[accumulate]
        found.append([value / divisor / alpha for value in total])
    return found


def softmax(values: list[float]) -> list[float]:
    """exp(v_k) over the sum of all exp(v)."""
    largest = max(values)
    weights = [math.exp(value - largest) for value in values]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]


def confidences(sample: Sample, accumulate: str = "sum", alpha: float = 1.0) -> list[float]:
    """SEENN-I and Dynamic Confidence: max softmax of the readout at each t."""
    return [max(softmax(readout)) for readout in readouts(sample, accumulate, alpha)]


def entropies(sample: Sample, accumulate: str = "sum") -> list[float]:
    """DT-SNN: -(1 / log K) sum of p log p at each t, with 0 log 0 = 0."""
    found = []
    for readout in readouts(sample, accumulate):
        terms = [p * math.log(p) for p in softmax(readout) if p > 0.0]
        found.append(-math.fsum(terms) / math.log(len(readout)))
    return found


def margins(sample: Sample, accumulate: str = "sum") -> list[float]:
    """The two largest softmax probabilities' difference at each t."""
    found = []
    for readout in readouts(sample, accumulate):
        first, second = sorted(softmax(readout), reverse=True)[:2]
        found.append(first - second)
    return found


def gaps(sample: Sample) -> list[float]:
    """Top-K cutoff: the two largest accumulated logits' difference at each t."""
    found = []
    for total in totals(sample):
        first, second = sorted(total, reverse=True)[:2]
        found.append(first - second)
    return found


def first_above(scores: list[float], threshold: float) -> int:
    """min{ t < T : score_t > threshold }, else T."""
    for t in range(1, len(scores)):
        if scores[t - 1] > threshold:
            return t
    return len(scores)


def first_below(scores: list[float], threshold: float) -> int:
    """min{ t < T : score_t < threshold }, else T."""
    for t in range(1, len(scores)):
        if scores[t - 1] < threshold:
            return t
    return len(scores)


def first_above_own(scores: list[float], thresholds: list[float]) -> int:
    """min{ t < T : score_t > threshold_t }, else T; one threshold for each t < T."""
    for t in range(1, len(scores)):
        if scores[t - 1] > thresholds[t - 1]:
            return t
    return len(scores)


def stable_exit(sample: Sample, k: int) -> int:
    """The first t < T at which the last k predictions (t included) are one and the same, else T."""
    seen = predictions(sample)
    for t in range(k, len(seen)):
        if len(set(seen[t - k : t])) == 1:
            return t
    return len(seen)


def planned_exit(mean: float, seed: int, sample_id: int, timesteps: int) -> int:
    """The mixture of the two timesteps around a mean: the later one with probability mean - floor(mean)."""
    whole = math.floor(mean)
    return min(timesteps, whole + 1 if uniform(sample_id, seed) < mean - whole else whole)


_MASK = (1 << 64) - 1


def splitmix64(value: int) -> int:
    """One output of SplitMix64 from the state ``value`` (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def hash64(key: int, salt: int) -> int:
    """The project's hash of a sample id and a salt: both mixed, combined by exclusive or, mixed again."""
    return splitmix64(splitmix64(key & _MASK) ^ splitmix64(salt & _MASK))


def uniform(key: int, salt: int) -> float:
    """The hash's upper 53 bits as a number in [0, 1)."""
    return (hash64(key, salt) >> 11) / (1 << 53)


def settled(samples: list[Sample], labels: list[int]) -> list[list[bool]]:
    """Whether a sample is right at t and at every later timestep, i.e. g(x) <= t, [N][T]."""
    return [[all(row[t:]) for t in range(len(row))] for row in correctness(samples, labels)]


def cutoff_thresholds(samples: list[Sample], labels: list[int], epsilon: float) -> list[float]:
    """Top-K's beta_t for t < T: the smallest of zero and the gaps seen at t from which on the rate always holds.

    The rate of a candidate is the share of settled samples among those whose gap exceeds it; a candidate that nobody
    exceeds has none and does not qualify. Infinity where no candidate does.
    """
    all_gaps, all_settled = [gaps(sample) for sample in samples], settled(samples, labels)
    found = []
    for t in range(len(samples[0]) - 1):
        beta = math.inf
        for candidate in sorted({0.0, *(row[t] for row in all_gaps)}, reverse=True):
            above = [good[t] for row, good in zip(all_gaps, all_settled, strict=True) if row[t] > candidate]
            if not above:
                continue
            if above.count(False) / len(above) > epsilon:
                break
            beta = candidate
        found.append(beta)
    return found


def cutoff_bin_thresholds(samples: list[Sample], labels: list[int], epsilon: float, bins: int) -> list[float]:
    """The authors' search: bins m * gap_max / bins, gap_max over all t; the first that qualifies, and the last does."""
    all_gaps, all_settled = [gaps(sample) for sample in samples], settled(samples, labels)
    largest = max(max(row) for row in all_gaps)
    found = []
    for t in range(len(samples[0]) - 1):
        for m in range(bins):
            beta = m * largest / bins
            above = [good[t] for row, good in zip(all_gaps, all_settled, strict=True) if row[t] > beta]
            if m == bins - 1 or (above and above.count(False) / len(above) <= epsilon):
                found.append(beta)
                break
    return found


def surprises(total: list[float]) -> list[float]:
    """-log softmax of every class."""
    largest = max(total)
    whole = math.log(math.fsum(math.exp(value - largest) for value in total))
    return [whole - (value - largest) for value in total]


def conformal_p_values(samples: list[Sample], labels: list[int], total: list[float], t: int) -> list[float]:
    """SpikeCP: p_t(c) = (1 + #{i : s_t(x_i, y_i) >= s_t(x, c)}) / (n + 1), s the surprise, for every class c."""
    known = [surprises(totals(sample)[t - 1])[label] for sample, label in zip(samples, labels, strict=True)]
    return [(1 + sum(s >= surprise for s in known)) / (len(known) + 1) for surprise in surprises(total)]


def corrected_p_values(so_far: list[list[float]], timesteps: int, correction: str) -> list[float]:
    """p-values of every class for T looks, from those at 1 .. t: T p_t, or Simes' min over r of T p_(r) / r."""
    if correction == "bonferroni":
        return [timesteps * p for p in so_far[-1]]
    ranked = [sorted(seen) for seen in zip(*so_far, strict=True)]
    return [min(timesteps * p / r for r, p in enumerate(seen, start=1)) for seen in ranked]


def negative_log_likelihood(samples: list[Sample], labels: list[int], alpha: float) -> float:
    """Mean of -log softmax(S_T / alpha) at the label."""
    losses = []
    for sample, label in zip(samples, labels, strict=True):
        readout = readouts(sample, "sum", alpha)[-1]
        largest = max(readout)
        losses.append(largest + math.log(math.fsum(math.exp(v - largest) for v in readout)) - readout[label])
    return math.fsum(losses) / len(losses)


def least_negative_log_likelihood(samples: list[Sample], labels: list[int], low: float, high: float) -> float:
    """The least value over alpha in [low, high], by golden section in log alpha (unimodal there)."""
    last = [[totals(sample)[-1]] for sample in samples]

    def loss(x: float) -> float:
        return negative_log_likelihood(last, labels, math.exp(x))

    a, b = math.log(low), math.log(high)
    ratio = (math.sqrt(5) - 1) / 2
    best = min(loss(a), loss(b))
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    at_c, at_d = loss(c), loss(d)
    for _ in range(60):
        best = min(best, at_c, at_d)
        if at_c <= at_d:
            b, d, at_d = d, c, at_c
            c = b - ratio * (b - a)
            at_c = loss(c)
        else:
            a, c, at_c = c, d, at_d
            d = a + ratio * (b - a)
            at_d = loss(d)
    return best


def pareto_choice(confidences: list[list[float]], correct: list[list[bool]], least: float) -> tuple[int, int]:
    """The Pareto-front procedure: summed exit timesteps and right samples of the fastest threshold that is good enough.

    Candidates are all confidences that occur; of the points that no other beats in both figures, the one with the least
    average exit timestep among those with at least ``least`` samples right.
    """
    points = []
    for threshold in [-1.0, *sorted({c for row in confidences for c in row})]:
        exits = [first_above([*row, math.inf], threshold) for row in confidences]
        right = sum(bits[t - 1] for bits, t in zip(correct, exits, strict=True))
        points.append((sum(exits), right))
    points.sort(key=lambda point: (point[0], -point[1]))
    front: list[tuple[int, int]] = []
    for point in points:
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return next(point for point in front if point[1] >= least)

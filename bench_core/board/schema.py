"""The schema of the result files: the meaning of every column. Its version is part of each manifest."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CLASS_COLUMNS",
    "CURVE_COLUMNS",
    "MEASUREMENT_COLUMNS",
    "PAIRWISE_COLUMNS",
    "RAW_COLUMNS",
    "RELIABILITY_COLUMNS",
    "ROW_COLUMNS",
    "SCHEMA",
    "SEED_COLUMNS",
    "SHIFT_COLUMNS",
    "SUMMARY_COLUMNS",
    "TEXT_COLUMNS",
    "WORKLOAD_COLUMNS",
    "Priced",
    "cost_columns",
    "priced",
]

SCHEMA = "exitbench.rows/1"

# Spelling of the cost models' units in column names.
_ENERGIES = {"J": "joules", "E(1)": "relative"}
_PRODUCTS = {"J": "joule", "E(1)": "relative"}
_LATENCIES = {"s": "seconds", "timestep": "timesteps"}
_IN_WORDS = {"J": "J", "E(1)": "E(1), the energy of an inference of one timestep of this workload"}

ROW_COLUMNS = {
    "suite": "name of the suite",
    "workload": "the network under test",
    "strategy": "the exit strategy, with knobs that differ from their defaults in brackets",
    "operating_point": "the rule that picked the policy, on calibration data",
    "status": "ok | fallback: static T | infeasible | unavailable: … | failed: …",
    "note": "missed target | over budget on test | nothing certified | calibration equals test | empty",
    "rank": "1 + number of rows of the same workload and operating point that are significantly better",
    "wins": "number of those rows that are significantly worse",
    "losses": "number of those that are significantly better: rank - 1",
    "ties": "number of the rest",
    "knob": "the family's knob",
    "value": "its value, chosen on calibration data",
    "parameters": "every other knob, fitted values included (JSON)",
    "samples": "test samples",
    "accuracy": "share of test samples right at their exit",
    "accuracy_low": "lower end of the 95 % bootstrap interval",
    "accuracy_high": "upper end",
    "delta_points": "accuracy minus that of static T, in percentage points",
    "average_exit_timestep": "mean exit timestep on test",
    "average_exit_timestep_low": "lower end of the 95 % bootstrap interval",
    "average_exit_timestep_high": "upper end",
    "same_histogram_accuracy": "accuracy of random exits with the same histogram, exactly: sum of h_t acc_t",
    "fixed_hull_accuracy": "best accuracy of mixing fixed timesteps at the same average exit timestep",
    "saving_realised": "(T - average exit timestep) / (T - lower_bound); empty for budgets and missed targets",
    "area_share": "area between the strategy's curve and the fixed-t hull over that between oracle and hull, on [1, T]",
    "harmed_share": "share of test samples right at T and wrong at their exit",
    "helped_share": "share of test samples wrong at T and right at their exit",
    "forced_share": "share of samples that ran to T without a decision to stop",
    "exit_histogram": "samples stopped at t = 1 .. T (JSON)",
    "select_accuracy": "accuracy of the policy on the select half of calibration",
    "select_average_exit_timestep": "its average exit timestep there",
    "gap_points": "accuracy on select minus accuracy on test, in percentage points",
    "gap_timesteps": "average exit timestep on select minus that on test",
    "first_layer": "once | every-step: when a first layer under constant input was charged (suite option)",
    "weights": "sha256 of the network's weights, first 16 digits",
    "calibration_trace": "sha256 of the calibration trace, first 16 digits",
    "test_trace": "sha256 of the test trace, first 16 digits",
}

WORKLOAD_COLUMNS = {
    "workload": "the network under test",
    "timesteps": "T",
    "samples": "test samples",
    "static_accuracy": "accuracy of stopping every sample at t = 1 .. T (JSON)",
    "aet": "AET (SEENN Eq. 4): T minus the sum of static accuracies before T",
    "empirical_aet": "mean first right timestep, T where none is",
    "oct": "mean timestep from which all later ones are right, T where the last is wrong",
    "oracle_accuracy": "share right at some timestep",
    "oracle_timestep": "average exit timestep of that oracle, never-right samples stopped at 1",
    "lower_bound": "fewest average timesteps that reach static accuracy at T, hopeless samples stopped at 1",
    "calibration_error": "ECE at t = 1 .. T (JSON): 15 equal bins of the largest softmax of the mean readout m_t",
    "flips_to_wrong": "samples right at t and wrong at t + 1, for t = 1 .. T - 1 (JSON)",
    "flips_to_right": "samples wrong at t and right at t + 1, for t = 1 .. T - 1 (JSON)",
}

CURVE_COLUMNS = {
    "workload": "the network under test",
    "strategy": "as in rows.csv",
    "knob": "the family's knob",
    "value": "its value",
    "average_exit_timestep": "on test",
    "accuracy": "on test",
}

PAIRWISE_COLUMNS = {
    "workload": "the network under test",
    "operating_point": "as in rows.csv",
    "strategy": "as in rows.csv",
    "rival": "another strategy; every difference is strategy minus rival, on the same test samples",
    "accuracy_points": "difference of accuracy, in percentage points",
    "accuracy_points_low": "lower end of its 95 % paired bootstrap interval",
    "accuracy_points_high": "upper end",
    "only_strategy_right": "samples that the strategy has right and the rival wrong",
    "only_rival_right": "samples that the rival has right and the strategy wrong",
    "accuracy_p": "McNemar's exact test, two-sided",
    "accuracy_p_holm": "the same, adjusted for all pairs of this workload and operating point (Holm)",
    "timesteps": "difference of average exit timestep",
    "timesteps_low": "lower end of its 95 % paired bootstrap interval",
    "timesteps_high": "upper end",
    "timesteps_p": "paired sign-flip permutation test of the mean difference, two-sided",
    "timesteps_p_holm": "the same, adjusted for all pairs of this workload and operating point (Holm)",
}

CLASS_COLUMNS = {
    "workload": "the network under test",
    "strategy": "as in rows.csv",
    "operating_point": "as in rows.csv",
    "class": "index of the class",
    "samples": "test samples of the class",
    "static_accuracy": "share of them right at T",
    "accuracy": "share of them right at their exit",
    "delta_points": "the latter minus the former, in percentage points",
    "harmed": "samples of the class right at T and wrong at their exit",
    "helped": "samples of the class wrong at T and right at their exit",
    "average_exit_timestep": "of the class's samples",
}

RELIABILITY_COLUMNS = {
    "workload": "the network under test",
    "timestep": "t",
    "bin": "b of 15: confidence in ((b - 1) / 15, b / 15], the largest softmax of the mean readout m_t",
    "samples": "test samples in the bin",
    "confidence": "their mean confidence; empty where there are none",
    "accuracy": "share of them right at t; empty where there are none",
}

SUMMARY_COLUMNS = {
    "operating_point": "as in rows.csv",
    "strategy": "as in rows.csv",
    "workloads": "number of workloads where the strategy has a rank",
    "average_rank": "mean rank over them",
    "rank_deviation": "sample standard deviation of the ranks; empty for one workload",
    "best_rank": "lowest rank",
    "worst_rank": "highest rank",
    "wins": "rows that are significantly worse, summed over the workloads",
    "losses": "rows that are significantly better, summed over the workloads",
    "ties": "rows that are neither",
    "by_workload": "wins, losses and ties on each workload (JSON)",
}

SHIFT_COLUMNS = {
    "workload": "the network under test",
    "strategy": "as in rows.csv",
    "operating_point": "as in rows.csv: the rule that picked the policy, on clean calibration data",
    "corruption": "what was done to the test samples; `clean`: the same samples as they are",
    "severity": "1 to 5; 0 of clean samples",
    "status": "ok | fallback: static T | failed: …",
    "samples": "test samples",
    "static_accuracy": "share of them right at T, under the same corruption",
    "accuracy": "share of them right at their exit",
    "delta_points": "the latter minus the former, in percentage points",
    "delta_points_low": "lower end of its 95 % paired bootstrap interval",
    "delta_points_high": "upper end",
    "average_exit_timestep": "their mean exit timestep",
    "average_exit_timestep_low": "lower end of the 95 % bootstrap interval",
    "average_exit_timestep_high": "upper end",
    "harmed_share": "share of them right at T and wrong at their exit",
    "promise": "broken: what the operating point promises is significantly missed on these samples | kept: it is not",
    "trace": "sha256 of the corrupted test trace without its operation counts, first 16 digits",
}

SEED_COLUMNS = {
    "workload": "what networks that differ in their seed only have in common",
    "operating_point": "as in rows.csv",
    "strategy": "as in rows.csv",
    "workloads": "names of the networks that have figures (JSON)",
    "seeds": "how many those are",
    "interval": "what low and high are: `95 % t` from five seeds on, below that `range`; empty for a single one",
    "accuracy": "mean over the seeds of the accuracy on test",
    "accuracy_low": "lower end of the interval of that mean, or the smallest of the values",
    "accuracy_high": "upper end, or the largest",
    "delta_points": "mean of accuracy minus that of static T of the same network, in percentage points",
    "delta_points_low": "as for accuracy",
    "delta_points_high": "as for accuracy",
    "average_exit_timestep": "mean over the seeds of the average exit timestep",
    "average_exit_timestep_low": "as for accuracy",
    "average_exit_timestep_high": "as for accuracy",
    "missed": "in how many of them the row missed its target or went over its budget on test",
}

MEASUREMENT_COLUMNS = {
    "workload": "the network under test",
    "strategy": "as in rows.csv",
    "operating_point": "as in rows.csv",
    "policy": "digest of network, strategy, knobs and value: the measurement is for this policy only",
    "latency_ms": "mean over samples of the median wall clock at batch 1, controller included",
    "latency_median_ms": "median over samples",
    "latency_iqr_ms": "interquartile range over samples",
    "latency_p95_ms": "95th percentile over samples",
    "latency_p99_ms": "99th percentile over samples",
    "static_latency_ms": "latency_ms of static T in the same run",
    "speedup": "at batch 1, time of static T over time of the policy: same samples, same run, median over repetitions",
    "speedup_iqr": "its interquartile range over repetitions; n/a where there was one",
    "throughput": "samples per second at the batch below, with refill, controller included; median over repetitions",
    "throughput_iqr": "its interquartile range",
    "static_throughput": "throughput of static T in the same run",
    "throughput_speedup": "throughput over that of static T, median over repetitions",
    "throughput_speedup_iqr": "its interquartile range",
    "measured_joules": "drawn per sample at that batch, by the machine's own meter; n/a where there is none",
    "samples": "test samples measured at batch 1",
    "batch": "samples under way at once where throughput was measured",
    "batch_samples": "test samples measured there",
    "repetitions": "runs per sample, or passes over all samples",
    "threads": "threads that torch used",
    "device": "where it ran",
    "clock_remark": "why these times are doubtful: other programs kept the machine busy, or static T varied widely",
}

RAW_COLUMNS = {
    "workload": "the network under test",
    "session": "runs of one number were measured in turns; only they may be divided by each other",
    "policy": "as in measurements.csv, or `static` for static T",
    "batch": "1, or samples under way at once",
    "unit": "number of the sample at batch 1; 0 is the one pass over all samples otherwise",
    "repetition": "from 0",
    "milliseconds": "wall clock",
}

TRAINING_COLUMNS = {
    "workload": "name in the suite",
    "stage": "branch, before it trunk, trunk 2, …; all where the recipe goes on from no trunk",
    "epoch": "from 1",
    "loss": "mean over the epoch's augmented training batches, a regulariser's term included",
    "accuracy": "on the same batches, at T",
    "seconds": "that the epoch took; empty where it wasn't kept",
    "device": "device, machine and CPU capability",
    "threads": "of PyTorch",
    "torch": "its version",
}

# Always read as text: a workload may be called 007 or nan.
TEXT_COLUMNS = frozenset(
    {
        "calibration_trace",
        "clock_remark",
        "corruption",
        "device",
        "exit_histogram",
        "first_layer",
        "interval",
        "knob",
        "note",
        "operating_point",
        "parameters",
        "policy",
        "promise",
        "rival",
        "stage",
        "status",
        "strategy",
        "suite",
        "test_trace",
        "torch",
        "trace",
        "weights",
        "workload",
    }
)


def cost_columns(model: str, unit: str = "J", latency_unit: str = "timestep") -> dict[str, str]:
    """Return the columns that a cost model adds to rows.csv: energy, its share of static T's, EDP and its share."""
    energy = f"energy_{model}_{_ENERGIES[unit]}"
    edp = f"edp_{model}_{_PRODUCTS[unit]}_{_LATENCIES[latency_unit]}"
    return {
        energy: f"mean energy per sample under {model}, in {_IN_WORDS[unit]}, controller included",
        f"energy_{model}_share": f"that energy over the energy of static T under {model}",
        edp: f"mean over samples of energy x latency under {model}, latency in {_LATENCIES[latency_unit]}",
        f"edp_{model}_share": f"that EDP over the EDP of static T under {model}",
    }


@dataclass(frozen=True)
class Priced:
    """A cost model on a board: its columns, their units for display, and the scale factor to those units."""

    model: str
    energy: str
    edp: str | None
    energy_unit: str
    edp_unit: str
    scale: float


def priced(columns: Iterable[str]) -> list[Priced]:
    """Return the cost models among the columns of a board, in order."""
    names = list(columns)
    found = []
    for energy in names:
        for unit, ending in _ENERGIES.items():
            if match := re.fullmatch(f"energy_(.+)_{ending}", energy):
                model = match[1]
                shown, scale = ("µJ", 1e6) if unit == "J" else (unit, 1.0)
                ends = {f"edp_{model}_{_PRODUCTS[unit]}_{latency}": short for short, latency in _LATENCIES.items()}
                edp = next((name for name in ends if name in names), None)
                found.append(Priced(model, energy, edp, shown, f"{shown}·{ends[edp]}" if edp else "", scale))
    return found

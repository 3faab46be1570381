"""The dictionary of columns: what every figure in the result files means. Its version is part of each manifest."""

__all__ = ["CURVE_COLUMNS", "MEASUREMENT_COLUMNS", "ROW_COLUMNS", "SCHEMA", "WORKLOAD_COLUMNS", "energy_columns"]

SCHEMA = "exitbench.rows/1"

ROW_COLUMNS = {
    "suite": "name of the suite",
    "workload": "the network under test",
    "strategy": "the exit strategy, with knobs that differ from their defaults in brackets",
    "operating_point": "the rule that picked the policy, on calibration data",
    "status": "ok | fallback: static T | infeasible | unavailable: … | failed: …",
    "note": "missed target | over budget on test | calibration equals test | empty",
    "rank": "1 + number of rows of the same workload and operating point that are significantly better",
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
    "forced_share": "share of samples that ran to T without a decision to stop",
    "exit_histogram": "samples stopped at t = 1 .. T (JSON)",
    "select_accuracy": "accuracy of the policy on the select half of calibration",
    "select_average_exit_timestep": "its average exit timestep there",
    "gap_points": "accuracy on select minus accuracy on test, in percentage points",
    "gap_timesteps": "average exit timestep on select minus that on test",
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
}

CURVE_COLUMNS = {
    "workload": "the network under test",
    "strategy": "as in rows.csv",
    "knob": "the family's knob",
    "value": "its value",
    "average_exit_timestep": "on test",
    "accuracy": "on test",
}

MEASUREMENT_COLUMNS = {
    "workload": "the network under test",
    "strategy": "as in rows.csv",
    "operating_point": "as in rows.csv",
    "policy": "digest of network, strategy, knobs and value: the measurement is for this policy only",
    "latency_ms": "mean over samples of the median wall clock at batch 1, controller included",
    "latency_median_ms": "median over samples",
    "latency_p95_ms": "95th percentile over samples",
    "speedup": "mean time of static T over mean time of the policy, same samples, same run",
    "samples": "test samples measured",
    "repetitions": "runs per sample",
    "threads": "threads that torch used",
    "device": "where it ran",
}


def energy_columns(cost_model: str) -> dict[str, str]:
    """The columns that a cost model adds to rows.csv."""
    return {
        f"energy_{cost_model}_joules": f"mean energy per sample under {cost_model}, controller included",
        f"energy_{cost_model}_share": f"that energy over the energy of static T under {cost_model}",
    }

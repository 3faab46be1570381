"""For maintainers: copy what a run of a suite made into the package's zoo, so that the main job trains nothing.

EXITBENCH_HOME=fresh exitbench run quick && EXITBENCH_HOME=fresh python tools/ship.py quick
"""

import sys
from pathlib import Path

from bench_core.errors import UsageError
from bench_core.plugins import load_registry
from bench_core.run.artifacts import Workload, recording_key
from bench_core.run.suite import load_suite
from bench_core.store.local import ZOO, Store, copy_artifact, default_store, read_artifact

__all__ = ["ship"]


def ship(suite_name: str, store: Store, zoo: Path = ZOO) -> list[Path]:
    """Copy the networks of a suite and the policies fitted on their calibration traces; the files written.

    Raises UsageError for a workload that isn't trained.
    """
    registry, written = load_registry(), []
    policies = [read_artifact(path) for path in store.files("policies")]
    for spec in load_suite(suite_name).workloads:
        workload = Workload.resolve(spec, registry)
        weights = store.get("networks", workload.training_key)
        if weights is None:
            raise UsageError(f"{spec.name} is not trained; run the suite first")
        written.append(zoo / "networks" / f"{spec.name}.safetensors")
        copy_artifact(weights, written[-1])
        calibration = recording_key(workload, weights, "calibration")
        for policy in policies:
            if policy.metadata["calibration"]["trace"] == calibration:
                name = (
                    f"{spec.name}-{policy.metadata['made_from'].get('strategy', 'policy')}-{policy.metadata['key'][:8]}"
                )
                written.append(zoo / "policies" / f"{name}.safetensors")
                copy_artifact(policy, written[-1])
    return written


if __name__ == "__main__":
    for file in ship(sys.argv[1], default_store(zoo=None)):
        sys.stdout.write(f"{file.name}: {file.stat().st_size} bytes\n")

"""Recomputation of a committed board and its comparison under the contract for numbers.

``traces``: the committed traces are replayed. Every decision is the same on every machine, knobs agree to nine digits.
``weights``: the committed networks are recorded again. The committed policies, at the knobs of their rows, keep
accuracy and average exit timestep within the contract's tolerances; new choices of operating points are only reported.
A board made elsewhere by the same suite is compared in the same way as one from weights.

If everything that affects rounding is the same, the deterministic files must be equal byte by byte.

If the traces' inputs are unavailable, strategies that use inputs cannot be replayed. Their rows are then omitted,
together with everything that depends on them: ranks, wins, losses and ties, and the tables that compare rows.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

from bench_core.board.board import Board, read_board, refuse_board, write_tables
from bench_core.board.under_shift import Condition, shift_table
from bench_core.errors import UsageError
from bench_core.knobs import nearest
from bench_core.plugins import Registry
from bench_core.run.artifacts import Workload
from bench_core.run.evaluate import suite_tables
from bench_core.run.plan import plan
from bench_core.run.run import run_suite
from bench_core.run.shift_traces import read_conditions
from bench_core.run.suite import Suite
from bench_core.store.local import Store, copy_artifact, default_store, read_artifact
from bench_core.workflows.reproduction.agreement import Reproduction, compare_decisions, part_of
from bench_core.workflows.reproduction.committed_policies import CommittedPolicies, ReplayedPolicies
from bench_core.workflows.reproduction.networks import TwoBoards, compare_networks
from bench_core.workflows.reproduction.replayed_board import Tested, briefly, suite_of, tested

__all__ = ["compare_with", "reproduce_board"]


def reproduce_board(
    folder: Path,
    registry: Registry,
    *,
    from_weights: bool,
    only: Collection[str] = (),
    keep: Path | None = None,
    store: Store | None = None,
    verified: bool = True,
) -> Reproduction:
    """Recompute the board in ``folder`` and compare.

    Args:
        folder: of the committed board.
        registry: the loaded plugins.
        from_weights: run the networks again instead of replaying the committed traces.
        only: names of the workloads to compare; default all. Ranks and tables across workloads are then omitted.
        keep: folder to write the recomputed tables to.
        store: source of networks and policy networks; default the user's.
        verified: as for ``read_board``.

    Raises:
        UsageError: there is no board, or there are no traces or weights to start from; ``keep`` holds a board; or
            ``only`` names something that is not a workload of the board.
    """
    if keep is not None:
        refuse_board(keep)
    committed = read_board(folder, verified=verified)
    suite, store, result = _only(suite_of(committed, folder), only), store or default_store(), Reproduction()
    names = [spec.name for spec in suite.workloads]
    if not from_weights:
        board, found = _from_traces(committed, suite, folder, registry, store)
        _keep(board, keep)
        result.remarks.append(f"{folder}: {len(board.rows)} rows recomputed from traces")
        old, new = (part_of(one, names) if only else one for one in (committed, board))
        compare_decisions(result, old, new, folder, _sides(found, suite, registry), partly=bool(only))
        return result
    with tempfile.TemporaryDirectory(prefix="exitbench-") as scratch:
        place, fresh = Path(scratch) / "board", Store(Path(scratch) / "store")
        result.drift += _bring_weights(committed, suite, registry, store, fresh)
        if result.drift:
            return result
        board = run_suite(briefly(suite), registry=registry, output=place, store=fresh, export_traces=True)
        _keep(board, keep)
        result.remarks.append(f"{folder}: {len(board.rows)} rows recomputed from weights")
        old, new = (part_of(one, names) if only else one for one in (committed, board))
        compare_networks(result, TwoBoards(old, folder, new, place, suite, registry, fresh, partly=bool(only)))
    return result


def _only(suite: Suite, names: Collection[str]) -> Suite:
    """Return some workloads of a suite; raise UsageError for an unknown name."""
    known = [spec.name for spec in suite.workloads]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--only {name!r}: no workload of the board{nearest(name, known)}; it has {', '.join(known)}"
            )
    return suite.only(list(names)) if names else suite


def compare_with(
    folder: Path, made: Path, registry: Registry, *, store: Store | None = None, verified: bool = True
) -> Reproduction:
    """Compare the board in ``folder`` with one that the same suite made elsewhere, as if from weights.

    Args:
        folder: of the committed board.
        made: folder of the other board; traces not stored with it are taken from the store.
        registry: the loaded plugins.
        store: default the user's.
        verified: as for ``read_board``, for both.

    Raises:
        UsageError: there is no board, it is of another suite, or its traces are unavailable.
    """
    committed, board = (read_board(place, verified=verified) for place in (folder, made))
    suite = suite_of(committed, folder)
    other = suite_of(board, made)
    if briefly(other) != briefly(suite):
        raise UsageError(f"{made}: made by another suite than {folder}; run `exitbench run {suite.name}` again")
    result = Reproduction(remarks=[f"{folder}: {len(committed.rows)} rows compared with {made}"])
    compare_networks(result, TwoBoards(committed, folder, board, made, suite, registry, store or default_store()))
    return result


def _keep(board: Board, keep: Path | None) -> None:
    if keep is not None:
        write_tables(board, keep)


def _from_traces(
    committed: Board, suite: Suite, folder: Path, registry: Registry, store: Store
) -> tuple[Board, dict[str, Tested]]:
    planned = plan(suite, registry)
    found = tested(committed, suite, folder, registry, store)
    scores = [one.scores for one in found.values()]
    board = Board(**suite_tables(suite, planned, scores), measurements=None, manifest=committed.manifest)
    if (conditions := _conditions(committed, suite, folder, registry, found)) is not None:
        board.shift = shift_table(scores, conditions, resamples=suite.resamples, seed=suite.seed)
    return board, found


def _conditions(
    committed: Board, suite: Suite, folder: Path, registry: Registry, found: Mapping[str, Tested]
) -> dict[str, list[Condition]] | None:
    """Return every workload under corruption; None if the suite has no corruptions or traces are missing."""
    if suite.shift is None:
        return None
    conditions = {}
    for spec in suite.workloads:
        own = read_conditions(
            folder,
            spec.name,
            found[spec.name].test,
            spec=suite.shift,
            dataset=registry.find("datasets", spec.dataset),
            digests=committed.manifest["workloads"][spec.name].get("shift", {}),
        )
        if own is None:
            return None
        conditions[spec.name] = own
    return conditions


def _bring_weights(committed: Board, suite: Suite, registry: Registry, store: Store, fresh: Store) -> Iterator[str]:
    """Copy the committed networks, and policy networks fitted on their traces, into an empty store.

    Yields a line for every workload whose weights differ. Raises UsageError if weights are missing.
    """
    for spec in suite.workloads:
        key = Workload.resolve(spec, registry).training_key
        facts = committed.manifest["workloads"].get(spec.name)
        if facts is None:
            continue  # it failed when the board was made
        weights = store.get("networks", key)
        if weights is None:
            raise UsageError(
                f"{spec.name}: its weights are neither in the store nor in the package; bring the store that made the "
                "board, or train again with --from scratch"
            )
        if weights.digest != facts["weights"]:
            yield f"{spec.name}: weights: expected {facts['weights']}, found {weights.digest}"
        copy_artifact(weights, fresh.path("networks", key))
        for path in store.files("policies"):
            policy = read_artifact(path)
            if policy.metadata.get("calibration", {}).get("trace") == facts["recording"]["calibration"]:
                copy_artifact(policy, fresh.path("policies", policy.metadata["key"]))


def _sides(
    found: Mapping[str, Tested], suite: Suite, registry: Registry
) -> Callable[[str], Mapping[str, ReplayedPolicies]]:
    """Return a function that gives a workload's policies on both halves of calibration and on test."""
    competitors = plan(suite, registry).competitors

    @cache
    def of(workload: str) -> Mapping[str, ReplayedPolicies]:
        contest = found[workload].contest
        policies = CommittedPolicies.fitted(competitors, contest.fit, contest.artifacts)
        sides = {"fit": contest.fit, "select": contest.select, "test": contest.test}
        return {name: policies.on(side) for name, side in sides.items()}

    return of

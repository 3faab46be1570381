"""Corruptions by slow references, policies replayed under them, and what a board says of promises."""

import json
import math
import shutil
from itertools import chain, pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_core.board.board import read_board
from bench_core.board.consistency import contradictions
from bench_core.board.csv_tables import read_table
from bench_core.board.under_shift import CLEAN, Condition, shift_table
from bench_core.data.builtin import bench_datasets
from bench_core.data.corruption import CORRUPTIONS, CorruptedTest, applies, corrupt_images, drop_events, subsample
from bench_core.errors import DataError, SuiteError, UsageError
from bench_core.exits.strategy import ExitPolicy, NeverExit
from bench_core.plugins import load_registry
from bench_core.report.markdown import markdown
from bench_core.report.terminal import terminal
from bench_core.run.artifacts import Workload, recording_key, trained_weights
from bench_core.run.run import run_suite
from bench_core.run.shift_traces import corrupted_tests
from bench_core.run.suite import Corruption, ShiftSpec, load_suite
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import Entry, Recorded, ScoredPolicy, StrategyScores, WorkloadScores
from bench_core.trace.trace import Trace
from bench_core.util.digests import tensor_digest
from bench_core.workflows.reproduction import networks as network_agreement
from bench_core.workflows.reproduction.reproduce import compare_with, reproduce_board
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.kernels import KERNELS, run_python
from tests.helpers.suites import DIRECT, EVENTS, parsed_suite, tiny_registry, trained_store
from tests.traces import make_trace

SHIFT = {"corruptions": ["noise", "contrast", "drop"], "severities": [1, 5], "samples": 60}
ON_IMAGES = ("noise", "blur", "contrast")


def images_of(seed, count=6, channels=1, height=8, width=7, brightest=255):
    return torch.randint(0, brightest + 1, (count, channels, height, width), generator=seeded(seed), dtype=torch.uint8)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- corruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", ON_IMAGES)
@pytest.mark.parametrize("severity", [1, 5])
def test_a_sample_is_corrupted_the_same_in_any_order_and_batch(corruption, severity):
    images, ids = images_of(0), torch.tensor([7, 3, 900, 12, 0, 41])
    together = corrupt_images(images, ids, corruption, severity)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    assert torch.equal(corrupt_images(images[order], ids[order], corruption, severity), together[order])
    alone = [corrupt_images(images[i : i + 1], ids[i : i + 1], corruption, severity) for i in range(6)]
    assert torch.equal(torch.cat(alone), together)
    assert together.dtype == torch.uint8
    assert not torch.equal(together, images)


def test_contrast_is_that_of_a_slow_reference():
    images = images_of(1, channels=2)
    found = corrupt_images(images, torch.arange(6), "contrast", 3)
    for image, changed in zip(images.tolist(), found.tolist(), strict=True):
        for plane, other in zip(image, changed, strict=True):
            values = [v / 255 for row in plane for v in row]
            mean = math.fsum(values) / len(values)
            expected = [255 * min(1, max(0, (v - mean) * 0.4 + mean)) for v in values]
            assert all(abs(e - o) <= 0.5 + 1e-9 for e, o in zip(expected, chain(*other), strict=True))


@pytest.mark.parametrize("severity", [1, 5])
def test_blur_is_a_gaussian_of_pixels_with_the_edge_repeated(severity):
    images, sigma = images_of(2, count=2), CORRUPTIONS["blur"][severity - 1]
    found = corrupt_images(images, torch.arange(2), "blur", severity)
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    for image, changed in zip(images[:, 0].tolist(), found[:, 0].tolist(), strict=True):
        for i in range(8):
            for j in range(7):
                total = sum(
                    a * b * image[min(7, max(0, i + y - radius))][min(6, max(0, j + x - radius))]
                    for y, a in enumerate(weights)
                    for x, b in enumerate(weights)
                )
                assert abs(total / sum(weights) ** 2 - changed[i][j]) <= 0.5 + 1e-9


@pytest.mark.parametrize(("severity", "brightest"), [(1, 255), (5, 255), (5, 16)])
def test_noise_is_normal_of_the_stated_strength_and_of_no_two_samples_alike(severity, brightest):
    images = torch.full((40, 1, 20, 20), brightest // 2, dtype=torch.uint8)
    found = corrupt_images(images, torch.arange(40), "noise", severity, brightest)
    changes = (found.double() - images.double()) / brightest
    expected = CORRUPTIONS["noise"][severity - 1]
    rounding = 1 / brightest / math.sqrt(12)
    assert float(changes.std()) == pytest.approx(math.hypot(expected, rounding), rel=0.02)
    assert abs(float(changes.mean())) < 4 * expected / math.sqrt(changes.numel())
    within = float((changes.abs() <= expected + 0.5 / brightest).double().mean())
    share = 2 * NormalDist(0, expected).cdf(math.floor(expected * brightest + 0.5) / brightest + 0.5 / brightest) - 1
    assert within == pytest.approx(share, abs=0.02)
    assert len({changed.numpy().tobytes() for changed in found}) == 40


def test_a_stronger_noise_is_the_same_noise_louder():
    images = torch.full((5, 1, 6, 6), 128, dtype=torch.uint8)
    steps = [corrupt_images(images, torch.arange(5), "noise", s).int() - 128 for s in (1, 2, 3, 4, 5)]
    for weaker, stronger in pairwise(steps):
        assert ((weaker.sign() * stronger) >= weaker.abs()).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), severity=st.integers(1, 5))
def test_events_are_only_lost_and_each_on_its_own(seed, severity):
    frames = torch.poisson(torch.full((3, 4, 2, 5, 5), 0.7), generator=seeded(seed))
    ids = torch.tensor([5, 900, 31])
    kept = drop_events(frames, ids, severity)
    assert (kept <= frames).all() and (kept >= 0).all()
    assert torch.equal(kept, kept.round()) and kept.dtype == frames.dtype
    assert torch.equal(drop_events(frames[1:2], ids[1:2], severity), kept[1:2])
    if severity > 1:
        assert (kept <= drop_events(frames, ids, severity - 1)).all()
    more = frames.clone()
    more[0, 0, 0, 0, 0] += 1  # one event more, and nothing else changes
    changed = drop_events(more, ids, severity) - kept
    assert changed.sum() in (0, 1)
    assert changed.flatten()[1:].abs().sum() == 0


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_events_are_lost_with_the_stated_probability_wherever_they_are(severity):
    frames = torch.full((30, 2, 2, 10, 10), 3.0)
    share = 1 - drop_events(frames, torch.arange(30), severity) / 3
    expected = CORRUPTIONS["drop"][severity - 1]
    assert float(share.mean()) == pytest.approx(expected, abs=0.01)
    assert float(share.mean(0).std()) < 0.15  # no pixel is favoured
    assert sorted(share.mul(3).round().unique().tolist()) == [0, 1, 2, 3]


def test_frames_that_are_no_counts_are_refused():
    for frames in (torch.full((1, 1, 1, 2, 2), 0.5), torch.full((1, 1, 1, 2, 2), -1.0)):
        with pytest.raises(DataError, match="event counts only"):
            drop_events(frames, torch.arange(1), 1)


def test_a_subsample_is_drawn_by_id_and_not_by_place():
    ids = torch.arange(500) * 3
    kept = subsample(ids, 100)
    assert kept.tolist() == sorted(kept.tolist()) and len(set(kept.tolist())) == 100
    order = torch.randperm(500, generator=seeded(3))
    assert sorted(ids[order][subsample(ids[order], 100)].tolist()) == ids[kept].tolist()
    assert subsample(ids, 1000).tolist() == list(range(500))
    assert 600 < ids[kept].double().mean() < 900


def test_every_corruption_may_stand_in_a_suite_and_has_five_strengths_that_differ():
    assert list(CORRUPTIONS) == list(Corruption.__args__)
    assert all(len(set(strengths)) == 5 for strengths in CORRUPTIONS.values())


def test_what_applies_follows_from_what_the_data_are():
    found = {d.name: [c for c in CORRUPTIONS if applies(c, d)] for d in bench_datasets()}
    assert found["fashion-mnist"] == list(ON_IMAGES)
    assert found["fashion-mnist-simulated-saccades"] == [*ON_IMAGES, "drop"]
    assert found["n-mnist"] == ["drop"]


def test_a_corrupted_split_holds_the_labels_of_its_samples_and_no_other_split_changes():
    dataset = tiny_registry().datasets["tiny-events"]
    corrupted = CorruptedTest(dataset, "drop", 5, 40, 5)
    clean, changed = dataset.split("test"), corrupted.split(corrupted.corrupted_split)
    places = [clean.sample_ids.tolist().index(i) for i in changed.sample_ids.tolist()]
    assert changed.labels.tolist() == [int(clean.labels[p]) for p in places]
    assert corrupted.split("calibration").digest == dataset.split("calibration").digest
    assert corrupted.identity == dataset.identity
    frames = dataset.encode(clean.images[places], 5).transpose(0, 1)
    expected = drop_events(frames, changed.sample_ids, 5).transpose(0, 1)
    assert torch.equal(corrupted.encode(changed.images, 5), expected)
    assert torch.equal(corrupted.encode(changed.images[torch.tensor([3, 1])], 5, 2), expected[:2, [3, 1]])
    assert corrupted.frames(changed, 5)(torch.tensor([7]), 3).shape == (1, 3, 2, 8, 8)


def test_names_of_corrupted_splits_and_so_recording_keys_are_all_different():
    registry = load_registry()
    workload = Workload.resolve(load_suite("quick").workloads[0], registry)
    names = {
        CorruptedTest(workload.dataset, c, s, n, 16).corrupted_split
        for c in CORRUPTIONS
        for s in range(1, 6)
        for n in (100, 200)
    }
    assert len(names) == 40
    assert not names & {"train", "calibration", "test"}


# --- promises --------------------------------------------------------------------------------------------------------


class At(ExitPolicy):
    """Stop at a fixed timestep."""

    def __init__(self, t):
        self.t = t

    def should_exit(self, evidence, state):
        return torch.full((len(evidence.total),), evidence.t >= self.t), state


def right_at(pattern):
    """A trace of two classes, label 0, whose prediction after t is right where ``pattern`` [N][T] says so."""
    logits = torch.tensor([[[2.0**t if right else -(2.0**t), 0.0] for t, right in enumerate(row)] for row in pattern])
    return Trace(logits, torch.zeros(len(pattern), dtype=torch.int64), torch.arange(len(pattern)))


def scored(point, policy, status="ok"):
    chosen = ScoredPolicy(OperatingPoint.parse(point), status, 1, lambda: policy)
    return Entry("at", "t", StrategyScores({}, [chosen], []))


def rows_of(entry, trace, resamples=400):
    workload = WorkloadScores("w", [entry], trace)
    conditions = {"w": [Condition("noise", 3, Recorded(trace))]}
    return shift_table([workload], conditions, resamples=resamples, seed=3).to_dict("records")


@pytest.mark.parametrize(
    ("point", "early_wrong", "t", "promise"),
    [
        ("iso-accuracy:5", 60, 1, "broken"),  # 30 % lost
        ("iso-accuracy:5", 11, 1, "kept"),  # 5.5 %: below the target, not significantly
        ("iso-accuracy:0", 0, 1, "kept"),
        ("risk:5,0.05", 60, 1, "broken"),
        ("risk:5,0.05", 11, 1, "kept"),
        ("budget:0.5", 60, 2, "kept"),
        ("budget:0.25", 60, 2, "broken"),
    ],
)
def test_a_promise_is_broken_where_it_is_significantly_missed(point, early_wrong, t, promise):
    trace = right_at([[False, True, True, True]] * early_wrong + [[True] * 4] * (200 - early_wrong))
    (row,) = rows_of(scored(point, At(t)), trace)
    assert row["promise"] == promise
    assert row["static_accuracy"] == 1.0
    assert row["accuracy"] == (1 - early_wrong / 200 if t == 1 else 1.0)
    assert row["delta_points"] == pytest.approx(100 * (row["accuracy"] - 1))
    assert row["delta_points_low"] <= row["delta_points"] <= row["delta_points_high"]
    assert row["average_exit_timestep"] == t


def test_the_interval_is_that_of_a_paired_bootstrap_and_about_as_wide_as_theory_says():
    trace = right_at([[False, True]] * 30 + [[True, False]] * 50 + [[True, True]] * 120)
    (row,) = rows_of(scored("iso-accuracy:1", At(1)), trace, resamples=4000)
    assert row["delta_points"] == pytest.approx(10.0)
    deviation = 100 * math.sqrt((80 / 200 - 0.1**2) / 200)
    assert row["delta_points_low"] == pytest.approx(10 - 1.96 * deviation, abs=0.8)
    assert row["delta_points_high"] == pytest.approx(10 + 1.96 * deviation, abs=0.8)


def test_static_t_keeps_every_promise_of_accuracy():
    trace = make_trace("normal", 4, 80, 5, 3)
    for point in ("iso-accuracy:0", "risk:1,0.05"):
        (row,) = rows_of(scored(point, NeverExit(), "fallback"), trace)
        assert (row["promise"], row["status"], row["delta_points"]) == ("kept", "fallback: static T", 0)


def test_what_was_not_chosen_has_no_row_and_what_fails_has_one_that_says_so():
    trace = make_trace("normal", 5, 30, 4, 3)

    class Breaks(ExitPolicy):
        def should_exit(self, evidence, state):
            raise ValueError("lost its way")

    infeasible = ScoredPolicy(OperatingPoint.parse("budget:0.1"), "infeasible")
    assert rows_of(Entry("none", "t", StrategyScores({}, [infeasible], [])), trace) == []
    assert rows_of(Entry("gone", "t", None, "failed: before"), trace) == []
    (row,) = rows_of(scored("budget:0.5", Breaks()), trace)
    assert row["status"] == "failed: ValueError: lost its way"
    assert pd.isna(row["accuracy"]) and pd.isna(row["promise"])
    table = shift_table([WorkloadScores("w", [], trace)], {"w": "failed: no data"}, resamples=100, seed=0)
    assert table["status"].tolist() == ["failed: no data"]


# --- the suite and the board -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A board under corruption with its traces, its store, and what it was made from."""
    folder = tmp_path_factory.mktemp("shifted")
    store, registry = trained_store(tmp_path_factory, folder / "store"), tiny_registry()
    strategies = [{"name": "fixed"}, {"name": "seenn-i"}, {"name": "seenn-ii", "parameters": {"epochs": 1}}]
    suite = parsed_suite(workloads=[DIRECT, EVENTS], strategies=strategies, shift=SHIFT)
    board = run_suite(suite, registry=registry, output=folder / "board", store=store, export_traces=True)
    return board, folder / "board", suite, registry, store


def test_every_policy_has_a_row_for_every_corruption_that_applies(made):
    board = made[0]
    assert board.failures == 0
    found = set(board.shift[["workload", "corruption", "severity"]].itertuples(index=False, name=None))
    both = [(w, c, s) for w in ("direct", "events") for c in ("noise", "contrast") for s in (1, 5)]
    assert found == {*both, ("direct", CLEAN, 0), ("events", CLEAN, 0), ("events", "drop", 1), ("events", "drop", 5)}
    ranked = board.rows["accuracy"].notna().groupby(board.rows["workload"]).sum()
    counts = board.shift.groupby("workload").size()
    assert counts.to_dict() == {"direct": 5 * ranked["direct"], "events": 7 * ranked["events"]}
    assert (board.shift["samples"] == 60).all()


def test_the_policies_are_those_of_the_board_and_clean_rows_are_on_the_same_samples(made):
    board, folder, suite, registry, _ = made
    whole = suite.model_copy(update={"shift": suite.shift.model_copy(update={"samples": 1000, "severities": [1]})})
    again = run_suite(whole, registry=registry, output=folder.parent / "whole", store=made[4])
    keys = ["workload", "strategy", "operating_point"]
    clean = again.shift[again.shift["corruption"] == CLEAN].merge(again.rows, on=keys, suffixes=("", "_board"))
    assert len(clean) == board.rows["accuracy"].notna().sum()
    for name in ("samples", "accuracy", "average_exit_timestep", "harmed_share"):
        assert (clean[name] == clean[f"{name}_board"]).all(), name
    missed = clean["note"].str.contains("missed|over")
    assert ((clean["promise"] == "broken") == missed).all()


def test_the_rest_of_the_board_is_as_without_corruption(made):
    _, folder, suite, registry, store = made
    plain = suite.model_copy(update={"shift": None})
    target = folder.parent / "plain"
    target.mkdir()
    (target / "shift.csv").write_text("of an earlier run")
    without = run_suite(plain, registry=registry, output=target, store=store)
    assert without.shift is None
    assert not (target / "shift.csv").exists()
    assert (target / "rows.csv").read_bytes() == (folder / "rows.csv").read_bytes()
    manifests = [json.loads((place / "manifest.json").read_text()) for place in (target, folder)]
    assert "shift" not in manifests[0]["suite"]
    assert "shift" not in manifests[0]["workloads"]["direct"]
    assert sorted(manifests[1]["workloads"]["events"].pop("shift")) == sorted(
        f"{c}-{s}" for c in SHIFT["corruptions"] for s in SHIFT["severities"]
    )
    assert manifests[0]["workloads"]["events"] == manifests[1]["workloads"]["events"]


def test_recording_under_corruption_is_done_once_and_changes_no_key(made):
    _, folder, suite, registry, store = made
    workload = Workload.resolve(suite.workloads[0], registry)
    weights = trained_weights(workload, store)
    before = {path: path.stat().st_mtime_ns for path in (store.root / "traces").rglob("*.safetensors")}
    assert store.path("traces", recording_key(workload, weights, "test")) in before
    run_suite(suite, registry=registry, output=folder.parent / "again", store=store)
    assert {p: p.stat().st_mtime_ns for p in (store.root / "traces").rglob("*.safetensors")} == before
    assert (folder.parent / "again" / "shift.csv").read_bytes() == (folder / "shift.csv").read_bytes()


def test_a_board_under_corruption_is_read_back_shown_and_free_of_contradictions(made):
    board, folder, *_ = made
    found = read_board(folder)
    assert list(contradictions(found)) == []
    assert markdown(found) == (folder / "leaderboard.md").read_text(encoding="utf-8")
    assert "## Under corruption" in markdown(found)
    shown = terminal(found, ["iso-accuracy:1"])
    assert "events, iso-accuracy:1, under corruption" in shown
    assert max(map(len, shown.splitlines())) <= 100
    here = board.shift[(board.shift["workload"] == "events") & (board.shift["operating_point"] == "budget:0.5")]
    last = here[(here["corruption"] == "drop") & (here["severity"] == 5)]
    cell = f"{(last['promise'] == 'broken').sum()}/{len(last)}, {last['delta_points'].mean():+.2f}"
    assert cell in markdown(found)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("promise", None, "promise"), ("accuracy", 0.123, "delta_points"), ("trace", "0" * 16, "trace")],
)
def test_an_edited_figure_under_corruption_is_named(made, column, value, words):
    board = read_board(made[1])
    other = {"kept": "broken", "broken": "kept"}[board.shift["promise"].iloc[-1]]
    board.shift.loc[board.shift.index[-1], column] = other if value is None else value
    assert any("shift.csv: events" in line and words in line for line in contradictions(board))


def test_a_board_under_corruption_is_reproduced_from_traces_and_drift_is_named(made, tmp_path):
    _, folder, _, registry, _ = made
    found = reproduce_board(folder, registry, from_weights=False)
    assert found.drift == []
    assert "shift.csv are equal byte by byte" in found.text
    table = read_table(folder / "shift.csv", {"trace": str})
    kept = (folder / "shift.csv").read_bytes()
    try:
        table.loc[3, "accuracy"] += 0.25
        table.to_csv(folder / "shift.csv", index=False)
        (line,) = reproduce_board(folder, registry, from_weights=False, verified=False).drift
        assert line.startswith("shift.csv: direct, ") and "accuracy: expected" in line
        (folder / "shift.csv").unlink()
        found = reproduce_board(folder, registry, from_weights=False, verified=False)
        assert found.drift == ["shift.csv: is missing"]
    finally:
        (folder / "shift.csv").write_bytes(kept)


def test_traces_under_corruption_that_are_missing_are_said_and_others_refused(made):
    _, folder, _, registry, _ = made
    paths = [folder / "traces" / f"events-test-drop-{severity}.safetensors" for severity in (1, 5)]
    kept = [path.read_bytes() for path in paths]
    try:
        paths[0].write_bytes(kept[1])
        with pytest.raises(UsageError, match="events-test-drop-1"):
            reproduce_board(folder, registry, from_weights=False)
        paths[0].unlink()
        found = reproduce_board(folder, registry, from_weights=False)
        assert found.drift == []
        assert "shift.csv is not compared" in found.text
    finally:
        for path, content in zip(paths, kept, strict=True):
            path.write_bytes(content)


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ({"corruptions": ["fog"]}, "shift.corruptions.0"),
        ({"severities": [6]}, "shift.severities.0"),
        ({"severities": [1, 1]}, "severities: each of them once"),
        ({"samples": 0}, "shift.samples"),
        ({"noise": 3}, "shift.noise"),
    ],
)
def test_a_shift_that_cannot_be_is_one_line(shift, words):
    with pytest.raises(SuiteError, match=words) as error:
        parsed_suite(shift=shift)
    assert "\n" not in str(error.value)


def test_the_shipped_suite_trains_nothing():
    """Its networks have the keys of the default suite's, which come with the package."""
    registry = load_registry()
    keys = {Workload.resolve(spec, registry).training_key for spec in load_suite("quick").workloads}
    suite = load_suite("shift")
    assert {Workload.resolve(spec, registry).training_key for spec in suite.workloads} <= keys
    assert len(suite.workloads) == 3
    assert suite.shift.samples == 2000


ROOT = Path(__file__).parent.parent


def documented(start):
    """Cells of the rows of a table in docs/shift.md, by what stands in the first two."""
    lines = (ROOT / "docs" / "shift.md").read_text(encoding="utf-8").split(start)[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    return {(row[0].strip("`"), row[1]): [cell.split(", ") for cell in row[2:]] for row in rows}


def test_the_documented_board_is_the_committed_one():
    table = pd.read_csv(ROOT / "results" / "shift" / "shift.csv")
    promises = documented("| network | corruption | `iso-accuracy:0.5` |")
    moves = documented("| network | corruption | accuracy of static T, % |")
    corrupted = table[table["severity"] > 0]
    conditions = corrupted.groupby(["workload", "corruption"], sort=False)
    assert list(promises) == list(moves) == [key for key, _ in conditions]
    for key, rows in conditions:
        for point, cells in zip(("iso-accuracy:0.5", "risk:1,0.05", "budget:0.5"), promises[key], strict=True):
            own = rows[rows["operating_point"] == point]
            broken = (own["promise"] == "broken").groupby(own["severity"]).sum()
            assert [int(cell) for cell in cells] == broken.tolist()
        both = pd.concat([table[(table["workload"] == key[0]) & (table["severity"] == 0)], rows])
        own = both[(both["operating_point"] == "iso-accuracy:0.5") & (both["strategy"] == "seenn-i")]
        static, exits = ([float(cell) for cell in cells] for cells in moves[key])
        assert static == pytest.approx(100 * own["static_accuracy"], abs=0.051)
        assert exits == pytest.approx(own["average_exit_timestep"], abs=0.0051)


def test_the_committed_board_is_free_of_contradictions_and_its_tables_are_its_own():
    board = read_board(ROOT / "results" / "shift")
    assert list(contradictions(board)) == []
    assert markdown(board) == (ROOT / "results" / "shift" / "leaderboard.md").read_text(encoding="utf-8")


def test_the_documented_strengths_are_those_of_the_code():
    text = (ROOT / "docs" / "shift.md").read_text(encoding="utf-8")
    for name, strengths in CORRUPTIONS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [cell.strip() for cell in row.split("|")[3:8]]
        assert np.allclose([float(cell) for cell in cells], strengths)


def test_policies_under_corruption_are_compared_with_those_of_another_board(made, tmp_path, monkeypatch):
    """What ``--from weights`` does where rounding differs: the committed policies, on the new traces."""
    _, folder, _, registry, _ = made
    monkeypatch.setattr(network_agreement, "same_numerics", lambda *_, **__: False)
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    found = compare_with(again, folder, registry)
    assert found.drift == []
    assert not any("shift.csv is not compared" in line for line in found.remarks)
    table = read_table(again / "shift.csv", {"trace": str})
    place = table.index[(table["severity"] == 5) & table["accuracy"].notna()][-1]
    table.loc[place, "accuracy"] += 0.25
    table.to_csv(again / "shift.csv", index=False)
    (line,) = compare_with(again, folder, registry, verified=False).drift
    assert f"{table.loc[place, 'corruption']}-5: accuracy at its committed knob" in line
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*-test-*"))
    found = compare_with(again, bare, registry, verified=False)
    assert any("shift.csv is not compared" in line for line in found.remarks)


def corrupted_digests():
    """A digest of the embedded test images under every corruption and severity."""
    dataset, spec = load_registry().datasets["fashion-mnist"], ShiftSpec(corruptions=list(ON_IMAGES), samples=40)
    tests = corrupted_tests(dataset, spec, 2)
    splits = {f"{name}-{severity}": one.split(one.corrupted_split) for one, name, severity in tests}
    return {name: tensor_digest(split.images[:]) for name, split in splits.items()}


def test_corrupted_images_are_the_same_under_every_set_of_kernels():
    code = "import json; from tests.test_shift import corrupted_digests; print(json.dumps(corrupted_digests()))"
    first, *others = (json.loads(run_python(["-c", code], kernels).stdout) for kernels in KERNELS)
    assert len(first) == 5 * len(ON_IMAGES)
    assert all(other == first for other in others)

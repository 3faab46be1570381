"""What training took: kept with the weights, a file of the board, a line and a chart for people."""

from pathlib import Path

import pandas as pd
import pytest

from bench_core.board.board import read_board
from bench_core.board.csv_tables import read_table
from bench_core.board.published import PUBLISHED_COLUMNS
from bench_core.board.schema import TRAINING_COLUMNS
from bench_core.report.drawing import themed
from bench_core.report.markdown import markdown
from bench_core.report.page import page
from bench_core.report.plots import training_chart
from bench_core.report.text_tables import training_line
from bench_core.run.artifacts import Workload, trained_weights
from bench_core.store.local import Store
from bench_core.training.history import training_log
from tests.helpers.boards import write_board
from tests.helpers.suites import DIRECT, parsed_suite, tiny_registry

QUICK = Path(__file__).parent.parent / "results" / "quick"


def epochs(count, stage="all", seconds=60.0, workload="fashion-direct"):
    return [
        dict(
            zip(TRAINING_COLUMNS, (workload, stage, n + 1, 2.0 / (n + 1), 0.5, seconds, "cpu", 1, "2.13"), strict=True)
        )
        for n in range(count)
    ]


def board_with(rows, **fields):
    board = read_board(QUICK)
    board.training = pd.DataFrame(rows, columns=list(TRAINING_COLUMNS))
    for name, value in fields.items():
        setattr(board, name, value)
    return board


def test_weights_remember_every_epoch_of_trunk_and_branch(tmp_path):
    recipe = {"epochs": 1, "learning_rate": 0.1}
    branch = {**DIRECT, "recipe": {**recipe, "epochs": 2, "trunk": recipe}}
    (spec,) = parsed_suite(workloads=[branch]).workloads
    weights = trained_weights(Workload.resolve(spec, tiny_registry()), Store(tmp_path, zoo=None))
    rows = training_log("mine", weights.metadata)
    assert [(row["workload"], row["stage"], row["epoch"]) for row in rows] == [
        ("mine", "trunk", 1),
        ("mine", "branch", 1),
        ("mine", "branch", 2),
    ]
    assert all(list(row) == list(TRAINING_COLUMNS) for row in rows)
    assert all(row["seconds"] > 0 and row["loss"] > 0 and 0 <= row["accuracy"] <= 1 for row in rows)


def test_every_trunk_before_a_trunk_has_its_rows():
    def made(epochs, **more):
        return {"history": [{"epoch": n + 1, "loss": 1.0, "accuracy": 0.5} for n in range(epochs)], **more}

    rows = training_log("mine", made(1, trunk=made(2, trunk=made(1))))
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("trunk 2", 1),
        ("trunk", 1),
        ("trunk", 2),
        ("branch", 1),
    ]


def test_weights_from_elsewhere_have_no_log():
    assert training_log("theirs", {}) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (epochs(3), ["3 epochs on cpu, 1 thread, 3 min;", "loss 0.667", "50.0 %"]),
        (epochs(2, "trunk") + epochs(1, "branch"), ["3 epochs (trunk 2 + branch 1) on cpu, 1 thread, 3 min;"]),
        (epochs(2, seconds=None) + epochs(1), ["1 thread, 1 min for 1 of them (the others were not timed);"]),
        (epochs(2, seconds=None), ["2 epochs on cpu, 1 thread;"]),
    ],
)
def test_a_line_says_what_it_took(rows, words):
    board = board_with(rows)
    line = training_line(board, "fashion-direct")
    assert all(word in line for word in words)
    assert f"\n{line}.\n" in markdown(board)
    assert training_line(board, "fashion-qcfs") == ""


def test_the_chart_and_the_page_show_it_and_published_figures_stand_apart():
    hostile = ["<script>alert(1)</script>", "net", "fashion-mnist", "", "96.1", "1.08", "somebody", "there", "somehow"]
    published = pd.DataFrame([hostile], columns=list(PUBLISHED_COLUMNS))
    board = board_with(epochs(2, "trunk") + epochs(3, "branch"), published=published)
    with themed():
        chart = training_chart(board, "fashion-direct")
        assert training_chart(board, "fashion-qcfs") is None
    assert [spot.x for spot in chart.spots] == [1, 2, 3, 4, 5]
    shown = page(board, {}, "iso-accuracy:0.5")
    assert "fashion-direct: training" in shown
    assert "epoch 5: loss 0.667, right 50.0 %" in shown
    for text in (markdown(board), shown):
        assert "Published figures" in text
        assert "not ranked" in text
        assert "96.1" in text
        assert "<script>alert" not in text
    without = read_board(QUICK)
    assert "Published figures" not in markdown(without) + page(without, {}, "iso-accuracy:0.5")


def test_the_file_comes_back_as_it_was_written(tmp_path):
    board = board_with(epochs(2))
    write_board(board, tmp_path)
    pd.testing.assert_frame_equal(read_board(tmp_path).training, read_table(tmp_path / "training.csv"))
    assert list(read_board(tmp_path).training["epoch"]) == [1, 2]


@pytest.mark.parametrize("name", ["training", "measurements", "measurements-raw"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not readable"),
        ('workload,"epoch\n1,2\n3,4,5', "not readable"),
        ("workload,epoch\nfashion-qcfs,1\n", "other columns"),
    ],
)
def test_a_damaged_or_older_file_is_said_to_be_passed_over(tmp_path, capfd, name, text, reason):
    write_board(board_with(epochs(2)), tmp_path)
    (tmp_path / f"{name}.csv").write_text(text)
    board = read_board(tmp_path, verified=False)
    assert name not in board.kept
    (line,) = [line for line in capfd.readouterr().err.splitlines() if f"{name}.csv" in line]
    assert reason in line
    assert "passed over" in line
    assert len(board.kept) == 2  # the others
    assert len(board.joined()) == len(board.rows)

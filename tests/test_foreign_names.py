"""Names of others do nothing to a terminal, a page, a paper or a spreadsheet, and odd cells and names are one line."""

import csv
import io
import json
import math
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench_core.board.board import read_board
from bench_core.board.csv_tables import csv_text, escaped, read_table, unescaped
from bench_core.board.differences import compare_boards
from bench_core.errors import UsageError
from bench_core.report.latex import latex
from bench_core.report.markdown import markdown
from bench_core.report.presentable import presentable
from bench_core.report.terminal import terminal
from bench_core.report.write import write_report
from tests.browser.boards import POINTS, make_board
from tests.fuzz.board import board_seeds
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.boards import write_board

ODD = "a\x1b[31m\x9b2J\u202eb\x07\x00\r\n\u2028c\x85\x7f\ufeff"
FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "＝1", "'quoted", "'=1", "-", "--x", "=")
TEXTS = (
    *FORMULAS,
    ODD,
    "\\x1b",
    "\\\\n",
    "a\\b",
    "=a\\b",
    '"',
    ",",
    "\n",
    " x ",
    "é±Δ",
    "007",
    "nan",
    "NA",
    "1e5",
    "True",
    "\ud800",
)


def plain(text):
    """Whether a file's text has no control characters but the ends of its lines."""
    return not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A board whose every name is odd, as it is read from its files; and the folder."""
    folder = tmp_path_factory.mktemp("odd")
    board = make_board(suite=f"s{ODD}", strategy=f"=m{ODD}", workload=f"w{ODD}", whole=True)
    board.manifest["plugins"][0]["name"] = f"p{ODD}"
    board.manifest["suite"]["title"] = f"t{ODD}"
    board.manifest["environment"][f"e{ODD}"] = ODD
    board.rows["note"] = f"@n{ODD}"
    write_board(board, folder)
    return read_board(folder), folder


# --- csv -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_read_back_as_it_was(tmp_path, text):
    table = pd.DataFrame({"workload": [text, "b"], "value": [-1.5, math.inf], "strategy": ["seenn-i[alpha=-1]", text]})
    (tmp_path / "t.csv").write_text(csv_text(table), encoding="utf-8")
    found = read_table(tmp_path / "t.csv")
    assert found.to_dict("list") == table.to_dict("list")


@given(st.text())
@example("'")
@example("\\")
def test_escapes_are_undone(text):
    assert unescaped(escaped(text)) == text
    assert escaped(text).isprintable()
    assert not escaped(text).startswith(tuple("=+-@\t\r＝＋－＠"))


@given(st.text())
def test_any_cell_can_be_read(cell):
    assert isinstance(unescaped(cell), str)
    assert isinstance(unescaped("'" + cell), str)


def test_figures_are_not_escaped_and_names_stay_names(tmp_path):
    mixed = pd.Series([-1.5, "-1.5", None], dtype=object)
    table = pd.DataFrame({"workload": ["007", "nan", "1e5"], "value": [-1.5, -math.inf, math.nan], "x": mixed})
    text = csv_text(table)
    assert text == "workload,value,x\n007,-1.5,-1.5\nnan,-inf,'-1.5\n1e5,,\n"
    (tmp_path / "t.csv").write_text(text)
    found = read_table(tmp_path / "t.csv")
    assert found["workload"].tolist() == ["007", "nan", "1e5"]
    assert found["value"].tolist()[:2] == [-1.5, -math.inf]
    assert np.isnan(found["value"][2])


def test_a_board_of_odd_names_is_read_back_and_no_file_has_a_formula(odd):
    board, folder = odd
    assert board.rows["workload"][0] == f"w{ODD}"
    assert f"=m{ODD}" in set(board.rows["strategy"])
    assert set(board.rows["note"]) == {f"@n{ODD}"}
    for path in folder.glob("*.csv"):
        text = path.read_text(encoding="utf-8")
        assert plain(text), path.name
        for row in csv.reader(io.StringIO(text)):
            for cell in row:
                assert not re.match(r"[=@\t\r]|[+-](?![\d.]|inf)", cell), (path.name, cell)


# --- what people read ------------------------------------------------------------------------------------------------


def test_no_control_character_is_shown_anywhere(odd, tmp_path, exitbench):
    board, folder = odd
    written = write_report(board, {}, tmp_path, ["html", "tex", "svg", "md"], board.rows["operating_point"][0])
    assert len(written) > 5
    for path in written:
        assert plain(path.read_text(encoding="utf-8")), path.name
        assert path.name.isprintable()
    for text in (terminal(board, list(POINTS)), markdown(board), latex(board), compare_boards(board, board).text):
        assert plain(text)
        assert text.isprintable() == ("\n" not in text)
    assert "w" + r"a\x1b[31m\x9b2J\u202eb\x07\x00\r\n\u2028c\x85\x7f\ufeff" in terminal(board, list(POINTS))
    for command in (
        ["leaderboard", folder],
        ["leaderboard", folder, "--operating-point", ODD],
        ["compare", folder, folder],
    ):
        answer = exitbench(*command)
        assert plain(answer.out + answer.err), command


def test_a_board_without_odd_names_is_shown_as_it_is():
    board = make_board()
    assert presentable(board) is board


def test_the_page_escapes_formulas_and_not_figures_in_its_csv(tmp_path):
    board = make_board()
    write_report(board, {}, tmp_path, ["html"], POINTS[0])
    script = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert "isFigure(text) ? `'${text}`" in script


# --- odd cells -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small board with every table; the folder."""
    folder = tmp_path_factory.mktemp("small")
    board_seeds(folder)
    return folder


ODD_CELLS = {
    "a word for a figure": ("rows", "accuracy", "high", "rows.csv, row 1: accuracy 'high' is no number"),
    "a truth for a figure": ("rows", "rank", "True", "rank 'True' is no number"),
    "infinite": ("workloads", "aet", "inf", "aet 'inf' is no finite number"),
    "huge": ("workloads", "timesteps", "1e18", "timesteps '1e+18' is no number of timesteps"),
    "no histogram": ("rows", "exit_histogram", "[]", "exit_histogram '[]' is no list of counts"),
    "a histogram of words": ("rows", "exit_histogram", '["a"]', "is no list of counts"),
    "a histogram of nothing": ("rows", "exit_histogram", "[0, 0]", "is no list of counts"),
    "broken JSON": ("workloads", "static_accuracy", "[0.5", "static_accuracy '[0.5' is no list of figures"),
    "infinite JSON": ("workloads", "static_accuracy", "[1e999]", "is no list of figures"),
    "deep JSON": ("rows", "parameters", "[" * 100_000, "is no JSON object of knobs"),
    "knobs of knobs": ("rows", "parameters", '{"a": []}', "is no JSON object of knobs"),
    "outcomes": ("summary", "by_workload", '{"first": [1]}', "is no JSON object of wins, losses and ties"),
    "names": ("seeds", "workloads", "[1]", "is no list of names"),
    "no name": ("curves", "strategy", "", "curves.csv, row 1: strategy 'nan' is empty"),
    "a control character": ("rows", "accuracy", "'\\x1b[2J", r"accuracy "),
    "twice": ("workloads", "workload", None, "workload 'first' is there twice"),
}


@pytest.mark.parametrize("case", ODD_CELLS)
def test_an_odd_cell_is_one_line_with_file_row_and_column(small, tmp_path, exitbench, case):
    name, column, cell, words = ODD_CELLS[case]
    for path in small.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / f"{name}.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    place = rows[0].index(column)
    rows[1][place] = rows[2][place] if cell is None else cell
    if cell is None:
        rows[1], rows[2] = rows[2], [rows[1][i] if i == place else c for i, c in enumerate(rows[2])]
        rows[1][place] = rows[2][place] = "first"
    with (tmp_path / f"{name}.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    answer = exitbench("leaderboard", "--unverified", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.err.splitlines()
    assert line.isprintable()
    assert f"{name}.csv, row" in line
    assert words in line
    assert "run the suite again" in line


MANIFESTS = {
    "no object": ([], "manifest.json is not of schema"),
    "deep": ("[" * 100_000, "not readable"),
    "suite": ({"suite": []}, "has a wrong suite"),
    "title": ({"suite": {"title": None}}, "has a wrong suite.title"),
    "workloads": ({"suite": {"workloads": [{"name": "x"}]}}, "lacks suite.workloads.0.dataset"),
    "plugins": ({"plugins": [1]}, "has a wrong plugins.0"),
    "facts": ({"workloads": {"first": None}}, "has a wrong workloads.first"),
    "digest": ({"workloads": {"first": {"weights": 7}}}, "has a wrong workloads.first.weights"),
    "shift": ({"suite": {"shift": {"samples": -1}}}, "has a wrong suite.shift.samples"),
    "control": ({"workloads": {ODD: None}}, "has a wrong workloads.a"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_an_odd_manifest_is_one_line(small, tmp_path, case):
    change, words = MANIFESTS[case]
    for path in small.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((small / "manifest.json").read_text())
    if isinstance(change, dict):
        for name, value in change.items():
            manifest[name] = {**manifest[name], **value} if isinstance(value, dict) else value
    text = change if isinstance(change, str) else json.dumps(manifest if isinstance(change, dict) else change)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)) as refusal:
        read_board(tmp_path, verified=False)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "x" * 300],
        ["run", "x" * 300 + ".toml"],
        ["run", "quick", "--plugin", "x" * 300 + ".py"],
        ["run", "quick", "--output", "x" * 300, "--dry-run"],
        ["leaderboard", "x" * 300],
        ["leaderboard", "/".join(["x" * 200] * 30)],
        ["compare", "x" * 300, "y" * 300],
        ["plugin", "check", "x" * 300 + ".py"],
        ["store", "import", "x" * 300],
        ["store", "show", "x" * 300],
        ["data", "fetch", "x" * 300],
        ["replay", "--calibration", "x" * 300, "--test", "y" * 300, "--strategy", "seenn-i"],
        ["replay", "--calibration", "x" * 300 + ".json", "--test", "y", "--strategy", "z" * 300],
        [ODD.replace("\0", "")],
        ["run", ODD.replace("\0", "")],
        ["leaderboard", ODD.replace("\0", "")],
        ["list", ODD.replace("\0", "")],
        ["run", "quick", "--only", ODD.replace("\0", "")],
    ],
    ids=lambda arguments: " ".join(part[:12] for part in arguments if part.isprintable()) or "odd",
)
def test_a_name_that_no_file_can_have_is_one_line(tmp_path, monkeypatch, exitbench, arguments):
    monkeypatch.chdir(tmp_path)
    answer = exitbench(*arguments)
    assert answer.code == 2, answer
    (line,) = answer.err.splitlines()
    assert line.isprintable()
    assert line.startswith("exitbench: ")
    assert list(tmp_path.iterdir()) == []

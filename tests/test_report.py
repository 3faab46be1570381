"""The report of a board: nothing from elsewhere, every name escaped, the same bytes every time, bad boards refused."""

import base64
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from bench_core.board.board import read_board
from bench_core.board.consistency import contradictions, refuse_contradictions
from bench_core.board.differences import compare_boards
from bench_core.board.schema import TRAINING_COLUMNS
from bench_core.board.under_shift import CLEAN
from bench_core.errors import UsageError
from bench_core.plugins import load_registry
from bench_core.report import write as writing
from bench_core.report.drawing import themed
from bench_core.report.gallery import read_extras
from bench_core.report.latex import escape, latex
from bench_core.report.palette import looks
from bench_core.report.plots import shift_charts
from bench_core.report.text_tables import (
    leaderboard,
    sections,
    seed_tables,
    shift_by_severity,
    shift_promises,
    shift_rows,
)
from bench_core.report.write import check_formats, write_report
from tests.browser.boards import HOSTILE, POINTS, SCRIPT, Squares, make_board
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.boards import write_board

EVERY = ("html", "tex", "svg", "png", "md")
VOID = {"meta", "link", "img", "br", "input", "hr", "path", "circle"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("board")
    make_board(folder=place)
    return place


@pytest.fixture(scope="module")
def board(folder):
    return read_board(folder)


@pytest.fixture(scope="module")
def extras(board, folder):
    return read_extras(folder, board, POINTS[0], load_registry([]).strategies, {"squares": Squares()})


@pytest.fixture(scope="module")
def written(board, extras, tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    write_report(board, extras, place, EVERY, POINTS[0])
    return place


@pytest.fixture(scope="module")
def html(written):
    return (written / "leaderboard.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    """A board with everything that only some have: seeds, corruption, a training log."""
    place = tmp_path_factory.mktemp("whole")
    board = make_board(whole=True)
    log = [
        {
            "workload": "first",
            "stage": "all",
            "epoch": epoch,
            "loss": 1 / epoch,
            "accuracy": 1 - 1 / epoch,
            "seconds": 9,
        }
        for epoch in (1, 2, 3)
    ]
    board.training = pd.DataFrame(log, columns=list(TRAINING_COLUMNS))
    write_board(board, place)
    return place


@pytest.fixture(scope="module")
def whole(whole_folder):
    return read_board(whole_folder)


class Page(HTMLParser):
    """What a parser without JavaScript makes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.tables, self._cells, self._open = [], [], [], None, None
        self.words = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self._open = tag

    def handle_data(self, data):
        if self._open == "script":
            self.scripts.append(data)
        elif self._open != "style":
            self.words.append(data)
            if self.tables and self.tables[-1] and self.tables[-1][-1]:
                self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag):
        self._open = None


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_file_is_written_and_small(written):
    names = {path.name for path in written.iterdir()}
    assert names == {"leaderboard.html", "leaderboard.tex", "leaderboard.md", "plots"}
    plots = {path.name for path in (written / "plots").iterdir()}
    kinds = ["accuracy-timesteps", "accuracy-energy-cmos45", "accuracy-energy-memory", "exit-histograms", "reliability"]
    assert plots == {f"{w}-{kind}.{end}" for w in ("first", "second") for kind in kinds for end in ("svg", "png")}
    assert (written / "leaderboard.html").stat().st_size < 3_000_000


def test_the_page_asks_for_nothing_from_elsewhere(html):
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<)]*", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "//www.w3.org/2000/svg"}
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed")
    assert "@import" not in html
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    assert "default-src 'none'" in html


def test_the_one_script_is_ours_and_the_only_one_allowed(html):
    import hashlib

    scripts = Page(html).scripts
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "innerHTML" not in scripts[0]


def test_tables_without_javascript_hold_what_the_leaderboard_holds(board, html):
    tables = [table for table in Page(html).tables if table and table[0] and table[0][0] == "rank"]
    expected = list(sections(board))
    assert len(tables) == len(expected) == 4
    for (_, _, rows), table in zip(expected, tables, strict=True):
        text = leaderboard(rows, board.workloads)
        shown = [row for row in table[1:] if len(row) > 2]
        assert len(shown) == len(text)
        columns = [name.strip() for name in table[0] if name != "exits"]
        exits = table[0].index("exits")
        for cells, (_, wanted) in zip(shown, text.iterrows(), strict=True):
            found = [" ".join(cell.split()) for cell in cells]
            del found[exits]
            assert found == [str(wanted[name]) for name in columns]
    heads = [name.strip() for name in tables[0][0]]
    assert [name for name in leaderboard(expected[0][2], board.workloads) if name not in heads] == [
        "ms",
        "p95 ms",
        "p99 ms",
        "speed-up",
        "samples/s",
        "batch speed-up",
    ]  # nothing was measured


def texts(table):
    return [[str(cell) for cell in row] for row in table.itertuples(index=False)]


def test_tables_over_seeds_and_under_corruption_need_no_javascript(whole, tmp_path):
    write_report(whole, {}, tmp_path, ["html", "svg"], POINTS[0])
    text = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    # The parser gives the last cell of a table what comes after it.
    shown = [[[cell.split("\n")[0] for cell in row] for row in table[1:]] for table in Page(text).tables]
    seeds = list(seed_tables(whole))
    assert [(name, point) for name, point, _ in seeds] == [("first", point) for point in POINTS]
    assert all(texts(table) in shown for _, _, table in seeds)
    count = 0
    for workload in ("first", "second", "first again"):
        for point, rows in shift_rows(whole, workload):
            assert texts(shift_by_severity(rows)) in shown
            assert texts(shift_promises(rows)) in shown
            for corruption in ("noise", "blur"):
                assert f"{workload}, {point}: {corruption}</figcaption>" in text
            count += 1
    assert count == 6
    plots = {path.name for path in (tmp_path / "plots").glob("*shift*")}
    assert plots == {f"{w}-shift-{c}.svg" for w in ("first", "second", "first-again") for c in ("noise", "blur")}
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_figures_under_corruption_are_those_of_the_table(whole):
    rows = dict(shift_rows(whole, "first"))[POINTS[0]]
    by_severity = shift_by_severity(rows).set_index(["corruption", "severity"])
    here = rows[(rows["corruption"] == "blur") & (rows["severity"] == 5)]
    line = by_severity.loc[("blur", 5)]
    assert line["broken"] == f"{(here['promise'] == 'broken').sum()}/{len(here)}"
    assert float(line["accuracy %"]) == pytest.approx(100 * here["accuracy"].mean(), abs=0.005)
    assert float(line["avg exit t"]) == pytest.approx(here["average_exit_timestep"].mean(), abs=0.0005)
    promises = shift_promises(rows).set_index("strategy")
    for strategy, own in rows[rows["severity"] > 0].groupby("strategy"):
        for corruption, theirs in own.groupby("corruption"):
            broken = theirs.loc[theirs["promise"] == "broken", "severity"]
            assert promises.loc[strategy, f"{corruption}: broken at"] == (", ".join(map(str, broken)) or "–")


@pytest.mark.parametrize("point", POINTS)
def test_a_chart_under_corruption_marks_what_is_broken_and_says_it(whole, point):
    total = 0
    for workload in ("first", "second", "first again"):
        rows = dict(shift_rows(whole, workload))[point]
        with themed():
            charts = list(shift_charts(whole, workload, point, looks(whole.rows["strategy"])))
        assert [chart.name for chart in charts] == ["shift-noise", "shift-blur"]
        for chart, corruption in zip(charts, ("noise", "blur"), strict=True):
            own = rows[rows["corruption"].isin([CLEAN, corruption])]
            broken = int((own["promise"] == "broken").sum())
            assert len(chart.spots) == 2 * len(own)
            assert sum("promise broken" in spot.text for spot in chart.spots) == 2 * broken
            for axes, same in zip(chart.figure.axes, charts[0].figure.axes, strict=True):
                markers = [line for line in axes.lines if line.get_linestyle() == "None"]
                assert sum(len(line.get_xdata()) for line in markers) == broken
                assert axes.get_ylim() == same.get_ylim()
            total += broken
    assert (total > 0) == (point == POINTS[0])  # no budget is broken on this board


def test_every_link_leads_to_a_place_of_the_page_and_no_id_is_twice(html):
    tags = Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for _, attributes in tags if attributes.get("href", "").startswith("#")}
    assert links <= set(ids)
    assert {f"r{number}" for number in (0, 4, 8)} <= links


def test_points_name_their_policy_and_knob(board, html):
    titles = re.findall(r"<title>(.*?)</title>", html)
    for row in board.rows[board.rows["status"] == "ok"].to_dict("records"):
        start = f"{row['strategy']}, {row['operating_point']}: {row['knob']} {row['value']:.5g}; avg exit t"
        assert any(title.startswith(start) for title in titles), start
    assert any(title.startswith("fixed-t hull: t ") for title in titles)
    assert any(title.startswith("oracle: avg exit t") for title in titles)


def test_the_manifest_of_a_row_is_there(board, html):
    words = "\n".join(Page(html).words)
    for facts in board.manifest["workloads"].values():
        assert facts["test_trace"] in words
        assert facts["data"]["test"] in words
    assert "version.torch" in words
    assert "seed" in words


def test_no_path_and_no_time_is_inside(html, folder, written):
    assert "somewhere/on/a/disk" not in html
    for place in (folder, written):
        assert str(place) not in html


@pytest.mark.parametrize(
    ("name", "other", "whole"),
    [
        (SCRIPT, HOSTILE, True),
        ("</script><img src=x onerror=alert(1)>", "$\\frac{", False),
        ("{{ 7 * 7 }}", "名前", False),
    ],
)
def test_a_name_is_text_whatever_it_is(name, other, whole, tmp_path):
    board = make_board(strategy=name, workload=other.replace("/", "|"), whole=whole)
    write_report(board, {}, tmp_path, ["html", "tex", "svg"], POINTS[0])
    text = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.scripts) == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    words = "\n".join(page.words)
    assert name in words and other.replace("/", "|") in words
    assert SCRIPT in words  # a distribution is called that, and a failure says it
    for path in (tmp_path / "plots").glob("*.svg"):
        root = ET.parse(path).getroot()
        assert not any("script" in element.tag for element in root.iter())
    assert_balanced((tmp_path / "leaderboard.tex").read_text(encoding="utf-8"))


def test_the_same_board_gives_the_same_bytes_in_another_process(folder, tmp_path):
    contents = []
    for number, hashing in enumerate(("1", "2")):
        place = tmp_path / str(number)
        command = [sys.executable, "-m", "bench_core", "report", str(folder), "--output", str(place)]
        command += ["--format", "html,tex"]  # the page holds the pictures
        environment = {
            "PYTHONHASHSEED": hashing,
            "PATH": "",
            "HOME": str(tmp_path),
            "MPLCONFIGDIR": str(tmp_path / "m"),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        contents.append({path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 2


def test_the_samples_are_those_that_stopped_first_and_last(extras, html):
    gallery = extras["first"].gallery
    assert gallery is not None
    assert [s.exit_timestep for s in gallery.easiest] == sorted(s.exit_timestep for s in gallery.easiest)
    assert gallery.easiest[0].exit_timestep < gallery.hardest[0].exit_timestep
    assert all(s.label == s.sample_id % 4 for s in gallery.easiest + gallery.hardest)
    assert html.count("data:image/png;base64,") == sum(
        len(e.gallery.easiest) + len(e.gallery.hardest) for e in extras.values() if e.gallery
    )


def test_images_are_shown_only_under_a_licence_for_the_tested_data(board, folder):
    strategies = load_registry([]).strategies

    def shown(change):
        changed = read_board(folder)
        for facts in changed.manifest["workloads"].values():
            change(facts)
        found = read_extras(folder, changed, POINTS[0], strategies, {"squares": Squares()})
        return any(extra.gallery for extra in found.values())

    assert shown(lambda facts: None)
    assert not shown(lambda facts: facts.update(licence="research only"))
    assert not shown(lambda facts: facts["data"].update(test="00"))
    assert not any(e.gallery for e in read_extras(folder, board, POINTS[0], strategies, {}).values())


def test_a_board_without_traces_is_shown_without_oracle_curve_and_images(board, tmp_path):
    found = read_extras(tmp_path, board, POINTS[0], {}, {})
    assert all(extra.oracle is None and extra.gallery is None for extra in found.values())
    write_report(board, found, tmp_path, ["html"], POINTS[0])
    assert "data:image" not in (tmp_path / "leaderboard.html").read_text(encoding="utf-8")


def test_a_trace_of_another_board_is_refused(folder, board):
    other = read_board(folder)
    other.manifest["workloads"]["first"]["test_trace"] = "0" * 64
    with pytest.raises(UsageError, match=r"first-test\.safetensors: not the trace"):
        read_extras(folder, other, POINTS[0], {}, {})


def test_strategies_look_different_from_each_other():
    found = looks([f"s{i}" for i in range(42)])
    assert len({(look.colour, look.marker, look.dash) for look in found.values()}) == 42


# --- LaTeX -----------------------------------------------------------------------------------------------------------


def assert_balanced(text):
    """Braces and environments close, and no special character stands alone."""
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[\\{}$&#%_]", "", plain)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    depth = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", plain):
        depth.append(name) if kind == "begin" else depth.remove(name)
    assert depth == []
    assert not re.search(r"[#%_~^]", bare)
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", plain, flags=re.DOTALL):
        for line in table[1].splitlines():
            if line.rstrip().endswith("\\\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(table[0]) - 1, line


def test_latex_is_booktabs_balanced_and_has_a_table_for_each_section(board):
    text = latex(board)
    assert_balanced(text)
    assert text.count("\\toprule") == text.count("\\bottomrule") == text.count("\\begin{tabular}") == 4
    assert "\\hline" not in text


def test_latex_has_seeds_and_corruption_too(whole):
    text = latex(whole)
    assert_balanced(text)
    assert text.count("\\toprule") == 6 + 2 + 2 * 6
    assert len(set(re.findall(r"\\label\{(.*?)\}", text))) == 6 + 2 + 2 * 6
    assert "in brackets the smallest and the largest value" in text
    assert re.search(r"^ clean +& +0 &", text, flags=re.MULTILINE)


def test_latex_escapes_every_special_character():
    shown = escape("a\\b{c}$d&e#f%g_h^i~j<k>l ±")
    assert shown == (
        r"a\textbackslash{}b\{c\}\$d\&e\#f\%g\_h\textasciicircum{}i\textasciitilde{}j\textless{}k\textgreater{}l $\pm$"
    )


def test_a_title_of_two_lines_stays_in_the_comment(board, folder):
    changed = read_board(folder)
    changed.manifest["suite"]["title"] = "one\n\\input{secret}"
    assert all(line.startswith("%") for line in latex(changed).splitlines()[:2])
    assert "\n\\input" not in latex(changed)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_board_as_written_has_no_contradictions(board):
    assert list(contradictions(board)) == []


EDITS = {
    "accuracy": ("rows", "accuracy", 0.0625, "delta_points"),
    "timestep": ("rows", "average_exit_timestep", 0.25, "average_exit_timestep"),
    "rank": ("rows", "rank", 1, "rank"),
    "energy": ("rows", "energy_cmos45_joules", 1e-9, "do not agree"),
    "class": ("classes", "accuracy", 0.5, "do not add up"),
    "bin": ("reliability", "accuracy", 0.5, "do not add up"),
    "pair": ("pairwise", "accuracy_points", 1.0, "not the difference"),
    "summary": ("summary", "average_rank", 1.0, "summary.csv"),
    "aet": ("workloads", "aet", 0.5, "aet"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_figure_edited_by_hand_is_named(folder, edit):
    board = read_board(folder)
    name, column, change, words = EDITS[edit]
    table = getattr(board, name)
    row = int(np.flatnonzero(table[column].notna() & (table["samples"].ne(0) if "samples" in table else True))[0])
    table.loc[row, column] += change
    with pytest.raises(UsageError, match=words):
        refuse_contradictions(board, "mine")


def put(column, value):
    """A change of one cell of a table."""

    def change(table):
        table.loc[6, column] = value
        return table

    return change


SHIFT_EDITS = {
    "accuracy": (put("accuracy", 1.0), "delta_points"),
    "static": (put("static_accuracy", 0.51234), "more than one static_accuracy"),
    "timestep": (put("average_exit_timestep", 2.512345), "no mean of 160 samples"),
    "interval": (put("average_exit_timestep", 7.0), "not in its interval"),
    "harmed": (put("harmed_share", 1.0), "harmed_share 1.0 can't be"),
    "samples": (lambda t: t.assign(samples=80), "the suite and workloads.csv say 160"),
    "severity": (put("severity", 4), "stands here or in rows.csv, not in both"),
    "strategy": (put("strategy", "none"), "stands here or in rows.csv, not in both"),
    "trace": (lambda t: t.assign(trace="0" * 16), "trace 0000000000000000 is not the one in manifest.json"),
    "twice": (lambda t: pd.concat([t, t[6:7]]), "stands there twice"),
    "missing": (lambda t: t.drop(6), "stands here or in rows.csv, not in both"),
    "condition": (lambda t: t[t["corruption"] != "blur"], "blur-1: is missing"),
    "words": (lambda t: t.assign(accuracy="much"), "a cell does not hold"),
    "promise": (lambda t: t.assign(promise=t["promise"].map({"kept": "broken", "broken": "kept"})), "promise"),
}


@pytest.mark.parametrize("edit", SHIFT_EDITS)
def test_a_row_under_corruption_edited_by_hand_is_named(whole_folder, edit):
    board = read_board(whole_folder)
    change, words = SHIFT_EDITS[edit]
    board.shift = change(board.shift)
    with pytest.raises(UsageError, match=words):
        refuse_contradictions(board, "mine")


def edit_text(path, old, new):
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def edit_cell(path, column, value):
    table = pd.read_csv(path, dtype={"trace": str}).astype({column: object})
    table.loc[0, column] = value
    table.to_csv(path, index=False)


def edit_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


OTHERS = {
    "shift-lost": (lambda f: (f / "shift.csv").unlink(), "shift.csv is missing: the suite has [shift]"),
    "seeds-lost": (lambda f: (f / "seeds.csv").unlink(), "seeds.csv is missing: first and first again differ"),
    "shift-older": (lambda f: edit_text(f / "shift.csv", "promise", "kept_it"), "shift.csv has other columns"),
    "seeds-older": (lambda f: edit_text(f / "seeds.csv", "missed", "misses"), "seeds.csv has other columns"),
    "shift-empty": (lambda f: (f / "shift.csv").write_text(""), "not readable"),
    "seeds-figure": (lambda f: edit_cell(f / "seeds.csv", "accuracy", 0.5), "seeds.csv does not follow"),
    "seeds-other": (lambda f: edit_cell(f / "seeds.csv", "workload", "other"), "no such workloads"),
    "seeds-fewer": (lambda f: edit_cell(f / "seeds.csv", "workloads", '["first"]'), "seeds.csv does not follow"),
    "training-epoch": (lambda f: edit_cell(f / "training.csv", "epoch", 7), "the epochs are not 1 .. 3"),
    "training-share": (lambda f: edit_cell(f / "training.csv", "accuracy", 91.0), "not between 0 and 1"),
    "training-other": (lambda f: edit_cell(f / "training.csv", "workload", "other"), "does not have this workload"),
    "training-words": (lambda f: edit_cell(f / "training.csv", "accuracy", "good"), "a cell does not hold"),
    "published": (lambda f: (f / "published.csv").write_text("method,network\nA,b\n"), "published.csv: its columns"),
    "manifest-suite": (lambda f: edit_manifest(f, lambda m: m.pop("suite")), "manifest.json"),
    "manifest-shift": (lambda f: edit_manifest(f, lambda m: m["suite"].pop("shift")), "the suite has no [shift]"),
}


@pytest.mark.parametrize("command", ["leaderboard", "report", "compare"])
@pytest.mark.parametrize("case", OTHERS)
def test_a_table_of_some_boards_that_is_wrong_is_one_line_and_exit_2(whole_folder, tmp_path, exitbench, command, case):
    change, words = OTHERS[case]
    board = damaged(whole_folder, tmp_path, change)
    more = {"report": ["--output", tmp_path / "out"], "compare": [whole_folder]}.get(command, [])
    code, out, err = exitbench(command, board, *more, "--unverified")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.manifest["workloads"]["first"].update(weights="0" * 64), "weights"),
        (lambda b: b.manifest["workloads"].pop("second"), "manifest.json does not have this workload"),
        (lambda b: b.manifest.pop("environment"), "lacks environment"),
        (lambda b: b.rows.pop("wins"), "older schema"),
        (lambda b: setattr(b, "rows", pd.concat([b.rows, b.rows])), "stands there twice"),
        (lambda b: b.rows.loc.__setitem__((0, "suite"), "other"), "rows of suite other"),
        (lambda b: b.rows.loc.__setitem__((0, "exit_histogram"), "[1,"), "a cell does not hold"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(folder, change, words):
    board = read_board(folder)
    change(board)
    with pytest.raises(UsageError, match=words):
        refuse_contradictions(board, "mine")


def damaged(folder, place, change):
    board = place / "damaged"
    board.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (board / path.name).write_bytes(path.read_bytes())
    change(board)
    return board


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "not readable"),
        (lambda f: (f / "manifest.json").write_text('{"schema": "exitbench.rows/0"}'), "schema"),
        (lambda f: (f / "rows.csv").write_text((f / "rows.csv").read_text().replace(",rank,", ",place,")), "rows.csv"),
        (lambda f: (f / "curves.csv").unlink(), "curves.csv is missing"),
    ],
)
def test_a_damaged_board_is_one_line_and_exit_2(folder, tmp_path, exitbench, change, words):
    board = damaged(folder, tmp_path, change)
    code, out, err = exitbench("report", board, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_and_a_missing_library_are_one_line(monkeypatch):
    with pytest.raises(UsageError, match="--format pdf: it is one of"):
        check_formats(["html", "pdf"])
    monkeypatch.setattr(writing, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"exitbench\[report\]"):
        check_formats(["html"])
    assert check_formats(["md", "tex"]) == ["tex", "md"]


def test_report_writes_into_the_boards_own_folder_by_default(folder, tmp_path, exitbench):
    board = damaged(folder, tmp_path, lambda place: None)
    code, out, _ = exitbench("report", board, "--format", "tex,md")
    assert code == 0
    assert out.splitlines() == [str(board / "leaderboard.tex"), str(board / "leaderboard.md")]


# --- two boards ------------------------------------------------------------------------------------------------------


def test_a_board_beside_itself_is_equal(board):
    found = compare_boards(board, board)
    assert (found.changed, found.incomparable, found.equal) == ([], {}, len(board.rows))


def test_what_changed_is_named_with_both_figures(folder, board):
    other = read_board(folder)
    row = other.rows.index[other.rows["accuracy"].notna()][0]
    was = other.rows.loc[row, "accuracy"]
    other.rows.loc[row, "accuracy"] = was - 0.5
    other.rows.loc[row, "parameters"] = json.dumps({"new": 1})
    found = compare_boards(board, other)
    assert len(found.changed) == 1
    assert found.changed[0]["accuracy %"] == f"{100 * was:.2f} → {100 * (was - 0.5):.2f}"
    assert found.changed[0]["clear"] == "accuracy"
    assert found.changed[0]["also"] == "parameters"
    assert "1 changed" in found.text


def test_workloads_of_other_traces_are_not_compared(folder, board):
    other = read_board(folder)
    other.manifest["workloads"]["first"]["weights"] = "0" * 64
    other.manifest["environment"]["torch"] = "3"
    other.rows["accuracy"] -= 0.01
    found = compare_boards(board, other)
    assert found.incomparable == {"first": "weights differ"}
    assert {record["workload"] for record in found.changed} == {"second"}
    assert "made with torch 2 and 3" in found.text


def test_tables_that_only_some_boards_have_are_compared_too(whole_folder, whole):
    assert compare_boards(whole, whole).text == f"{len(whole.rows)} rows equal, 0 changed"
    other = read_board(whole_folder)
    other.shift.loc[0, "average_exit_timestep"] += 1
    other.seeds.loc[0, "missed"] += 1
    text = compare_boards(whole, other).text
    assert "shift.csv: 1 rows differ, the first is first, fixed, iso-accuracy:0.5, clean, 0" in text
    assert "seeds.csv: 1 rows differ, the first is first, fixed, iso-accuracy:0.5" in text
    other.shift["trace"] = "0" * 16
    other.manifest["workloads"]["first"]["weights"] = "0" * 64
    text = compare_boards(whole, other).text
    assert f"shift.csv: {len(whole.shift)} rows are of other networks or traces, and not compared" in text
    assert f"seeds.csv: {len(whole.seeds)} rows are of other networks or traces, and not compared" in text
    other.shift = None
    assert "shift.csv: only in the first board" in compare_boards(whole, other).text
    assert "shift.csv: only in the second board" in compare_boards(other, whole).text


def test_boards_that_have_nothing_in_common_are_refused(board):
    with pytest.raises(UsageError, match="different suites, tiny and other"):
        compare_boards(board, make_board(suite="other"))
    with pytest.raises(UsageError, match=r"nothing to compare: .*test trace"):
        compare_boards(board, make_board(seed=1))


def test_compare_on_the_command_line(folder, exitbench):
    code, out, _ = exitbench("compare", folder, folder)
    assert (code, out) == (0, "16 rows equal, 0 changed\n")

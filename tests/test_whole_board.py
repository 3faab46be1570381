"""A board is one thing: killed at any moment a folder holds one of two boards, and an edited table is named."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench_core.board.board import make_folder, read_board, read_kept, write_tables
from bench_core.board.files import KEPT_TABLES, OPTIONAL_TABLES, TABLES
from bench_core.board.seal import seal
from bench_core.errors import StoreError, UsageError
from bench_core.util import whole_folder
from bench_core.util.whole_folder import PENDING, place_of, replace_files
from tests.browser.boards import make_board
from tests.helpers.board_kills import NEW, OLD, OTHERS, OWNED, make_old, said_by
from tests.helpers.boards import write_board
from tests.helpers.processes import environment, module_path

ROOT = Path(__file__).parent.parent
WAYS = ("exchanged", "inside")


def helper(*arguments):
    """What the helper says of its kills, as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.board_kills", *map(str, arguments)],
        env={**environment("nowhere"), "PYTHONPATH": module_path()},
        cwd=ROOT,
        capture_output=True,
        timeout=600,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two boards of one suite."""
    place = tmp_path_factory.mktemp("boards")
    for name, seed in (("one", 0), ("other", 1)):
        make_board(folder=place / name, seed=seed)
    return place / "one", place / "other"


@pytest.fixture
def copied(folders, tmp_path):
    """A copy of the first board to do harm to."""
    return Path(shutil.copytree(folders[0], tmp_path / "board"))


def own_files(folder):
    """Names and bytes of the regular files of a folder, those of folders in it aside."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def leftovers(place):
    return [str(path) for path in place.rglob("*") if ".writing-" in path.name or path.name == PENDING]


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_killed_before_any_step_there_are_the_old_files_or_the_new(tmp_path, way):
    """A kill before each thing that is done to the file system; after the next replacement nothing is left over."""
    found = helper("steps", way, tmp_path)
    seen = [step["seen"] for step in found]
    assert set(seen) == {"old", "new"}
    first = seen.index("new")
    assert set(seen[:first]) == {"old"}
    assert set(seen[first:]) == {"new"}  # one step, after which it is the other one
    if way == "exchanged":  # not only for who asks where they are
        assert [step["plain"] for step in found] == seen
    assert [step["problems"] for step in found] == [[]] * len(found)
    assert len(found) > 30


@pytest.mark.parametrize("way", WAYS)
def test_thirty_kills_while_one_board_replaces_another(folders, tmp_path, way):
    found = helper("boards", way, tmp_path, *folders)
    assert found["kills"] == 30
    assert found["problems"] == []
    assert set(found["seen"]) == {"one", "other"}


@pytest.mark.parametrize("way", WAYS)
def test_who_reads_while_boards_are_replaced_sees_one_of_them(folders, tmp_path, way):
    found = helper("reading", way, tmp_path, *folders)
    assert found["problems"] == []
    assert found["replaced"] == 8
    assert set(found["seen"]) == {"one", "other"}


def test_two_who_replace_at_once_take_turns(tmp_path):
    found = helper("turns", "exchanged", tmp_path)
    assert found == {"codes": [0, 0, 0], "seen": ["old"], "left": []}


# --- what else is in the folder ---------------------------------------------------------------------------------------


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    if request.param == "inside":
        monkeypatch.setattr(whole_folder, "_exchange", said_by(OSError("no such step here")))
    return request.param


def test_what_others_put_there_stays_as_it_is(tmp_path, way):
    folder = make_old(tmp_path)
    before = {name: os.lstat(folder / name) for name in OTHERS}
    identity = folder.stat().st_ino
    replace_files(folder, NEW, OWNED)
    assert (folder.stat().st_ino == identity) == (way == "inside")
    for name, status in before.items():
        after = os.lstat(folder / name)
        assert stat.S_IFMT(after.st_mode) == stat.S_IFMT(status.st_mode)
        assert after.st_mode == status.st_mode
        if not stat.S_ISDIR(status.st_mode):
            assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns), name
    assert (folder / "link").readlink() == Path("nowhere")
    assert leftovers(tmp_path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["board"]


def test_what_is_put_there_meanwhile_stays_too(tmp_path, monkeypatch):
    """Between the links and the exchange somebody adds a file, changes one and makes a folder."""
    folder = make_old(tmp_path)
    usual = whole_folder._exchange

    def late(one, other):
        (one / "late.txt").write_text("late")
        (one / "plots" / "late").mkdir()
        (one / "plots" / "late" / "a.svg").write_text("late")
        (one / "changed").write_text("changed")
        (one / "changed").replace(one / "published.csv")
        usual(one, other)

    monkeypatch.setattr(whole_folder, "_exchange", late)
    replace_files(folder, NEW, OWNED)
    assert (folder / "rows.csv").read_text() == "new rows"
    assert (folder / "late.txt").read_text() == "late"
    assert (folder / "plots" / "late" / "a.svg").read_text() == "late"
    assert (folder / "published.csv").read_text() == "changed"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("how", ["link to it", "work in it", "linked traces", "folder of others", "mode"])
def test_a_folder_that_must_not_go_is_written_into(tmp_path, monkeypatch, how):
    folder = make_old(tmp_path)
    given, elsewhere = folder, tmp_path / "disk"
    if how == "link to it":
        (tmp_path / "linked").symlink_to("board")
        given = tmp_path / "linked"
    elif how == "work in it":
        monkeypatch.chdir(folder)
        given = Path()
    elif how == "linked traces":
        (folder / "traces").rename(elsewhere)
        (folder / "traces").symlink_to(elsewhere)
    elif how == "folder of others":
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    else:
        folder.chmod(0o2750)
    identity = folder.stat().st_ino
    replace_files(given, NEW, OWNED)
    assert (folder.stat().st_ino == identity) == (how not in ("link to it", "mode"))
    assert (given / "rows.csv").read_text() == (folder / "rows.csv").read_text() == "new rows"
    assert (folder / "traces" / "a.safetensors").read_text() == "new trace"
    assert (folder / "traces" / "b.safetensors").read_text() == "a user's"
    assert given.is_symlink() == (how == "link to it")
    assert how != "linked traces" or (elsewhere / "a.safetensors").read_text() == "new trace"
    assert how != "mode" or stat.S_IMODE(folder.stat().st_mode) == 0o2750
    assert leftovers(tmp_path) == []


def test_a_folder_where_a_file_is_to_be_is_one_line_and_stays(tmp_path, way):
    folder = make_old(tmp_path)
    (folder / "curves.csv").unlink(missing_ok=True)
    (folder / "curves.csv").mkdir()
    (folder / "curves.csv" / "precious").write_text("a user's")
    before = own_files(folder)
    with pytest.raises(StoreError, match=r"curves\.csv: is a folder"):
        replace_files(folder, NEW, OWNED)
    assert own_files(folder) == before
    assert (folder / "curves.csv" / "precious").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StoreError("PATH: can't be written (full)")])
def test_a_file_that_cannot_be_written_leaves_all_as_it_was(tmp_path, way, error):
    folder = make_old(tmp_path)
    before = own_files(folder)

    def fails(path):
        raise type(error)(str(error).replace("PATH", str(path))) if isinstance(error, StoreError) else error

    with pytest.raises(StoreError) as refused:
        replace_files(folder, {**NEW, "curves.csv": fails}, OWNED)
    assert str(refused.value).startswith(f"{folder / 'curves.csv'}: can't be written")
    assert own_files(folder) == before
    assert leftovers(tmp_path) == []


def test_nobody_elses_hidden_folders_are_taken_for_leftovers(tmp_path):
    folder = make_old(tmp_path)
    digits = "0123456789abcdef"
    theirs = [
        tmp_path / ".board.writing-mine",
        tmp_path / f".other.writing-{digits}",
        tmp_path / f".writing-{digits}",
        folder / ".writing-notes",
        folder / "plots" / f".writing-{digits}",
    ]
    ours = [tmp_path / f".board.writing-{digits}", folder / f".writing-{digits}"]
    for place in (*theirs, *ours):
        place.mkdir()
    replace_files(folder, NEW, OWNED)
    assert [place.exists() for place in (*theirs, *ours)] == [True] * len(theirs) + [False] * len(ours)


def test_a_results_folder_is_made_while_another_run_removes_it(tmp_path):
    found = helper("folders", "exchanged", tmp_path)
    assert found["problems"] == []


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_manifest_has_the_sha256_of_every_table(folders):
    for folder in folders:
        digests = json.loads((folder / "manifest.json").read_text())["sha256"]
        assert digests == {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.csv"))
        }
        assert {f"{name}.csv" for name in TABLES} <= digests.keys()
        assert read_board(folder).manifest["sha256"] == digests


def test_a_table_that_the_new_board_lacks_goes_and_its_own_things_stay(folders, tmp_path):
    board = make_board(whole=True)
    write_board(board, tmp_path / "board")
    (tmp_path / "board" / "published.csv").write_text("mine")
    shown = ("seeds.csv", "shift.csv", "published.csv")
    assert all((tmp_path / "board" / name).exists() for name in shown)
    write_board(read_board(folders[0]), tmp_path / "board")
    assert [(tmp_path / "board" / name).exists() for name in shown] == [False, False, True]


def test_traces_change_with_their_board(folders, tmp_path):
    from bench_core.trace.files import load_trace

    traces = {path.name: load_trace(path) for path in (folders[1] / "traces").iterdir()}
    shutil.copytree(folders[0], tmp_path / "board")
    write_board(read_board(folders[1]), tmp_path / "board", traces)
    for name, trace in traces.items():
        assert load_trace(tmp_path / "board" / "traces" / name).digest == trace.digest


def test_tables_alone_are_not_written_over_a_board(folders, copied, tmp_path, exitbench):
    before = own_files(copied)
    with pytest.raises(UsageError, match="holds a board"):
        write_tables(read_board(folders[1]), copied)
    for source in ("traces", "weights", "scratch"):
        code, out, err = exitbench("reproduce", folders[1], "--from", source, "--tables", copied)
        assert (code, out) == (2, "")
        assert "holds a board" in err
    assert own_files(copied) == before
    write_tables(read_board(folders[1]), tmp_path / "tables", {"differences.csv": "a"}, owned=["differences.csv"])
    write_tables(read_board(folders[0]), tmp_path / "tables", owned=["differences.csv"])
    assert sorted(own_files(tmp_path / "tables")) == sorted(f"{name}.csv" for name in TABLES)


# --- what is read -----------------------------------------------------------------------------------------------------


def edit_figure(path):
    text = path.read_text()
    place = next(i for i, letter in enumerate(text) if letter.isdigit() and i > len(text) // 2)
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def edit_rank(folder):
    """One figure that others contradict."""
    table = pd.read_csv(folder / "summary.csv")
    table.loc[0, "average_rank"] += 1
    table.to_csv(folder / "summary.csv", index=False)


EDITS = {
    "a figure": edit_figure,
    "a space": lambda path: path.write_text(path.read_text() + " "),
    "line ends": lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
    "a row less": lambda path: path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n"),
    "nothing": lambda path: path.write_text(""),
    "no text": lambda path: path.write_bytes(b"\xff\x00" * 100),
    "gone": lambda path: path.unlink(),
    "a link to another's": lambda path: (path.unlink(), path.symlink_to("workloads.csv")),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", ["rows", "training"])
def test_the_first_table_that_differs_is_named(whole, tmp_path, exitbench, name, edit):
    board = Path(shutil.copytree(whole, tmp_path / "board"))
    EDITS[edit](board / f"{name}.csv")
    if name != "training":
        edit_figure(board / "training.csv")  # comes later
    commands = {
        "leaderboard": [board],
        "report": [board, "--output", tmp_path / "out"],
        "compare": [whole, board],
        "reproduce": [board],
    }
    for command, arguments in commands.items():
        code, out, err = exitbench(command, *arguments)
        assert (code, out) == (2, ""), command
        assert len(err.splitlines()) == 1
        assert err.startswith(f"exitbench: results {board}: {name}.csv is ")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A board with every table that there is."""
    from bench_core.board.schema import MEASUREMENT_COLUMNS, RAW_COLUMNS, TRAINING_COLUMNS

    board = make_board(whole=True)
    cells = dict.fromkeys(TRAINING_COLUMNS, 1) | {"workload": "first", "stage": "all", "accuracy": 0.5}
    place = tmp_path_factory.mktemp("whole")
    board = replace(
        board,
        training=pd.DataFrame([cells], columns=list(TRAINING_COLUMNS)),
        measurements=pd.DataFrame(columns=list(MEASUREMENT_COLUMNS)),
        raw=pd.DataFrame(columns=list(RAW_COLUMNS)),
    )
    write_board(board, place)
    return place


@pytest.mark.parametrize("name", [*TABLES, *OPTIONAL_TABLES, *KEPT_TABLES])
def test_every_table_is_compared(whole, tmp_path, name):
    board = Path(shutil.copytree(whole, tmp_path / "board"))
    read_board(board)
    with (board / f"{name}.csv").open("a") as stream:
        stream.write(" ")
    with pytest.raises(UsageError, match=rf"{name}\.csv is not as it was written"):
        read_board(board)


def test_an_edited_board_is_read_where_that_is_asked_for(copied, tmp_path, exitbench):
    (copied / "measurements.csv").write_text("")
    assert exitbench("leaderboard", copied).code == 2
    answer = exitbench("leaderboard", copied, "--unverified")
    assert answer.code == 0
    assert "measurements.csv: not readable" in answer.err
    for command in (["report", copied, "--format", "md", "--output", tmp_path / "out"], ["compare", copied, copied]):
        assert exitbench(*command).code == 2
        assert exitbench(*command, "--unverified").code == 0
    code, _, err = exitbench("reproduce", copied)
    assert code == 2
    assert "measurements.csv is no table of this board" in err
    assert "measurements.csv is no" not in exitbench("reproduce", copied, "--unverified").err


def test_unverified_still_refuses_what_contradicts_itself(copied, exitbench):
    edit_rank(copied)
    code, _, err = exitbench("leaderboard", copied, "--unverified")
    assert code == 2
    assert "summary.csv" in err


MANIFESTS = {
    "none": (lambda manifest: manifest.pop("sha256"), "holds no sha256"),
    "a list": (lambda manifest: manifest.update(sha256=[]), "holds no sha256"),
    "one less": (lambda manifest: manifest["sha256"].pop("rows.csv"), "rows.csv is no table of this board"),
    "one more": (lambda manifest: manifest["sha256"].update({"seeds.csv": "0" * 64}), "seeds.csv is missing"),
    "no digest": (lambda manifest: manifest["sha256"].update({"rows.csv": 7}), "rows.csv is not as it was written"),
    "a terminal's": (lambda manifest: manifest["sha256"].update({"rows.csv": "\x1b[2J\n"}), "rows.csv is not as"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_without_digests_is_one_line(copied, exitbench, case):
    change, words = MANIFESTS[case]
    manifest = json.loads((copied / "manifest.json").read_text())
    change(manifest)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = exitbench("leaderboard", copied)
    assert (code, out) == (2, "")
    assert words in err
    assert "--unverified" in err or "is missing" in err
    assert err.rstrip("\n").isprintable()
    assert exitbench("leaderboard", copied, "--unverified").code == 0


def test_published_figures_are_the_users_own(copied, exitbench):
    from bench_core.board.published import PUBLISHED_COLUMNS

    head = ",".join(PUBLISHED_COLUMNS)
    for row in ("A,net,squares,4,90,2,paper,abstract,none", "B,net,squares,4,91,2,paper,abstract,none"):
        (copied / "published.csv").write_text(f"{head}\n{row}\n")
        assert exitbench("leaderboard", copied).code == 0


def test_a_report_beside_its_board_changes_nothing_that_is_compared(copied, exitbench):
    assert exitbench("report", copied, "--format", "md,tex").code == 0
    assert exitbench("leaderboard", copied).code == 0


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["a FIFO", "a folder"])
@pytest.mark.parametrize("name", ["rows.csv", "manifest.json", "training.csv"])
def test_what_is_no_file_is_one_line_and_no_hang(copied, exitbench, make, name):
    (copied / name).unlink(missing_ok=True)
    make(copied / name)
    for more in ([], ["--unverified"]):
        code, _, err = exitbench("leaderboard", copied, *more)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert "not readable" in err


@pytest.mark.parametrize("name", ["measurements", "training"])
def test_a_run_keeps_measurements_that_were_edited_and_says_so(whole, tmp_path, capfd, name):
    board = Path(shutil.copytree(whole, tmp_path / "board"))
    assert read_kept(board, name) is not None
    assert capfd.readouterr().err == ""
    with (board / f"{name}.csv").open("a") as stream:
        stream.write("\n")
    assert read_kept(board, name) is not None
    assert f"{name}.csv: not as it was written; kept as it is" in capfd.readouterr().err


def test_what_counts_while_a_board_is_moved_in(folders, tmp_path):
    """As a process leaves it that is killed where folders can't change places."""
    board = Path(shutil.copytree(folders[0], tmp_path / "board"))
    shutil.copytree(folders[1], board / PENDING)
    pd.testing.assert_frame_equal(read_board(board).rows, read_board(folders[1]).rows)
    name = next((folders[1] / "traces").iterdir()).name
    assert place_of(board, f"traces/{name}") == board / PENDING / "traces" / name
    make_folder(board)
    write_board(read_board(folders[0]), board)
    pd.testing.assert_frame_equal(read_board(board).rows, read_board(folders[0]).rows)
    assert leftovers(board) == []


def test_a_board_of_an_earlier_version_is_sealed(copied):
    before = own_files(copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["sha256"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="holds no sha256"):
        read_board(copied)
    seal(copied)
    assert own_files(copied) == before
    edit_rank(copied)
    with pytest.raises(UsageError, match=r"summary\.csv"):
        seal(copied)


@pytest.mark.parametrize("name", ["quick", "shift", "cifar10"])
def test_committed_boards_are_as_they_were_written(name):
    read_board(ROOT / "results" / name)
    attributes = (ROOT / ".gitattributes").read_text()
    assert "results/** -text" in attributes


def test_old_is_old():
    assert OLD["rows.csv"] != "new rows"

"""A process that replaces files and boards in forked children, kills them at chosen moments, and looks at what is left.

    python -m tests.helpers.board_kills steps|boards|reading|turns|folders exchanged|inside PLACE [BOARD BOARD]

What it found is printed as JSON. ``inside`` is how a folder is replaced where it can't be exchanged.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from bench_core.errors import ExitBenchError
from bench_core.util import whole_folder
from bench_core.util.whole_folder import place_of, replace_files

OWNED = ("rows.csv", "curves.csv", "seeds.csv", "traces/a.safetensors")
OLD = {"rows.csv": "old rows", "seeds.csv": "old seeds", "traces/a.safetensors": "old trace"}
_NEW_TEXTS = {"rows.csv": "new rows", "curves.csv": "new curves", "traces/a.safetensors": "new trace"}
NEW = {name: partial(Path.write_text, data=text) for name, text in _NEW_TEXTS.items()}
OTHERS = ("published.csv", "traces/b.safetensors", "plots", "plots/deep/a.svg", "link", "pipe", "empty", "private")
EVENTS = ("open", "os.", "shutil.", "ctypes.dlsym")
FAILURES = {"exchanged": None, "inside": OSError("no such step here")}


def said_by(error):
    """A function that fails."""

    def fails(*_arguments):
        raise error

    return fails


def make_old(place):
    """A folder with its own files and other people's, below ``place``."""
    folder = place / "board"
    (folder / "plots" / "deep").mkdir(parents=True)
    (folder / "traces").mkdir()
    (folder / "empty").mkdir(mode=0o700)
    for name, text in OLD.items():
        (folder / name).write_text(text)
    for name in ("published.csv", "traces/b.safetensors", "plots/deep/a.svg", "private"):
        (folder / name).write_text("a user's")
    (folder / "private").chmod(0o600)
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    return folder


def in_child(work, die_at=None):
    """Do it in a child that is killed before the step with this number; the signal, or 0 where it came to its end."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if die_at is not None:
                die_at_step(die_at)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"failed, to be killed at {die_at}"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die_at_step(number):
    """Kill this process before the file system is looked at or changed for the ``number``-th time."""
    seen = 0

    def count(event, _arguments):
        nonlocal seen
        if event.startswith(EVENTS):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def count_steps(work):
    """How many such steps there are."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        seen = 0

        def count(event, _arguments):
            nonlocal seen
            seen += event.startswith(EVENTS)

        sys.addaudithook(count)
        work()
        os.write(writing, str(seen).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reading, 20))


def texts(folder, at):
    """What the folder's own files hold, looked for by ``at``."""
    found = {}
    for name in OWNED:
        with suppress(FileNotFoundError):
            found[name] = at(folder, name).read_text()
    return {json.dumps(OLD, sort_keys=True): "old", json.dumps(_NEW_TEXTS, sort_keys=True): "new"}.get(
        json.dumps(found, sort_keys=True), f"a mixture: {found}"
    )


def left_in(place):
    """What no process may leave behind."""
    return [str(path) for path in place.rglob("*") if ".writing" in path.name or path.name == whole_folder.PENDING]


def where_they_count(folder, name):
    """As the files of a board are read: all from one place."""
    return place_of(folder) / name


def steps(place):
    """One kill before each step; what is there then, and what is wrong after the next replacement."""
    first = make_old(place / "first")
    found = []
    for number in range(1, count_steps(partial(replace_files, first, NEW, OWNED)) + 1):
        folder = make_old(place / f"{number}")
        killed = in_child(partial(replace_files, folder, NEW, OWNED), die_at=number)
        seen, plain = texts(folder, where_they_count), texts(folder, Path.joinpath)
        lost = [name for name in OTHERS if not os.path.lexists(folder / name)]
        replace_files(folder, NEW, OWNED)
        problems = [f"{name} is lost" for name in lost]
        problems += [f"{name} is lost later" for name in OTHERS if not os.path.lexists(folder / name)]
        problems += [
            str(path) for path in folder.parent.rglob("*") if ".writing" in path.name or path.name == ".pending"
        ]
        problems += [] if texts(folder, Path.joinpath) == "new" else ["not replaced afterwards"]
        problems += [] if killed == signal.SIGKILL else [f"ended by {killed}"]
        found.append({"seen": seen, "plain": plain, "problems": problems})
        shutil.rmtree(folder.parent)
    return found


def boards(way, place, one, other):
    """Thirty kills while one board replaces the other, at steps drawn by lot."""
    from bench_core.board.board import read_board
    from bench_core.trace.files import load_trace
    from tests.helpers.boards import write_board

    names = {"one": one, "other": other}
    known = {name: read_board(folder) for name, folder in names.items()}
    traces = {
        name: {path.name: load_trace(path) for path in (folder / "traces").iterdir()} for name, folder in names.items()
    }
    shutil.copytree(one, place / "board")
    (place / "board" / "mine.txt").write_text("mine")
    write = {name: partial(write_board, known[name], place / "board", traces[name]) for name in names}
    write["other"]()  # imports what is needed
    write["one"]()
    total, rng = count_steps(write["other"]), random.Random(17)
    seen, problems, kills, here = [], [], 0, "one"
    while kills < 30:
        wanted = {"one": "other", "other": "one"}[here]
        moment = rng.randint(1, total) if kills % 2 else rng.randint(total // 2, total)
        kills += in_child(write[wanted], die_at=moment) == signal.SIGKILL
        found = read_board(place / "board")
        here = next((n for n, b in known.items() if found.rows.equals(b.rows) and found.curves.equals(b.curves)), None)
        if here is None:
            problems.append(f"killed at {moment}: neither board")
            break
        seen.append(here)
        for name, trace in traces[here].items():
            if load_trace(place_of(place / "board", f"traces/{name}")).digest != trace.digest:
                problems.append(f"killed at {moment}: {name} is of another board")
        if way == "exchanged":
            digests = json.loads((place / "board" / "manifest.json").read_text())["sha256"]
            plain = {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (place / "board").glob("*.csv")
            }
            if plain != digests:
                problems.append(f"killed at {moment}: plain files of two boards")
    write[here]()
    problems += left_in(place)
    problems += [] if (place / "board" / "mine.txt").exists() else ["mine.txt is lost"]
    return {"kills": kills, "problems": problems, "seen": seen, "steps": total}


def reading(place, one, other):
    """Boards are read while a child replaces them."""
    from bench_core.board.board import read_board
    from tests.helpers.boards import write_board

    known = {name: read_board(folder) for name, folder in (("one", one), ("other", other))}
    shutil.copytree(one, place / "board")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            for number in range(8):
                write_board(known[("other", "one")[number % 2]], place / "board")
                os.write(write, b".")
            code = 0
        finally:
            os._exit(code)
    os.set_blocking(read, False)
    seen, problems, replaced, ended = [], [], 0, 0
    while not ended:
        time.sleep(0.01)
        ended = os.waitpid(child, os.WNOHANG)[0]
        try:
            found = read_board(place / "board")
        except ExitBenchError as error:
            problems.append(str(error))
            continue
        names = [
            name
            for name, board in known.items()
            if all(table.equals(board.tables[key]) for key, table in found.tables.items())
        ]
        seen += names
        problems += [] if names else ["neither board"]
    with suppress(BlockingIOError):
        replaced = len(os.read(read, 1000))
    return {"seen": seen, "problems": problems, "replaced": replaced}


def turns(place):
    """Three processes replace the same folder many times, each with files of its own; then the old ones once more."""
    folder = make_old(place)
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            code = 1
            try:
                for _ in range(10):
                    both = {name: partial(Path.write_text, data=str(number)) for name in ("rows.csv", "curves.csv")}
                    replace_files(folder, both, OWNED)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert (folder / "rows.csv").read_text() == (folder / "curves.csv").read_text()
    replace_files(folder, {name: partial(Path.write_text, data=text) for name, text in OLD.items()}, OWNED)
    left = left_in(place) + [name for name in OTHERS if not os.path.lexists(folder / name)]
    return {"codes": codes, "seen": [texts(folder, Path.joinpath)], "left": left}


def folders(place):
    """A folder is made and filled while another process removes it whenever it is empty."""
    from bench_core.board.board import make_folder

    parent = os.getpid()
    child = os.fork()
    if not child:
        while os.getppid() == parent:
            for path in (place / "results" / "board", place / "results"):
                with suppress(OSError):
                    path.rmdir()
        os._exit(1)
    problems = []
    try:
        for _ in range(40):
            try:
                make_folder(place / "results" / "board")
                replace_files(place / "results" / "board", NEW, OWNED)
            except ExitBenchError as error:
                problems.append(str(error))
            shutil.rmtree(place / "results", ignore_errors=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"problems": problems[:5]}


def main():
    what, way, place = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    given = [Path(name) for name in sys.argv[4:]]
    os.fsync = lambda handle: None  # nobody cuts the power, and a busy disk takes its time
    if FAILURES[way] is not None:
        whole_folder._exchange = said_by(FAILURES[way])
    if what in ("boards", "reading"):
        from bench_core.report import markdown

        markdown.markdown = lambda board: "As a person reads it.\n"  # takes most of the time
    work = {
        "steps": partial(steps, place),
        "boards": partial(boards, way, place, *given),
        "reading": partial(reading, place, *given),
        "turns": partial(turns, place),
        "folders": partial(folders, place),
    }
    print(json.dumps(work[what]()))


if __name__ == "__main__":
    main()

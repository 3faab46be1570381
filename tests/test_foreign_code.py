"""A plugin can fail, but never falsify: whatever it does, the rows of others and the process stay as they are."""

import subprocess

import pandas as pd
import pytest

from tests.helpers.misbehaving import CASES, CRASHES, write_misbehaving
from tests.helpers.processes import environment, run_command
from tests.helpers.suites import trained_store, write_suite

SOUND = [{"name": name} for name in ("fixed", "stability", "seenn-i", "dt-snn", "dynamic-confidence")]
LIMIT = 0.04  # minutes
OF_ALL = {"rank", "wins", "losses", "ties"}  # depend on who takes part


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("misbehaving")
    trained_store(tmp_path_factory, folder / "store")
    return folder


def run(folder, name, strategies, *options, code):
    """Run the tiny suite in a process of its own: rows and curves of the sound strategies, and what was said."""
    suite = write_suite(folder / f"{name}.toml", strategies=strategies)
    done = subprocess.run(
        run_command(suite, "--output", folder / name, *options),
        env=environment(folder / "store"),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == code, done.stderr
    return done


def of_the_sound(folder, name):
    """The rows and curve points of the sound strategies, as texts."""
    names = [one["name"] for one in SOUND]
    found = {}
    for table in ("rows", "curves"):
        cells = pd.read_csv(folder / name / f"{table}.csv", dtype=str, keep_default_na=False)
        cells = cells[cells["strategy"].isin(names)]
        found[table] = cells[[column for column in cells.columns if column not in OF_ALL]].to_csv(index=False)
    found["workloads"] = (folder / name / "workloads.csv").read_text()
    return found


@pytest.fixture(scope="module")
def alone(folder):
    """The sound strategies without the others."""
    run(folder, "alone", SOUND, code=0)
    return of_the_sound(folder, "alone")


@pytest.fixture(scope="module")
def together(folder, alone):
    """All of them in one run."""
    plugins = [f"--plugin={path}" for path in write_misbehaving(folder, CASES)]
    strategies = [*({"name": name} for name in CASES), *SOUND]
    return run(folder, "together", strategies, *plugins, "--limit-minutes", LIMIT, code=1)


def test_no_other_row_changes(folder, alone, together):
    assert of_the_sound(folder, "together") == alone


@pytest.mark.parametrize("name", CASES)
def test_a_row_says_what_its_strategy_did(folder, together, name):
    rows = pd.read_csv(folder / "together" / "rows.csv", dtype=str, keep_default_na=False)
    own = rows[rows["strategy"] == name]
    assert len(own) == 2
    for status in own["status"]:
        assert status.startswith((CASES[name].status, "fallback") if CASES[name].status == "ok" else CASES[name].status)
    assert "\n" not in "".join(own["status"])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.said])
def test_who_changed_the_process_is_said_once(together, name):
    who = (f"plugin {name.replace('-', '_')} changed ", f"direct, {name} changed ")
    lines = [line for line in together.stderr.splitlines() if line.startswith(who) and CASES[name].said in line]
    assert len(lines) == 1, together.stderr


def test_stdout_holds_the_board_alone(together):
    assert together.stdout.startswith("direct, iso-accuracy:1")
    assert "while scoring" not in together.stdout
    assert "at import" in together.stderr


def test_nothing_wrong_is_kept(folder, alone, together):
    run(folder, "afterwards", SOUND, code=0)
    assert of_the_sound(folder, "afterwards") == alone


# --- the same on workers ---------------------------------------------------------------------------------------------

ON_WORKERS = {
    name: CASES[name]
    for name in (
        *("writes-logits", "writes-with-numpy", "sets-dtype", "sets-precision", "turns-mkldnn-off", "exits"),
        *("exits-at-once", "interrupts", "raises-its-own", "forks", "prints", "changes-directory", "draws"),
    )
} | {"crashes": CRASHES}


@pytest.fixture(scope="module")
def on_workers(folder, alone):
    """Some of them, and one that takes its worker along, spread over two workers."""
    place = folder / "on-workers"
    place.mkdir()
    plugins = [f"--plugin={path}" for path in write_misbehaving(place, ON_WORKERS)]
    strategies = [*({"name": name} for name in ON_WORKERS), *SOUND]
    return run(folder, "workers", strategies, *plugins, "--jobs", 2, code=1)


def test_no_other_row_changes_with_workers(folder, alone, on_workers):
    assert of_the_sound(folder, "workers") == alone


@pytest.mark.parametrize("name", ON_WORKERS)
def test_a_row_says_with_workers_what_its_strategy_did(folder, on_workers, name):
    rows = pd.read_csv(folder / "workers" / "rows.csv", dtype=str, keep_default_na=False)
    for status in rows[rows["strategy"] == name]["status"]:
        assert status.startswith(ON_WORKERS[name].status), status

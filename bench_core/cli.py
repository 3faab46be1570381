"""The command line: parse, call, print. Heavy imports happen inside the commands, so ``--help`` answers at once."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bench_core import __version__
from bench_core.errors import ExitBenchError, UsageError

__all__ = ["main"]

INTERRUPTED = 130

app = typer.Typer(
    name="exitbench",
    help="Compare dynamic-exit methods for spiking neural networks on the same traces.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Data sets: what is there, and what to put where.", no_args_is_help=True)
app.add_typer(data_app, name="data")

PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", help="A plugin in a single file; may be repeated.")]
SuiteName = Annotated[str, typer.Argument(help="A shipped suite's name, or a .toml file.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Only this workload or strategy; may be repeated, or commas.")
]


class Listing(StrEnum):
    """What ``exitbench list`` can list."""

    STRATEGIES = "strategies"
    MODELS = "models"
    DATASETS = "datasets"
    CONVERTERS = "converters"
    REGULARIZERS = "regularizers"
    COST_MODELS = "cost-models"
    SUITES = "suites"
    PLUGINS = "plugins"


def main() -> None:
    """Run the command line; errors a user can cause are one line and exit code 2, Ctrl-C is 130."""
    # Threads that spin for long make small operations many times slower on a machine that does other work too.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        sys.exit(_exit_code())
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read our output has gone; the interpreter's last flush must not complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code() -> int:
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except ExitBenchError as error:
        print(f"exitbench: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a click usage error: a defect, shown whole
            raise
        if message := " ".join(error.format_message().split()):  # empty where the help was shown instead
            print(f"exitbench: {message}", file=sys.stderr)
        return 2
    if code == INTERRUPTED:
        print("stopped; what is finished is kept, the same command continues", file=sys.stderr)
    return int(code or 0)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"exitbench {__version__}")
        raise typer.Exit


@app.command()
def run(
    suite: SuiteName = "quick",
    plugin: PluginFiles = None,
    only: Only = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the results; default exitbench-results/SUITE.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure wall clock again.")] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Train policy networks again.")] = False,
    traces: Annotated[bool, typer.Option("--traces", help="Copy the traces into the results.")] = False,
) -> None:
    """The main job: train, convert and record what is missing, then replay and write the leaderboard."""
    from bench_core.execution import plan, run_suite
    from bench_core.report.terminal import terminal
    from bench_core.store import Store, default_root

    registry = _registry(plugin)
    chosen = _suite(suite, only)
    place = output or Path("exitbench-results") / chosen.name
    _refuse_file(place)
    store = Store(default_root())
    if dry_run:
        planned = plan(chosen, registry)
        for workload in planned.workloads:
            trained = store.get("networks", workload.training_key) is not None
            print(f"{workload.spec.name}: {'record with trained weights' if trained else 'train, then record'}")
        print(f"replay: {', '.join(entrant.label for entrant in planned.competitors)}")
        print(f"results: {place}")
        return
    board = run_suite(
        chosen,
        registry=registry,
        output=place,
        store=store,
        refit=refit,
        remeasure=remeasure,
        export_traces=traces,
        command=f"exitbench run {suite}",
    )
    print(terminal(board, _shown(chosen.operating_points)))
    print(f"All operating points: {place}/leaderboard.md; figures: {place}/rows.csv")
    if board.failures:
        print(f"exitbench: {board.failures} rows failed; their status says why", file=sys.stderr)
    if board.failures or registry.problems:
        raise typer.Exit(1)


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], plugin: PluginFiles = None) -> None:
    """What is installed: strategies with their knobs, models, data sets, plugins with versions."""
    from tabulate import tabulate

    if what is Listing.SUITES:
        from bench_core.suite import SHIPPED, load_suite

        suites = [load_suite(path.stem) for path in sorted(SHIPPED.glob("*.toml"))]
        print(tabulate([[s.name, len(s.workloads), s.title] for s in suites], ["suite", "workloads", "title"]))
        return
    registry = _registry(plugin)
    if what is Listing.PLUGINS:
        rows = [[p.name, p.distribution, p.version, p.problem or ", ".join(p.provides)] for p in registry.plugins]
        print(tabulate(rows, ["plugin", "distribution", "version", "provides"], maxcolwidths=[None, None, None, 70]))
        if registry.problems:
            raise typer.Exit(1)
        return
    found: dict[str, Any] = getattr(registry, what.value.replace("-", "_"))
    rows = [[name, _knobs(item), getattr(item, "reference", "")] for name, item in found.items()]
    print(tabulate(rows, [what.value, "knobs", "reference"], maxcolwidths=[None, 48, 36]))


@data_app.command("list")
def data_list() -> None:
    """The data sets, their licences, and whether each split can be read here."""
    from tabulate import tabulate

    from bench_core.data import SPLITS

    rows = []
    for dataset in _registry(None).datasets.values():
        for name in SPLITS:
            try:
                split = dataset.split(name)
                rows.append([dataset.name, name, len(split), split.digest[:16], dataset.licence])
            except ExitBenchError as error:
                rows.append([dataset.name, name, "missing", str(error), dataset.licence])
    print(
        tabulate(rows, ["data set", "split", "samples", "sha256", "licence"], maxcolwidths=[None, None, None, 60, None])
    )


@app.command()
def train(
    workload: Annotated[str, typer.Argument(help="A workload of the suite.")],
    suite: Annotated[str, typer.Option(help="A shipped suite's name, or a .toml file.")] = "quick",
    plugin: PluginFiles = None,
    output: Annotated[Path | None, typer.Option(help="Also copy the checkpoint to this .safetensors file.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Train even where trained weights are at hand.")] = False,
) -> None:
    """Train one network of a suite; a stopped training goes on where it was."""
    from bench_core.stages import trained_weights
    from bench_core.store import Store, default_root

    found = _workload(suite, workload, _registry(plugin))
    artifact = trained_weights(found, Store(default_root()), retrain=again)
    if output is not None:
        from bench_core.store import copy_artifact

        copy_artifact(artifact, output)
    from bench_core.report.terminal import loss_curve

    print(loss_curve(artifact.metadata["history"]))
    print(f"{workload}: weights sha256 {artifact.digest}")


@app.command()
def record(
    workload: Annotated[str, typer.Argument(help="A workload of the suite.")],
    split: Annotated[str, typer.Option(help="train, calibration or test.")] = "test",
    dropout: Annotated[float, typer.Option(help="Drop outputs of spiking layers with this probability.")] = 0.0,
    suite: Annotated[str, typer.Option(help="A shipped suite's name, or a .toml file.")] = "quick",
    plugin: PluginFiles = None,
    output: Annotated[
        Path | None, typer.Option(help="Trace file to write; default WORKLOAD-SPLIT.safetensors.")
    ] = None,
) -> None:
    """Record the trace of one workload on one split."""
    from bench_core.stages import recorded_trace, trained_weights
    from bench_core.store import Store, default_root
    from bench_core.trace import save_trace

    if split not in ("train", "calibration", "test"):
        raise UsageError(f"--split {split}: it is train, calibration or test")
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout {dropout}: it is in [0, 1)")
    found = _workload(suite, workload, _registry(plugin))
    place = output or Path(f"{workload}-{split}.safetensors")
    _refuse_missing_folder(place)
    store = Store(default_root())
    trace = recorded_trace(found, trained_weights(found, store), split, store, dropout=dropout)
    save_trace(trace, place)
    print(f"{place}: {len(trace)} samples, T = {trace.timesteps}, K = {trace.classes}, sha256 {trace.digest}")


@app.command()
def replay(
    calibration: Annotated[Path, typer.Option(help="Trace that the strategy learns from.")],
    test: Annotated[Path, typer.Option(help="Trace that it is replayed on.")],
    strategy: Annotated[str, typer.Option(help="Name of the strategy; see `exitbench list strategies`.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; may be repeated.")] = None,
    operating_point: Annotated[
        str | None, typer.Option(help="iso-accuracy:POINTS or budget:SHARE; default iso-accuracy:0.")
    ] = None,
    per_sample: Annotated[Path | None, typer.Option(help="csv to write: a row per sample.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="json to write: the scores.")] = None,
    plugin: PluginFiles = None,
) -> None:
    """Replay one strategy on trace files: bring your own logits."""
    from bench_core.offline import replay_files
    from bench_core.store import Store, default_root

    result = replay_files(
        calibration,
        test,
        strategy,
        registry=_registry(plugin),
        settings=_settings(settings),
        operating_point=operating_point,
        store=Store(default_root()),
        per_sample=per_sample,
        json_file=json_file,
    )
    print(result.summary())


@app.command()
def leaderboard(
    results: Annotated[Path, typer.Argument(help="Folder of a board.")] = Path("exitbench-results/quick"),
    operating_point: Annotated[
        list[str] | None, typer.Option(help="Which tables; may be repeated, `all` for every one.")
    ] = None,
) -> None:
    """Print a board that was made before."""
    from bench_core.report.terminal import terminal
    from bench_core.results import read_board

    board = read_board(results)
    offered = list(dict.fromkeys(board.rows["operating_point"]))
    wanted = operating_point or _shown(offered)
    for name in wanted:
        if name not in (*offered, "all"):
            raise UsageError(f"no operating point {name!r} on this board; it has: {', '.join(offered)}, all")
    print(terminal(board, offered if "all" in wanted else wanted))


@app.command()
def reproduce(
    results: Annotated[Path, typer.Argument(help="Folder of a committed board.")],
    source: Annotated[str, typer.Option("--from", help="traces (seconds) or weights (minutes).")] = "traces",
    tables: Annotated[Path | None, typer.Option(help="Folder to keep the recomputed board in.")] = None,
) -> None:
    """Recompute a board and compare; exit code 1 and a list of differences where it drifted."""
    from bench_core.reproduction import reproduce_board

    if source not in ("traces", "weights"):
        raise UsageError(f"--from {source}: it is traces or weights")
    report = reproduce_board(results, _registry(None), from_weights=source == "weights", keep=tables)
    print(report.text)
    if report.drift:
        raise typer.Exit(1)


def _registry(files: list[Path] | None) -> Any:
    from bench_core.plugin_manager import load_registry

    registry = load_registry(files or [])
    for problem in registry.problems:
        print(f"exitbench: {problem}; everything else goes on", file=sys.stderr)
    return registry


def _suite(name: str, only: list[str] | None) -> Any:
    from bench_core.suite import load_suite

    suite = load_suite(name)
    names = [part for text in only or [] for part in text.split(",") if part]
    return suite.only(names) if names else suite


def _workload(suite: str, name: str, registry: Any) -> Any:
    from bench_core.knobs import nearest
    from bench_core.stages import Workload
    from bench_core.suite import load_suite

    specs = {spec.name: spec for spec in load_suite(suite).workloads}
    if name not in specs:
        raise UsageError(f"suite {suite} has no workload {name!r}{nearest(name, specs)}; it has: {', '.join(specs)}")
    return Workload.resolve(specs[name], registry)


def _settings(pairs: list[str] | None) -> dict[str, object]:
    settings: dict[str, object] = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {pair}: write KEY=VALUE")
        if key in settings:
            raise UsageError(f"--set {pair}: {key} is set twice")
        settings[key] = value
    return settings


def _shown(operating_points: list[str]) -> list[str]:
    """The one table per workload that a terminal shows: the middle iso-accuracy, else the first of all."""
    return ["iso-accuracy:0.5"] if "iso-accuracy:0.5" in operating_points else operating_points[:1]


def _knobs(item: Any) -> str:
    family = getattr(item, "family_knob", None)
    knobs = ([family] if family else []) + list(getattr(item, "knobs", ()))
    return ", ".join(
        f"{knob.name} {knob.range_text}" + ("" if knob.default is None else f" = {knob.default}") for knob in knobs
    )


def _refuse_file(folder: Path) -> None:
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"--output {folder}: {place} is a file")


def _refuse_missing_folder(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--output {path}: its folder doesn't exist; make it first")

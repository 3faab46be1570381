"""The command line: parse, call, print. Heavy imports happen inside the commands, so ``--help`` answers at once."""

import json
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
store_app = typer.Typer(help="The store of networks, traces and policies: look, check, share.", no_args_is_help=True)
app.add_typer(store_app, name="store")
plugin_app = typer.Typer(help="Plugins of your own: start one, check one.", no_args_is_help=True)
app.add_typer(plugin_app, name="plugin")

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
        exec("")  # Ctrl-C in code that came from a string, as a dataclass's, would end us by signal 2; this clears that
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
    offline_store: Annotated[
        bool, typer.Option("--offline-store", help="Make nothing: what the store lacks or has damaged ends the run.")
    ] = False,
) -> None:
    """The main job: train, convert and record what is missing, then replay and write the leaderboard."""
    from bench_core.execution import plan, run_suite
    from bench_core.report.terminal import terminal
    from bench_core.store import Store, default_root

    if offline_store and refit:
        raise UsageError("--offline-store makes nothing, --refit makes policies again; leave one out")
    registry = _registry(plugin)
    chosen = _suite(suite, only)
    place = output or Path("exitbench-results") / chosen.name
    _refuse_file(place)
    store = Store(default_root(), offline=offline_store)
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
def data_list(
    name: Annotated[str | None, typer.Argument(help="A data set, for all there is to say about its source.")] = None,
) -> None:
    """The data sets: samples, whether they are here, licences; of one of them its files, digests and mirrors."""
    from tabulate import tabulate

    from bench_core.data.fetching import how_to, state
    from bench_core.data.sources import SOURCES

    if name is not None:
        print(how_to(_source(name)))
        return
    rows: list[list[object]] = []
    for dataset in _registry(None).datasets.values():
        source = SOURCES.get(getattr(dataset, "images", dataset).name)
        samples = source.samples if source and source.samples else ("", "", "")
        where = "its plugin knows" if source is None else state(source)
        if source is not None and source.shipped:
            where = f"{source.shipped}; train {where}"
        rows.append([dataset.name, *samples, where, dataset.licence])
    headers = ["data set", "train", "calibration", "test", "files", "licence"]
    print(tabulate(rows, headers, maxcolwidths=[None] * 5 + [40]))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A data set of `exitbench data list`.")],
    folder: Annotated[Path | None, typer.Option(help="Look here first, for archives or their content.")] = None,
) -> None:
    """Bring a data set into its folder: fetched, continued where it stopped, checked, unpacked."""
    from bench_core.data.fetching import fetch, how_to

    source = _source(name)
    try:
        print(f"{source.name}: {fetch(source, folder)}")
    except ExitBenchError:
        print(how_to(source))
        raise


@data_app.command("verify")
def data_verify(
    name: Annotated[str | None, typer.Argument(help="A data set; default all that are here.")] = None,
) -> None:
    """Compare files with their digests; name what is missing or altered. Exit code 1 if anything is."""
    from bench_core.data.fetching import problems, state, verdict, whereabouts
    from bench_core.data.sources import SOURCES

    wrong = 0
    here = [source for source in SOURCES.values() if state(source).startswith(("here", "incomplete"))]
    for source in [_source(name)] if name else here:
        folder = whereabouts(source)
        found = problems(source, folder)
        for problem in found[:20]:
            print(problem)
        if len(found) > 20:
            print(f"... and {len(found) - 20} more")
        print(verdict(source, folder, found))
        wrong += len(found)
    if wrong:
        print("exitbench: `exitbench data fetch NAME` brings what is missing", file=sys.stderr)
        raise typer.Exit(1)


@store_app.command("list")
def store_list() -> None:
    """The artifacts at hand: kind, key, size, and what each is."""
    from tabulate import tabulate

    from bench_core.inventory import entries
    from bench_core.store import Store, default_root

    store = Store(default_root())
    found = entries(store)
    rows = [[entry.kind, entry.key[:16], entry.size, entry.what] for entry in found]
    if rows:
        print(tabulate(rows, ["kind", "key", "bytes", "what"], disable_numparse=[1]))
    print(f"{len(found)} artifacts, {sum(entry.size for entry in found)} bytes in {store.root}")


@store_app.command("show")
def store_show(key: Annotated[str, typer.Argument(help="Key of an artifact, or how it begins.")]) -> None:
    """What an artifact's header says: tensors, how it was made, digests."""
    import json

    from bench_core.inventory import choose, describe, entries
    from bench_core.store import Store, default_root

    for entry in choose(entries(Store(default_root())), [key]):
        print(json.dumps(describe(entry), indent=1))


@store_app.command("verify")
def store_verify() -> None:
    """Compare every artifact with its digests; exit code 1 where one is damaged or a file is unknown."""
    from bench_core.inventory import verify
    from bench_core.store import Store, default_root

    whole, problems = verify(Store(default_root()))
    for problem in problems:
        print(problem)
    print(f"{whole} artifacts whole, {len(problems)} files damaged or unknown")
    if problems:
        raise typer.Exit(1)


@store_app.command("prune")
def store_prune(
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0, help="Days; artifacts written longer ago go too.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and stop.")] = False,
) -> None:
    """Remove what no longer belongs: what stopped runs left unfinished, and damaged artifacts."""
    from bench_core.inventory import prune
    from bench_core.store import Store, default_root

    removed = prune(Store(default_root()), older_than=older_than, dry_run=dry_run)
    for line in removed:
        print(line)
    print(f"{len(removed)} {'would be removed' if dry_run else 'removed'}")


@store_app.command("export")
def store_export(
    names: Annotated[list[str], typer.Argument(help="Workloads, or keys of single artifacts.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
) -> None:
    """Write a workload's network, traces and policies into one file, for another store."""
    from bench_core.bundles import export_bundle
    from bench_core.inventory import choose, entries, shipped_entries
    from bench_core.store import Store, default_root

    _refuse_missing_folder(output)
    members = export_bundle(choose([*entries(Store(default_root())), *shipped_entries()], names), output)
    for member in members:
        print(f"{member.name}: {member.size} bytes")
    print(f"{output}: {len(members)} artifacts")


@store_app.command("import")
def store_import(bundle: Annotated[Path, typer.Argument(help="A file that `store export` wrote.")]) -> None:
    """Put the artifacts of such a file into the store, once all of it has been checked."""
    from bench_core.bundles import import_bundle
    from bench_core.store import Store, default_root

    store = Store(default_root())
    new = import_bundle(bundle, store)
    for member in new:
        print(f"{member.name}: {member.size} bytes")
    print(f"{len(new)} artifacts are new in {store.root}")


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
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Keep accumulates and spikes of each layer as well.")
    ] = False,
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
    if per_layer and dropout:
        raise UsageError("--per-layer: what is dropped can't be counted; leave out --dropout")
    found = _workload(suite, workload, _registry(plugin))
    place = output or Path(f"{workload}-{split}.safetensors")
    _refuse_missing_folder(place)
    store = Store(default_root())
    trace = recorded_trace(found, trained_weights(found, store), split, store, dropout=dropout, per_layer=per_layer)
    save_trace(trace, place)
    print(f"{place}: {len(trace)} samples, T = {trace.timesteps}, K = {trace.classes}, sha256 {trace.digest}")


@app.command()
def replay(
    calibration: Annotated[Path, typer.Option(help="Trace that the strategy learns from.")],
    test: Annotated[Path, typer.Option(help="Trace that it is replayed on.")],
    strategy: Annotated[str, typer.Option(help="Name of the strategy; see `exitbench list strategies`.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; may be repeated.")] = None,
    operating_point: Annotated[
        str | None, typer.Option(help="iso-accuracy:POINTS, budget:SHARE or risk:POINTS,LEVEL; default iso-accuracy:0.")
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
def verify(
    strategy: Annotated[str, typer.Option(help="Name of the strategy that stops the samples.")],
    workload: Annotated[list[str] | None, typer.Argument(help="Workloads of the suite; default all.")] = None,
    suite: Annotated[str, typer.Option(help="A shipped suite's name, or a .toml file.")] = "quick",
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; may be repeated.")] = None,
    operating_point: Annotated[str | None, typer.Option(help="As in `exitbench replay`.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Test samples, drawn by hash.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Samples under way at once.")] = 64,
    repetitions: Annotated[int, typer.Option(min=0, help="Of the wall clock; 0 leaves it out.")] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="json to write: everything, every single time.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Live runs against replay and trace, and their wall clock; exit code 1 where they contradict each other."""
    from bench_core.provenance import environment
    from bench_core.results import write_text
    from bench_core.store import Store, default_root
    from bench_core.suite import load_suite
    from bench_core.verification import verify

    if json_file is not None:
        _refuse_missing_folder(json_file, "--json")
        if json_file.is_dir():
            raise UsageError(f"--json {json_file}: is a folder; name a file")
    registry, spec = _registry(plugin), load_suite(suite)
    method = registry.find("strategies", strategy)
    found = [_workload(suite, name, registry) for name in workload or [one.name for one in spec.workloads]]
    results = []
    for one in found:
        results.append(
            verify(
                one,
                method,
                store=Store(default_root()),
                settings=_settings(settings),
                operating_point=operating_point,
                samples=samples,
                batch=batch,
                repetitions=repetitions,
                latency=spec.latency,
            )
        )
        print(results[-1].text())
    if json_file is not None:
        content = {"environment": environment(), "workloads": [result.as_json() for result in results]}
        write_text(json_file, json.dumps(content, indent=1) + "\n")
    if wrong := [result.workload for result in results if not result.agrees]:
        print(f"exitbench: live runs and replay disagree: {', '.join(wrong)}", file=sys.stderr)
        raise typer.Exit(1)
    print("live runs and replay agree")


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
def report(
    results: Annotated[Path, typer.Argument(help="Folder of a board.")] = Path("exitbench-results/quick"),
    output: Annotated[Path | None, typer.Option(help="Folder of the report; default the board's own.")] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Which files, with commas: html, tex, svg, png, md.")
    ] = "html,tex,svg,png,md",
    plugin: PluginFiles = None,
) -> None:
    """Write a board as one html page, as LaTeX, plots and markdown."""
    from bench_core.report.checks import refuse_contradictions
    from bench_core.report.writing import check_formats, needs_extras, write_report
    from bench_core.results import read_board

    wanted = check_formats(part.strip() for part in formats.split(",") if part.strip())
    place = output or results
    _refuse_file(place)
    board = read_board(results)
    refuse_contradictions(board, str(results))
    point = _shown(list(dict.fromkeys(board.rows["operating_point"])))[0]
    extras = {}
    if needs_extras(wanted):
        from bench_core.report.extras import read_extras

        registry = _registry(plugin)
        extras = read_extras(results, board, point, registry.strategies, registry.datasets)
    written = write_report(board, extras, place, wanted, point)
    for path in written:
        if path.parent == place:
            print(path)
    if plots := [path for path in written if path.parent != place]:
        print(f"{plots[0].parent}: {len(plots)} plots")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a board.")],
    second: Annotated[Path, typer.Argument(help="Folder of another board of the same suite.")],
) -> None:
    """Two boards of one suite: what changed, row by row, and what is not comparable."""
    from bench_core.report.checks import refuse_contradictions
    from bench_core.report.differences import compare_boards
    from bench_core.results import read_board

    boards = [read_board(folder) for folder in (first, second)]
    for board, folder in zip(boards, (first, second), strict=True):
        refuse_contradictions(board, str(folder))
    print(compare_boards(*boards).text)


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


@plugin_app.command("new")
def plugin_new(
    name: Annotated[str, typer.Argument(help="Of the package and its strategy: lower-case letters, digits, dashes.")],
) -> None:
    """Write ./NAME, an installable package with one exit strategy called NAME, its tests and a README."""
    from bench_core.conformance.scaffold import new_plugin

    place = new_plugin(name, _registry(None), Path())
    print(f"{place}/: a package with the exit strategy {name}; next:")
    print(f"    pip install -e ./{place}\n    exitbench plugin check {name}\n    exitbench run")


@plugin_app.command("check")
def plugin_check(
    plugin: Annotated[str, typer.Argument(metavar="DIST", help="A distribution, a plugin, or a plugin's .py file.")],
) -> None:
    """Run the conformance kit on every exit strategy that a plugin registers; exit code 1 where a check fails."""
    from bench_core.conformance.examination import examine, plugin_file, plugins_of, strategies_of

    file = plugin_file(plugin)
    registry = _registry([file] if file else None)
    plugins = plugins_of(str(file or plugin), registry)
    broken = [found for found in plugins if found.problem]
    strategies = strategies_of(plugins, registry)
    if not strategies and not broken:
        raise UsageError(f"{plugin} registers no exit strategy; the kit checks nothing else")
    passed = total = 0
    for strategy in strategies:
        for verdict in examine(strategy):
            print(verdict, flush=True)
            passed, total = passed + verdict.passed, total + 1
    print(f"{passed} of {total} checks passed")
    if broken or passed < total:
        raise typer.Exit(1)


def _registry(files: list[Path] | None) -> Any:
    from bench_core.plugin_manager import load_registry

    registry = load_registry(files or [])
    for problem in registry.problems:
        print(f"exitbench: {problem}; everything else goes on", file=sys.stderr)
    return registry


def _source(name: str) -> Any:
    from bench_core.data.sources import SOURCES
    from bench_core.knobs import nearest

    known = name.removesuffix("-simulated-saccades")
    if known not in SOURCES:
        raise UsageError(f"no source of a data set {name!r}{nearest(known, SOURCES)}; there are: {', '.join(SOURCES)}")
    return SOURCES[known]


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


def _refuse_missing_folder(path: Path, flag: str = "--output") -> None:
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{flag} {path}: its folder doesn't exist; make it first")

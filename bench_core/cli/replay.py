"""``exitbench replay`` and ``verify``: one strategy, on traces and live."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench_core.cli.common import (
    PluginFiles,
    SuiteOption,
    app,
    refuse_output,
    registry_of,
    settings_of,
    store_or_none,
    workload_of,
)
from bench_core.errors import UsageError

_PRINTED = Path("-")


@app.command()
def replay(
    calibration: Annotated[Path, typer.Option(help="Calibration trace, which the strategy learns from.")],
    test: Annotated[Path, typer.Option(help="Test trace, which the strategy is replayed on.")],
    strategy: Annotated[str, typer.Option(help="Name of the strategy; see `exitbench list strategies`.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Knob of the strategy as KEY=VALUE; repeatable.")
    ] = None,
    operating_point: Annotated[
        str | None,
        typer.Option(help="iso-accuracy:POINTS, budget:SHARE or risk:POINTS,LEVEL (default: iso-accuracy:0)."),
    ] = None,
    per_sample: Annotated[
        Path | None, typer.Option(help="csv file with a row per sample; - prints it instead of the summary.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="json file with the scores; - prints them instead of the summary.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Replay one strategy on trace files: bring your own logits."""
    from bench_core.workflows.replay_files import replay_files

    if per_sample == json_file == _PRINTED:
        raise UsageError("--json - and --per-sample -: only one of them can be printed; name a file for the other")
    result = replay_files(
        calibration,
        test,
        strategy,
        registry=registry_of(plugin),
        settings=settings_of(settings),
        operating_point=operating_point,
        store=store_or_none(),
        per_sample=_file(per_sample),
        json_file=_file(json_file),
    )
    if per_sample == _PRINTED and result.outcome is None:
        raise UsageError(f"--per-sample -: no policy of {strategy} meets {result.operating_point}")
    if json_file == _PRINTED:
        print(json.dumps(result.as_json(), indent=1))
    elif per_sample == _PRINTED:
        print(result.per_sample().to_csv(index=False), end="")
    else:
        print(result.summary())


def _file(output: Path | None) -> Path | None:
    """Return the file of an output option; None if the output is printed."""
    return None if output == _PRINTED else output


@app.command()
def verify(
    strategy: Annotated[str, typer.Option(help="Name of the strategy that stops the samples.")],
    workload: Annotated[list[str] | None, typer.Argument(help="Workloads of the suite (default: all).")] = None,
    suite: SuiteOption = "quick",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Knob of the strategy as KEY=VALUE; repeatable.")
    ] = None,
    operating_point: Annotated[str | None, typer.Option(help="As in `exitbench replay`.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of test samples, chosen by hash.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Batch size: samples in flight at once.")] = 64,
    repetitions: Annotated[int, typer.Option(min=0, help="Repetitions of the wall-clock measurement; 0 skips it.")] = 5,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", help="json file with everything, every single time included; - prints it instead of the text."
        ),
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Compare live runs with replay and with the trace, and measure them; exit code 1 if they disagree.

    Replaying the logits of a live run must give exactly its exits. The logits must equal the trace's up to rounding,
    which can flip a spike: at most 10 % of the samples may be off by more than 1e-4.
    """
    from bench_core.board.board import write_text
    from bench_core.run.suite import load_suite
    from bench_core.store.local import default_store
    from bench_core.util.environment import environment
    from bench_core.workflows.verify_live import verify

    refuse_output(_file(json_file), "--json", suite=suite, plugin=plugin)
    registry, spec = registry_of(plugin), load_suite(suite)
    method = registry.find("strategies", strategy)
    found = [workload_of(suite, name, registry) for name in workload or [one.name for one in spec.workloads]]
    results = []
    for one in found:
        results.append(
            verify(
                one,
                method,
                store=default_store(),
                settings=settings_of(settings),
                operating_point=operating_point,
                samples=samples,
                batch=batch,
                repetitions=repetitions,
                latency=spec.latency,
            )
        )
        if json_file != _PRINTED:
            print(results[-1].text())
    if json_file is not None:
        content = {"environment": environment(), "workloads": [result.as_json() for result in results]}
        text = json.dumps(content, indent=1) + "\n"
        if json_file == _PRINTED:
            print(text, end="")
        else:
            write_text(json_file, text)
    if wrong := [result.workload for result in results if not result.agrees]:
        print(f"exitbench: live runs and replay disagree: {', '.join(wrong)}", file=sys.stderr)
        raise typer.Exit(1)
    if json_file != _PRINTED:
        print("live runs and replay agree")

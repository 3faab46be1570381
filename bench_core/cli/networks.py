"""``exitbench train`` and ``record``: what happens to a network before any method sees it."""

from pathlib import Path
from typing import Annotated

import typer

from bench_core.cli.common import PluginFiles, SuiteOption, app, refuse_missing_folder, registry_of, workload_of
from bench_core.errors import UsageError


@app.command()
def train(
    workload: Annotated[str, typer.Argument(help="A workload of the suite.")],
    suite: SuiteOption = "quick",
    plugin: PluginFiles = None,
    output: Annotated[Path | None, typer.Option(help="Also copy the checkpoint to this .safetensors file.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Train even where trained weights are at hand.")] = False,
) -> None:
    """Train one network of a suite; a stopped training goes on where it was."""
    from bench_core.stages import trained_weights
    from bench_core.store import Store, default_root

    found = workload_of(suite, workload, registry_of(plugin))
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
    suite: SuiteOption = "quick",
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
    found = workload_of(suite, workload, registry_of(plugin))
    place = output or Path(f"{workload}-{split}.safetensors")
    refuse_missing_folder(place)
    store = Store(default_root())
    trace = recorded_trace(found, trained_weights(found, store), split, store, dropout=dropout, per_layer=per_layer)
    save_trace(trace, place)
    print(f"{place}: {len(trace)} samples, T = {trace.timesteps}, K = {trace.classes}, sha256 {trace.digest}")

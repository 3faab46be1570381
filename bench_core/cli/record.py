"""``exitbench train``, ``convert`` and ``record``: the commands that make networks and traces."""

import math
import sys
import time
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any

import typer

from bench_core.cli.common import (
    DeviceOption,
    PluginFiles,
    SuiteOption,
    app,
    refuse_output,
    registry_of,
    table,
    use_device,
    workload_of,
)
from bench_core.errors import UsageError


@app.command()
def train(
    workload: Annotated[str, typer.Argument(help="A workload of the suite.")],
    suite: SuiteOption = "quick",
    plugin: PluginFiles = None,
    output: Annotated[Path | None, typer.Option(help="Also copy the checkpoint to this .safetensors file.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Train even if trained weights exist.")] = False,
    device: DeviceOption = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Time budget in minutes; stops before an epoch that would exceed it (exit code 3 if training is "
            "unfinished).",
        ),
    ] = None,
) -> None:
    """Train one network of a suite; an interrupted training resumes where it stopped."""
    from bench_core.errors import TrainingPausedError
    from bench_core.run.artifacts import trained_weights
    from bench_core.store.local import default_store

    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    use_device(device)
    found = workload_of(suite, workload, registry_of(plugin))
    refuse_output(output, suite=suite, plugin=plugin)
    try:
        artifact = trained_weights(found, default_store(), retrain=again, until=until)
    except TrainingPausedError as paused:
        print(paused)
        raise typer.Exit(3) from None
    if output is not None:
        from bench_core.store.local import copy_artifact

        copy_artifact(artifact, output)
    from bench_core.report.terminal import loss_curve

    print(loss_curve(artifact.metadata["history"]))
    print(f"{workload}: weights sha256 {artifact.digest}")


@app.command()
def convert(
    workload: Annotated[str, typer.Argument(help="A workload of the suite whose recipe trains an ANN.")],
    suite: SuiteOption = "quick",
    plugin: PluginFiles = None,
    output: Annotated[
        Path | None, typer.Option(help="Also copy the converted network to this .safetensors file.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Convert one trained network of a suite, and show the neurons that replace its activations."""
    from bench_core.run.artifacts import conversion_key, spiking_network, trained_weights
    from bench_core.snn import SpikingNeuron
    from bench_core.store.local import copy_artifact, default_store

    use_device(device)
    found = workload_of(suite, workload, registry_of(plugin))
    if found.converter is None:
        raise UsageError(f"{workload}: is trained as a spiking network, so there is nothing to convert")
    refuse_output(output, suite=suite, plugin=plugin)
    store = default_store()
    weights = trained_weights(found, store)
    key = conversion_key(found, weights)
    if output is not None and key is None:
        raise UsageError(f"--output {output}: what converter {found.converter.name} makes can't be kept as a file")
    network = spiking_network(found, weights, store)
    neurons = {name: layer for name, layer in network.named_modules() if isinstance(layer, SpikingNeuron)}
    rows = [[name, n.threshold, n.initial, n.amplitude, n.reset_mode, n.decay] for name, n in neurons.items()]
    print(table(rows, ["neurons", "threshold", "initial", "amplitude", "reset", "decay"]))
    if output is not None:
        kept = store.get("converted", str(key))
        if kept is None:  # its neurons are of another kind, or the store is offline
            raise UsageError(f"--output {output}: what converter {found.converter.name} makes wasn't kept")
        copy_artifact(kept, output)
    print(f"{workload}: converted by {found.converter.name} from weights sha256 {weights.digest}")


@app.command()
def record(
    workload: Annotated[str | None, typer.Argument(help="A workload of the suite.")] = None,
    split: Annotated[str, typer.Option(help="train, calibration or test.")] = "test",
    dropout: Annotated[float, typer.Option(help="Drop outputs of spiking layers with this probability.")] = 0.0,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also keep accumulates and spikes of each layer.")
    ] = False,
    suite: SuiteOption = "quick",
    plugin: PluginFiles = None,
    output: Annotated[
        Path | None, typer.Option(help="Trace file to write (default: WORKLOAD-SPLIT.safetensors).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A network of your own: package.module:factory, instead of a workload.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="With --model: its weights, safetensors or a state_dict of torch.save.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="With --model: a data set of `exitbench list datasets`.")] = None,
    timesteps: Annotated[int | None, typer.Option(min=1, help="With --model: number of timesteps T.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="With --model: batch size (default: 100).")] = None,
    name: Annotated[
        str | None, typer.Option(help="With --model: name of the workload (default: the factory's name).")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Record the trace of one workload, or of a network of your own, on one split."""
    if split not in ("train", "calibration", "test"):
        raise UsageError(f"--split {split}: it is train, calibration or test")
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout {dropout}: it is in [0, 1)")
    if per_layer and dropout:
        raise UsageError("--per-layer: what is dropped can't be counted; leave out --dropout")
    if (workload is None) == (model is None):
        given = f"both: {workload} and --model {model}" if model else "neither"
        raise UsageError(f"record takes a workload of the suite or --model package.module:factory, not {given}")
    own = {"checkpoint": checkpoint, "dataset": dataset, "timesteps": timesteps, "batch": batch, "name": name}
    if workload is not None:
        use_device(device)
        if extra := [flag for flag, value in own.items() if value is not None]:
            raise UsageError(f"--{extra[0]}: goes with --model; the suite says what workload {workload} is")
        _record_workload(workload, split, dropout, per_layer, suite, plugin, output)
        return
    if missing := [flag for flag in ("checkpoint", "dataset", "timesteps") if own[flag] is None]:
        raise UsageError(f"--model {model}: it needs --{missing[0]} too")
    suites = {"--device": device, "--dropout": dropout, "--per-layer": per_layer, "--suite": suite != "quick"}
    if extra := [flag for flag, value in suites.items() if value]:
        raise UsageError(f"{extra[0]}: goes with a workload of a suite, not with --model")
    assert model is not None and checkpoint is not None and dataset is not None and timesteps is not None
    _record_own(model, checkpoint, dataset, split, timesteps, batch=batch, name=name, plugin=plugin, output=output)


def _record_workload(
    workload: str,
    split: str,
    dropout: float,
    per_layer: bool,
    suite: str,
    plugin: list[Path] | None,
    output: Path | None,
) -> None:
    from bench_core.run.artifacts import recorded_trace, trained_weights
    from bench_core.store.local import default_store
    from bench_core.trace.files import save_trace

    found = workload_of(suite, workload, registry_of(plugin))
    place = output or Path(f"{workload}-{split}.safetensors")
    refuse_output(place, suite=suite, plugin=plugin)
    store = default_store()
    trace = recorded_trace(found, trained_weights(found, store), split, store, dropout=dropout, per_layer=per_layer)
    save_trace(trace, place)
    print(_recorded(place, trace))


def _record_own(
    model: str,
    checkpoint: Path,
    dataset: str,
    split: str,
    timesteps: int,
    *,
    batch: int | None,
    name: str | None,
    plugin: list[Path] | None,
    output: Path | None,
) -> None:
    from bench_core.recording.own_network import record_factory
    from bench_core.recording.record import BATCH
    from bench_core.scoring.metrics import static_accuracy
    from bench_core.trace.files import save_trace

    name = name or model.partition(":")[2]
    place = output or Path(f"{name}-{split}.safetensors")
    refuse_output(place, plugin=plugin, read=[checkpoint, *_module_files(model)])
    data = registry_of(plugin).find("datasets", dataset)
    trace = record_factory(model, checkpoint, data, split, timesteps, name=name, batch=batch or BATCH)
    save_trace(trace, place)
    print(_recorded(place, trace))
    accuracy = [100 * float(share) for share in static_accuracy(trace)]
    print(f"accuracy {accuracy[0]:.2f} % after one timestep, {accuracy[-1]:.2f} % after T = {trace.timesteps}")


def _module_files(model: str) -> Iterator[Path]:
    """Yield the files of ``package.module`` in ``--model``, found without running them."""
    where = [str(Path.cwd()), *sys.path]
    for name in model.partition(":")[0].split("."):
        spec = PathFinder.find_spec(name, where) if name else None
        if spec is None:
            return
        if spec.origin is not None:
            yield Path(spec.origin)
        where = list(spec.submodule_search_locations or ())


def _recorded(place: Path, trace: Any) -> str:
    return f"{place}: {len(trace)} samples, T = {trace.timesteps}, K = {trace.classes}, sha256 {trace.digest}"

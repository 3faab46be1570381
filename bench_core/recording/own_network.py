"""Recording of a user's network on a registered data set: from factory and checkpoint to a trace, without a suite."""

import dataclasses
import functools
import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from bench_core.data import Dataset
from bench_core.errors import UsageError, one_line
from bench_core.isolation.foreign_code import STAGE_MINUTES, foreign_code
from bench_core.knobs import nearest
from bench_core.recording.adapters import SteppedNetwork, what_happened
from bench_core.recording.record import BATCH, Part, Recording, record
from bench_core.trace.trace import Trace
from bench_core.util.digests import file_digest, tensors_digest
from bench_core.util.progress import note

__all__ = ["build_network", "load_weights", "read_checkpoint", "record_factory", "record_network"]

_PARALLEL = "module."  # DataParallel's prefix of every name
_SHOWN = 3
_TRIED = 10  # samples in the trial run
_BATCHES = 10  # per part, the unit of progress


def record_factory(
    reference: str,
    checkpoint: Path,
    dataset: Dataset,
    split: str,
    timesteps: int,
    *,
    name: str | None = None,
    batch: int = BATCH,
) -> Trace:
    """Return the trace of the network that a factory builds and a checkpoint fills (``exitbench record --model``).

    Args:
        reference: ``package.module:factory``; the current folder is searched first.
        checkpoint: a state_dict, as safetensors or written by ``torch.save``. It is read before the module is imported.
        dataset: the data set to record on.
        split: ``train``, ``calibration`` or ``test``.
        timesteps: T.
        name: of the workload; default the factory's.
        batch: samples per step.

    Raises:
        UsageError: the module, factory, checkpoint or network is invalid or fails.
        DataError: the split can't be read.
    """
    tensors = read_checkpoint(checkpoint)
    module = build_network(reference)
    load_weights(module, tensors, f"--checkpoint {checkpoint}")
    return record_network(
        module,
        dataset,
        split,
        timesteps,
        name=name or reference.partition(":")[2],
        batch=batch,
        provenance={"model": reference, "checkpoint": file_digest(checkpoint)},
    )


def record_network(
    module: nn.Module,
    dataset: Dataset,
    split: str,
    timesteps: int,
    *,
    name: str,
    batch: int = BATCH,
    provenance: Mapping[str, str] | None = None,
) -> Trace:
    """Return the trace of a user's module on a split; operations are not counted.

    Args:
        module: follows the protocol of docs/networks.md, or is built from snnTorch's or SpikingJelly's neurons.
        dataset: the data set to record on.
        split: ``train``, ``calibration`` or ``test``.
        timesteps: T.
        name: of the workload.
        batch: samples per step; part of a trace's identity, since rounding may depend on it.
        provenance: further entries of the trace's header.

    Raises:
        UsageError: the module can't be stepped, or does not return finite logits [B, K].
        DataError: the split can't be read.
    """
    with foreign_code(f"network {name}", minutes=STAGE_MINUTES):
        return _recorded(module, dataset, split, timesteps, name, batch, provenance or {})


def _recorded(  # noqa: PLR0917  # the arguments of ``record_network``
    module: nn.Module,
    dataset: Dataset,
    split: str,
    timesteps: int,
    name: str,
    batch: int,
    provenance: Mapping[str, str],
) -> Trace:
    weights = {key: value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    digest = tensors_digest(weights)  # before running, since a module may register its state as well
    network = SteppedNetwork(module, name, classes=dataset.classes, constant_input=dataset.constant_input)
    samples = dataset.split(split)
    _try_out(network, name, dataset.encode(samples.images[: min(batch, _TRIED)], timesteps), timesteps)
    note(f"{name}: operations of a network given by its code are not counted; energies will be n/a")

    def checked(number: int, build: Callable[[], Part]) -> Part:
        part = build()
        logits = part.tensors["logits"]
        if (bad := torch.nonzero(~logits.isfinite())).numel():
            row, t, k = bad[0].tolist()
            sample = int(samples.sample_ids[number * _BATCHES * batch + row])
            raise UsageError(
                f"{name}: logit {k} of timestep {t + 1} is {logits[row, t, k].item()} for sample {sample} of "
                f"{dataset.name} {split}; a trace holds finite numbers"
            )
        return part

    trace = record(
        Recording(network, dataset, samples, timesteps, batch=batch, part=_BATCHES * batch),
        title=f"record {name} {split}",
        header={
            "workload": name,
            "provenance": {
                **provenance,
                "adapter": network.kind,
                "weights": digest,
                "dataset": dataset.name,
                "data": samples.digest,
                "timesteps": timesteps,
            },
        },
        keep_part=checked,
    )
    variant = json.loads(trace.header["variant"])  # the batch may have been halved
    variant |= {"dtype": str(trace.logits.dtype).removeprefix("torch."), "layout": "as encoded"}
    return dataclasses.replace(trace, header={**trace.header, "variant": json.dumps(variant)})


def _try_out(network: SteppedNetwork, name: str, inputs: torch.Tensor, timesteps: int) -> None:
    """Run a few samples twice, so that errors surface before the long run, and warn about suspicious results."""
    with torch.inference_mode():
        first, again = (network.run(inputs, timesteps) for _ in range(2))
    if not torch.equal(first.nan_to_num(), again.nan_to_num()):
        note(f"warning: {name}: the same batch gave other logits after reset(): state is left behind, or it draws lots")
    if timesteps > 1 and bool((first == first[:1]).all()):
        note(f"warning: {name}: the logits are the same at every timestep; does it keep its state between steps?")


# --- the factory -----------------------------------------------------------------------------------------------------


def build_network(reference: str) -> nn.Module:
    """Return the network that ``package.module:factory`` creates when called without arguments.

    The module is found as ``python -m`` would find it: in the current folder first.

    Raises UsageError for an invalid module, factory or result.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"--model {reference}: write package.module:factory")
    here = os.getcwd()  # noqa: PTH109  # in the form that sys.path uses
    if here not in sys.path:
        sys.path.insert(0, here)
    with foreign_code(f"--model {reference}", minutes=STAGE_MINUTES):
        return _built(module_name, attribute, reference)


def _built(module_name: str, attribute: str, reference: str) -> nn.Module:
    module = _imported(module_name, reference)
    try:
        factory: Any = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        offered = [name for name, value in vars(module).items() if callable(value)]
        place = getattr(module, "__file__", None) or module_name
        raise UsageError(f"--model {reference}: {place} has no {attribute!r}{nearest(attribute, offered)}") from None
    network = factory
    if not isinstance(factory, nn.Module):
        try:
            network = factory()
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"--model {reference}: called without arguments, it raised {what_happened(error)}"
            ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"--model {reference}: gave a {type(network).__name__}; a factory returns a torch.nn.Module")
    return network


def _imported(name: str, reference: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            searched = "the current folder and the installed packages were searched"
            raise UsageError(f"--model {reference}: no module named {missing!r}; {searched}") from None
        raise UsageError(f"--model {reference}: it needs {missing!r}, which isn't installed here") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"--model {reference}: importing it raised {what_happened(error)}") from error


# --- the checkpoint --------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a state_dict file, by name.

    The file is safetensors, or was written by ``torch.save`` and is read with ``weights_only=True``: no code in it is
    run. The state_dict may be one entry of a dictionary, as training scripts save it.

    Raises UsageError for anything else.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise UsageError(f"--checkpoint {path}: {error.strerror}") from error
    content = _read_safetensors(path) if start[8:] == b"{" else _read_torch(path)
    return _state_dict(content, path)


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UsageError(one_line(f"--checkpoint {path}: not a whole safetensors file ({error!s:.200})")) from error


def _read_torch(path: Path) -> object:
    try:
        with path.open("rb") as stream, warnings.catch_warnings(action="ignore"):  # the error says the same
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise anything
        text = str(error)
        refused = "could run code, so it was not loaded; save the state_dict() alone"
        if "weights_only" not in text:
            problem = f"neither safetensors nor what torch.save writes, or not whole ({what_happened(error)})"
        elif named := re.search(r"GLOBAL (\S+)", text):
            problem = f"holds {named[1]}, which {refused}"
        else:
            problem = f"can't be read as plain tensors, and what else it holds {refused}"
        raise UsageError(one_line(f"--checkpoint {path}: {problem}")) from error


def _state_dict(content: object, path: Path) -> dict[str, torch.Tensor]:
    if tensors := _tensors(content):
        return tensors
    inner = {key: _tensors(value) for key, value in content.items()} if isinstance(content, Mapping) else {}
    found = {key: tensors for key, tensors in inner.items() if tensors}
    if len(found) != 1:
        what = f"several state_dicts ({', '.join(map(str, found))})" if found else "no state_dict"
        raise UsageError(one_line(f"--checkpoint {path}: holds {what}; save the one of the network alone"))
    return next(iter(found.values()))


def _tensors(content: object) -> dict[str, torch.Tensor]:
    """Return the content if it maps names to tensors and nothing else, or an empty dictionary."""
    if not isinstance(content, Mapping):
        return {}
    named = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    return named if len(named) == len(content) else {}


def load_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Load every weight of a network, and nothing more. Raises UsageError that begins with ``place``."""
    given = dict(tensors)
    if all(name.startswith(_PARALLEL) for name in given) and not any(
        n.startswith(_PARALLEL) for n in module.state_dict()
    ):
        consume_prefix_in_state_dict_if_present(given, _PARALLEL)
    try:
        result = module.load_state_dict(given, strict=False)
    except Exception as error:  # the module may have its own hooks
        said = " ".join(str(error).partition(":\n")[2].split()) or what_happened(error)
        raise UsageError(one_line(f"{place}: doesn't fit the network: {said:.300}")) from error
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}" + (" …" if len(names) > _SHOWN else "")
        for kind, names in (("missing", result.missing_keys), ("unexpected", result.unexpected_keys))
        if names
    ]
    if problems:
        raise UsageError(
            one_line(
                f"{place}: doesn't fit the network: {'; '.join(problems)}; take the factory that it was saved from"
            )
        )

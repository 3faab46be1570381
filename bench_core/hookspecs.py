"""Every hook of ExitBench, in the order of a run.

A plugin is a module (or object) with functions of these names, marked with ``bench_core.hookimpl`` and registered under
the entry-point group ``exitbench``. No hook takes an argument; each is optional and returns a list of objects. Each
plugin is called separately; one that raises, or returns something else, is reported and skipped. Names are unique among
their kind; the first to register keeps the name, built-in plugins first.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from bench_core.conversion import Converter
    from bench_core.costs import CostModel
    from bench_core.data import Dataset
    from bench_core.exits.strategy import ExitStrategy
    from bench_core.snn.models import Model
    from bench_core.training import Regularizer

__all__ = ["PROJECT"]

PROJECT = "exitbench"
hookspec = pluggy.HookspecMarker(PROJECT)

# --- network components ----------------------------------------------------------------------------------------------


@hookspec
def bench_datasets() -> "Iterable[Dataset]":  # type: ignore[empty-body]
    """Return data sets: named splits of samples with labels, ids and digest, and their encoding as network input.

    Returns objects derived from ``bench_core.Dataset``. Called once, when plugins are loaded; files are opened only
    when a split is requested.
    """


@hookspec
def bench_models() -> "Iterable[Model]":  # type: ignore[empty-body]
    """Return models: builders of a spiking network (``reset``, ``step``, ``run``, ``keep``) and of its ANN twin.

    Returns objects derived from ``bench_core.Model``.
    """


@hookspec
def bench_regularizers() -> "Iterable[Regularizer]":  # type: ignore[empty-body]
    """Return regularisers: a loss from per-layer records, logits and labels, added to the task's loss in training.

    Returns objects derived from ``bench_core.Regularizer``.
    """


@hookspec
def bench_converters() -> "Iterable[Converter]":  # type: ignore[empty-body]
    """Return converters: the activation to train an ANN with, and the conversion of the ANN to a spiking network.

    Returns objects derived from ``bench_core.Converter``.
    """


# --- methods to compare ----------------------------------------------------------------------------------------------


@hookspec
def bench_exit_strategies() -> "Iterable[ExitStrategy]":  # type: ignore[empty-body]
    """Return exit strategies: the methods that decide when to stop.

    Returns objects derived from ``bench_core.ScoreStrategy`` (a score and one threshold: the common case) or
    ``bench_core.ExitStrategy``.
    """


# --- costs -----------------------------------------------------------------------------------------------------------


@hookspec
def bench_cost_models() -> "Iterable[CostModel]":  # type: ignore[empty-body]
    """Return cost models: operation counts to energy and latency, with units (default latency: the exit timestep).

    Returns objects derived from ``bench_core.CostModel``.
    """

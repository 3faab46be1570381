"""ExitBench: dynamic-exit methods for spiking neural networks, compared on the same traces.

The public names. They are imported when first used, so that ``exitbench --help`` answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bench_core.markers import hookimpl
from bench_core.util.version import __version__

if TYPE_CHECKING:
    from bench_core.conversion import Converter as Converter
    from bench_core.conversion import replace_activations as replace_activations
    from bench_core.costs import CostModel as CostModel
    from bench_core.costs import OperationCounts as OperationCounts
    from bench_core.costs import Operations as Operations
    from bench_core.costs import Overhead as Overhead
    from bench_core.data import Dataset as Dataset
    from bench_core.data import ImageSplit as ImageSplit
    from bench_core.errors import ExitBenchError as ExitBenchError
    from bench_core.errors import PluginError as PluginError
    from bench_core.errors import UsageError as UsageError
    from bench_core.exits.evidence import Evidence as Evidence
    from bench_core.exits.evidence import Readout as Readout
    from bench_core.exits.strategy import Calibration as Calibration
    from bench_core.exits.strategy import ExitPolicy as ExitPolicy
    from bench_core.exits.strategy import ExitStrategy as ExitStrategy
    from bench_core.exits.strategy import ListedPolicies as ListedPolicies
    from bench_core.exits.strategy import Observation as Observation
    from bench_core.exits.strategy import PolicyFamily as PolicyFamily
    from bench_core.exits.strategy import Requirement as Requirement
    from bench_core.exits.strategy import ScoreFamily as ScoreFamily
    from bench_core.exits.strategy import ScoreStrategy as ScoreStrategy
    from bench_core.exits.strategy import State as State
    from bench_core.knobs import Knob as Knob
    from bench_core.knobs import KnobValue as KnobValue
    from bench_core.plugins import load_registry as load_registry
    from bench_core.replay.controller import replay_policy as replay_policy
    from bench_core.run.run import run_suite as run_suite
    from bench_core.run.suite import load_suite as load_suite
    from bench_core.snn import AnalogNetwork as AnalogNetwork
    from bench_core.snn import SpikingNetwork as SpikingNetwork
    from bench_core.snn import SpikingNeuron as SpikingNeuron
    from bench_core.snn import Synapse as Synapse
    from bench_core.snn import if_neuron as if_neuron
    from bench_core.snn import lif_neuron as lif_neuron
    from bench_core.snn.models import Model as Model
    from bench_core.snn.models import Parts as Parts
    from bench_core.trace.files import load_trace as load_trace
    from bench_core.trace.files import save_trace as save_trace
    from bench_core.trace.files import save_trace_shards as save_trace_shards
    from bench_core.trace.trace import Trace as Trace
    from bench_core.training import LayerRecord as LayerRecord
    from bench_core.training import Regularizer as Regularizer
    from bench_core.training import TrainingBatch as TrainingBatch
    from bench_core.util.arrays import Array as Array
    from bench_core.util.arrays import FloatArray as FloatArray
    from bench_core.util.portable_math import exact_sum as exact_sum
    from bench_core.util.portable_math import exponential as exponential
    from bench_core.util.portable_math import logarithm as logarithm
    from bench_core.util.portable_math import row_sums as row_sums
    from bench_core.util.sample_rows import samples_in_cache as samples_in_cache

FOR_AUTHORS = {  # of plugins
    "AnalogNetwork": "snn",
    "Array": "util.arrays",
    "Calibration": "exits.strategy",
    "Converter": "conversion",
    "CostModel": "costs",
    "Dataset": "data",
    "Evidence": "exits.evidence",
    "ExitPolicy": "exits.strategy",
    "ExitStrategy": "exits.strategy",
    "FloatArray": "util.arrays",
    "ImageSplit": "data",
    "Knob": "knobs",
    "KnobValue": "knobs",
    "LayerRecord": "training",
    "ListedPolicies": "exits.strategy",
    "Model": "snn.models",
    "Observation": "exits.strategy",
    "OperationCounts": "costs",
    "Operations": "costs",
    "Overhead": "costs",
    "Parts": "snn.models",
    "PluginError": "errors",
    "PolicyFamily": "exits.strategy",
    "Readout": "exits.evidence",
    "Regularizer": "training",
    "Requirement": "exits.strategy",
    "ScoreFamily": "exits.strategy",
    "ScoreStrategy": "exits.strategy",
    "SpikingNetwork": "snn",
    "SpikingNeuron": "snn",
    "State": "exits.strategy",
    "Synapse": "snn",
    "TrainingBatch": "training",
    "UsageError": "errors",
    "exact_sum": "util.portable_math",
    "exponential": "util.portable_math",
    "if_neuron": "snn",
    "lif_neuron": "snn",
    "logarithm": "util.portable_math",
    "replace_activations": "conversion",
    "row_sums": "util.portable_math",
    "samples_in_cache": "util.sample_rows",
}
FOR_USERS = {  # of traces, suites and boards
    "ExitBenchError": "errors",
    "Trace": "trace.trace",
    "load_registry": "plugins",
    "load_suite": "run.suite",
    "load_trace": "trace.files",
    "replay_policy": "replay.controller",
    "run_suite": "run.run",
    "save_trace": "trace.files",
    "save_trace_shards": "trace.files",
}
_HOMES = {**FOR_AUTHORS, **FOR_USERS}

__all__ = ["__version__", "hookimpl", *_HOMES]  # noqa: PLE0604  # strings, all of them


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bench_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bench_core.{_HOMES[name]}"), name)

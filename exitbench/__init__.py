"""ExitBench under the name that it is installed by: ``import exitbench`` gives the public names of ``bench_core``."""

from typing import TYPE_CHECKING, Any

import bench_core

if TYPE_CHECKING:
    from bench_core import AnalogNetwork as AnalogNetwork
    from bench_core import Array as Array
    from bench_core import Calibration as Calibration
    from bench_core import Converter as Converter
    from bench_core import CostModel as CostModel
    from bench_core import Dataset as Dataset
    from bench_core import Evidence as Evidence
    from bench_core import ExitBenchError as ExitBenchError
    from bench_core import ExitPolicy as ExitPolicy
    from bench_core import ExitStrategy as ExitStrategy
    from bench_core import FloatArray as FloatArray
    from bench_core import ImageSplit as ImageSplit
    from bench_core import Knob as Knob
    from bench_core import KnobValue as KnobValue
    from bench_core import LayerRecord as LayerRecord
    from bench_core import ListedPolicies as ListedPolicies
    from bench_core import Model as Model
    from bench_core import Observation as Observation
    from bench_core import OperationCounts as OperationCounts
    from bench_core import Operations as Operations
    from bench_core import Overhead as Overhead
    from bench_core import Parts as Parts
    from bench_core import PluginError as PluginError
    from bench_core import PolicyFamily as PolicyFamily
    from bench_core import Readout as Readout
    from bench_core import Regularizer as Regularizer
    from bench_core import Requirement as Requirement
    from bench_core import ScoreFamily as ScoreFamily
    from bench_core import ScoreStrategy as ScoreStrategy
    from bench_core import SpikingNetwork as SpikingNetwork
    from bench_core import SpikingNeuron as SpikingNeuron
    from bench_core import State as State
    from bench_core import Synapse as Synapse
    from bench_core import Trace as Trace
    from bench_core import TrainingBatch as TrainingBatch
    from bench_core import UsageError as UsageError
    from bench_core import __version__ as __version__
    from bench_core import exact_sum as exact_sum
    from bench_core import exponential as exponential
    from bench_core import hookimpl as hookimpl
    from bench_core import if_neuron as if_neuron
    from bench_core import lif_neuron as lif_neuron
    from bench_core import load_registry as load_registry
    from bench_core import load_suite as load_suite
    from bench_core import load_trace as load_trace
    from bench_core import logarithm as logarithm
    from bench_core import replace_activations as replace_activations
    from bench_core import replay_policy as replay_policy
    from bench_core import row_sums as row_sums
    from bench_core import run_suite as run_suite
    from bench_core import samples_in_cache as samples_in_cache
    from bench_core import save_trace as save_trace
    from bench_core import save_trace_shards as save_trace_shards

__all__ = list(bench_core.__all__)


def __getattr__(name: str) -> Any:
    try:
        return getattr(bench_core, name)
    except AttributeError:
        raise AttributeError(f"module 'exitbench' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted(__all__)

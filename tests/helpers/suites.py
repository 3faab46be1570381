"""Suites made of the tiny plugin, as dictionaries and as TOML files."""

import json
import shutil
from pathlib import Path

from bench_core.plugins import load_registry
from bench_core.run.artifacts import Workload, trained_weights
from bench_core.run.suite import parse_suite
from bench_core.store.local import Store

TINY_PLUGIN = Path(__file__).with_name("tiny_plugin.py")

RECIPE = {"epochs": 10, "batch_size": 50, "learning_rate": 0.1}
DIRECT = {"name": "direct", "dataset": "tiny-shapes", "model": "tiny-conv", "timesteps": 4, "recipe": RECIPE}
EVENTS = {"name": "events", "dataset": "tiny-events", "model": "tiny-conv", "timesteps": 5, "recipe": RECIPE}
CONVERTED = {
    "name": "converted",
    "dataset": "tiny-shapes",
    "model": "tiny-conv",
    "timesteps": 8,
    "recipe": RECIPE,
    "conversion": {"converter": "qcfs", "parameters": {"levels": 2}},
}


def tiny_suite(**changes):
    """What a suite file holds: one workload and three cheap strategies, unless ``changes`` says otherwise."""
    content = {
        "schema": "exitbench.suite/1",
        "name": "tiny",
        "operating_points": ["iso-accuracy:1", "budget:0.5"],
        "cost_models": ["cmos45"],
        "resamples": 100,
        "latency": {"samples": 2, "repetitions": 1},
        "workloads": [DIRECT],
        "strategies": [{"name": "fixed"}, {"name": "stability"}, {"name": "seenn-i"}],
    }
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def parsed_suite(**changes):
    """The same, validated."""
    return parse_suite(tiny_suite(**changes), "in a test")


def write_suite(path, **changes):
    """The same, as a TOML file at ``path``."""
    path.write_text("\n".join(f"{name} = {_toml(value)}" for name, value in tiny_suite(**changes).items()) + "\n")
    return path


def tiny_registry(*plugins):
    """All installed plugins, the tiny one, and further files."""
    return load_registry([TINY_PLUGIN, *plugins])


def write_plugin(path, source):
    """A single-file plugin with the imports that a plugin's author would write."""
    path.write_text(f"import numpy as np\nimport torch\nfrom bench_core import *\n\n{source}\n")
    return path


def trained_store(tmp_path_factory, folder):
    """A store in ``folder`` that holds the tiny networks, trained once per session, and nothing else."""
    source = Store(tmp_path_factory.getbasetemp() / "trained-tiny-networks", zoo=None)
    registry = tiny_registry()
    for spec in parsed_suite(workloads=[DIRECT, EVENTS, CONVERTED]).workloads:
        trained_weights(Workload.resolve(spec, registry), source)
    shutil.copytree(source.root / "networks", folder / "networks")
    return Store(folder, zoo=None)


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)

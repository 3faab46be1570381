"""What plugins make is told apart by their code as it was loaded, by PyTorch's settings, and by the data it is from."""

import hashlib
import json
import os
import py_compile
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import bench_core
from bench_core.errors import PluginError, StoreError, UsageError
from bench_core.isolation.plugin_code import code_of_class
from bench_core.plugins import Registry, load_registry
from bench_core.run.artifacts import (
    Workload,
    conversion_key,
    has_trace,
    record_shard,
    recorded_trace,
    recording_key,
    spiking_network,
    stored_weights,
    trained_weights,
)
from bench_core.run.evaluate import recorded_workload
from bench_core.run.run import run_suite
from bench_core.run.score_cache import scores_key
from bench_core.run.suite import load_suite
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.store.inventory import entries
from bench_core.store.local import ZOO, Artifact, Store
from bench_core.util.environment import numerics_fingerprint, rounding_settings
from tests.helpers.suites import CONVERTED as TINY
from tests.helpers.suites import parsed_suite, tiny_registry, write_suite

ROOT = Path(__file__).parent.parent
PLUGIN = """
from pathlib import Path

import torch
from torch import nn

from bench_core import *
from bench_core.snn import Flatten, Synapse

import small_helper
from small_folder.deeper import DEEPER

HERE = Path(__file__).parent
SEEN = [0]


def edit(what):  # the n-th time that this is reached, somebody edits a file
    wanted, _, count = (HERE / "edit.txt").read_text().partition(" ") if (HERE / "edit.txt").exists() else ("", "", "")
    if what == wanted:
        SEEN[0] += 1
        if SEEN[0] == int(count):
            (HERE / "small_helper.py").write_text("FACTOR = 9.0\\n")


class Small(Dataset):
    name = "small"
    classes = 2
    input_shape = (1, 4, 4)
    constant_input = True
    licence, reference = "CC0-1.0", "a test"
    identity = {"name": "small", "version": 1}

    def split(self, name):
        first = {"train": 0, "calibration": 100, "test": 200}[name]
        labels = torch.arange(40) % 2
        images = torch.full((40, 1, 4, 4), 3, dtype=torch.uint8)
        images[labels == 1, :, :2] = int((HERE / f"{name}.txt").read_text())
        return ImageSplit(name, images, labels, torch.arange(first, first + 40))

    def encode(self, images, timesteps, frames=None):
        edit("encode")
        return images.float() / 2 * small_helper.FACTOR * DEEPER


class Layer(Model):
    name, reference = "layer", "a test"

    def layers(self, input_shape, classes, parts):
        edit("layers")
        convolution = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        return [*parts.synapse(convolution), parts.node(), Flatten(), Synapse(nn.Linear(32, classes))]


class Few(Regularizer):
    name, reference = "few", "a test"

    def loss(self, batch):
        edit("loss")
        return 1.0 * sum(layer.output.mean() for layer in batch.layers)


class Unit(Converter):
    name, reference = "unit", "a test"

    def activation(self):
        return nn.ReLU()

    def convert(self, ann, inputs):
        edit("convert")
        return replace_activations(ann, [if_neuron(1.0) for _ in ann.activations], constant_input=True)


class Learnt(ScoreStrategy):
    name, reference = "learnt", "a test"
    family_knob = Knob("threshold", low=0.0, high=1.0)

    def fit(self, calibration):
        calibration.artifact({"strategy": self.name}, lambda: (edit("fit"), {"bias": torch.zeros(2)})[1])
        return super().fit(calibration)

    def score(self, evidence):
        edit("score")
        return evidence.readout().largest_probability


@hookimpl
def bench_datasets():
    return [Small()]


@hookimpl
def bench_models():
    return [Layer()]


@hookimpl
def bench_regularizers():
    return [Few()]


@hookimpl
def bench_converters():
    return [Unit()]


@hookimpl
def bench_exit_strategies():
    return [Learnt()]
"""
RECIPE = {"epochs": 2, "batch_size": 20, "learning_rate": 0.1, "regularizer": {"name": "few", "weight": 0.1}}
SPIKING = {"name": "small", "dataset": "small", "model": "layer", "timesteps": 3, "recipe": RECIPE}
CONVERTED = {**SPIKING, "name": "small-converted", "conversion": {"converter": "unit"}}
SUITE = partial(parsed_suite, workloads=[SPIKING], strategies=[{"name": "fixed"}, {"name": "learnt"}])
EDITS = {
    "model": ("small_plugin.py", "convolution = nn", "convolution  = nn"),
    "data set": ("small_plugin.py", "images.float() / 2 *", "images.float() / 4 *"),
    "regulariser": ("small_plugin.py", "1.0 * sum", "2.0 * sum"),
    "converter": ("small_plugin.py", "nn.ReLU()", "nn.ReLU6()"),
    "helper beside it": ("small_helper.py", "1.0", "2.0"),
    "helper in a folder": ("small_folder/deeper.py", "1.0", "2.0"),
    "new file": ("small_folder/__init__.py", "", "# it is a package now\n"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the plugin, what it imports, and the data that it reads."""
    place = tmp_path / "plugin"
    (place / "small_folder").mkdir(parents=True)
    (place / "small_helper.py").write_text("FACTOR = 1.0\n")
    (place / "small_folder" / "deeper.py").write_text("DEEPER = 1.0\n")
    (place / "small_plugin.py").write_text(PLUGIN)
    for split in ("train", "calibration", "test"):
        (place / f"{split}.txt").write_text("200")
    monkeypatch.syspath_prepend(place)
    yield place
    forget()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", zoo=None)


def forget():
    """What a process of its own would not have imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("small_helper", "small_folder")]:
        del sys.modules[name]


def loaded(folder, *, anew=True):
    if anew:
        forget()
    registry = load_registry([folder / "small_plugin.py"])
    assert [str(problem) for problem in registry.problems] == []
    return registry


def workload_of(registry, spec=SPIKING):
    return Workload.resolve(parsed_suite(workloads=[spec]).workloads[0], registry)


def edited(path, before, after):
    path.write_text((path.read_text() if path.exists() else "").replace(before, after, 1) if before else after)


def made(workload, store):
    """Weights and trace, from the store or made now."""
    weights = trained_weights(workload, store)
    return weights, recorded_trace(workload, weights, "test", store)


def kinds(store):
    return sorted(entry.kind for entry in entries(store))


def in_a_process(folder, *arguments, home):
    """The command line in a process of its own."""
    paths = os.pathsep.join([str(folder), str(ROOT), *sys.path])
    command = [sys.executable, "-m", "bench_core", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": paths, "EXITBENCH_HOME": str(home)}
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder.parent, timeout=600, check=False)


# --- keys that stay --------------------------------------------------------------------------------------------------


def test_shipped_networks_and_committed_boards_keep_their_keys():
    """A change of any of these makes everybody train and record again, and the zoo useless."""
    registry, keys, committed = load_registry(), {}, 0
    for path in sorted((Path(bench_core.__file__).parent / "suites").glob("*.toml")):
        suite = load_suite(path.stem)
        board = ROOT / "results" / suite.name / "manifest.json"
        facts = json.loads(board.read_text())["workloads"] if board.exists() else {}
        for spec in suite.workloads:
            workload = Workload.resolve(spec, registry)
            assert workload.code == {}
            assert workload.training_key == workload.declared_training
            weights = Artifact({}, {"content": facts.get(spec.name, {}).get("weights", "0" * 64)}, {})
            recordings = {split: recording_key(workload, weights, split) for split in ("calibration", "test")}
            keys[f"{suite.name}/{spec.name}"] = [workload.training_key, *recordings.values()]
            if spec.name in facts:
                assert recordings == facts[spec.name]["recording"]
                committed += 1
    assert committed >= 9
    shipped = {key for kind, key in Store(ZOO.parent, ZOO)._shipped() if kind == "networks"}
    assert len(shipped) == 9
    assert shipped <= {found[0] for found in keys.values()}
    digest = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
    assert digest == "fbe0761d8f70ec68748c904b87067ef6a27d537410854854d64cc8035a3e7929"


def test_shipped_policies_keep_their_keys():
    strategies = load_registry().strategies.values()
    assert len(strategies) >= 10
    assert [code_of_class(type(one)) for one in strategies] == [[] for _ in strategies]


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_other_code_made_is_named_and_made_again(folder, store, capfd, edit):
    name, before, after = edit
    for spec in (SPIKING, CONVERTED):
        made(workload_of(loaded(folder), spec), store)
    first, kept = (
        workload_of(loaded(folder), CONVERTED),
        (folder / name).read_text() if (folder / name).exists() else None,
    )
    edited(folder / name, before, after)
    for spec in (SPIKING, CONVERTED):
        other = workload_of(loaded(folder), spec)
        assert stored_weights(other, store) is None
        capfd.readouterr()
        weights, _ = made(other, store)
        said = capfd.readouterr().err
        named = [line for line in said.splitlines() if "made by other code of plugin small_plugin; made again" in line]
        assert [line.split()[1] for line in named] == ["networks", "traces"]
        assert f"train {spec['name']}: " in said
        assert has_trace(other, weights, "test", store)
        made(other, store)
        assert capfd.readouterr().err == ""
    assert other.training_key != first.training_key
    assert other.declared_training == first.declared_training
    assert kinds(store).count("networks") == 4
    (folder / name).unlink() if kept is None else (folder / name).write_text(kept)  # the old code's are there still
    again = workload_of(loaded(folder), CONVERTED)
    assert again.training_key == first.training_key
    made(again, store)
    assert capfd.readouterr().err == ""


def test_the_command_line_trains_again_after_an_edit(folder, tmp_path):
    suite = write_suite(tmp_path / "suite.toml", workloads=[SPIKING], strategies=[{"name": "fixed"}])
    call = partial(
        in_a_process,
        folder,
        "record",
        "small",
        "--suite",
        suite,
        "--plugin",
        folder / "small_plugin.py",
        home=tmp_path / "home",
    )
    first = call("--output", tmp_path / "a.safetensors")
    assert first.returncode == 0, first.stderr
    edited(folder / "small_plugin.py", "/ 2", "/ 4")
    second = call("--output", tmp_path / "b.safetensors")
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("made by other code of plugin small_plugin; made again") == 2
    assert "train small: " in second.stderr
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "b.safetensors").read_bytes()


def test_an_installed_package_counts_as_a_whole(tmp_path, monkeypatch):
    """The plugin, its model's module that is imported later, and where a base class comes from."""
    site = tmp_path / "site"
    for package in ("lab_exits", "lab_models"):
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text("")
    info = site / "lab_exits-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-exits\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[exitbench]\nlab = lab_exits.hooks\n")
    base = site / "lab_models" / "base.py"
    base.write_text(
        "from bench_core import Model\nclass Base(Model):\n    reference = 0\n    def layers(self, *_): return []\n"
    )
    (site / "lab_exits" / "later.py").write_text("SIZE = 1\n")
    (site / "lab_exits" / "hooks.py").write_text(
        "from bench_core import hookimpl\nfrom lab_models.base import Base\n"
        "class Lab(Base):\n    name = 'lab'\n"
        "@hookimpl\ndef bench_models(): return [Lab()]\n"
    )
    monkeypatch.syspath_prepend(site)

    def seen():
        for name in [name for name in sys.modules if name.partition(".")[0] in ("lab_exits", "lab_models")]:
            del sys.modules[name]  # as in a process of its own
        return {code.name: code.digest for code in load_registry().code_of("models", "lab")}

    before = seen()
    assert before.keys() == {"lab", "lab_models"}
    assert seen() == before
    (site / "lab_exits" / "later.py").write_text("SIZE = 2\n")
    second = seen()
    assert [second[name] == before[name] for name in ("lab", "lab_models")] == [False, True]
    base.write_text(base.read_text() + "# edited\n")
    third = seen()
    assert [third[name] == second[name] for name in ("lab", "lab_models")] == [True, False]


def test_an_object_of_a_shipped_class_belongs_to_the_plugin_that_returns_it(tmp_path):
    path = tmp_path / "ours.py"
    path.write_text(
        "from bench_core import hookimpl\nfrom bench_core.data.digits import Digits\n"
        "ours = Digits()\nours.name = 'ours'\n@hookimpl\ndef bench_datasets(): return [ours]\n"
    )
    (code,) = load_registry([path]).code_of("datasets", "ours")
    assert code.name == "ours"
    assert load_registry([path]).code_of("datasets", "digits") == []


def test_the_second_of_two_loads_leaves_the_first_one_s_keys_alone(folder):
    first = workload_of(loaded(folder))
    key = first.training_key
    edited(folder / "small_plugin.py", "1.0 * sum", "2.0 * sum")
    registry = loaded(folder)
    assert first.training_key == key != workload_of(registry).training_key
    assert workload_of(registry).training_key == workload_of(loaded(folder)).training_key


def test_keys_are_the_same_wherever_the_folder_is(folder, tmp_path):
    key = workload_of(loaded(folder)).training_key
    elsewhere = folder.rename(tmp_path / "elsewhere")
    sys.path.insert(0, str(elsewhere))
    try:
        assert workload_of(loaded(elsewhere)).training_key == key
    finally:
        sys.path.remove(str(elsewhere))


def test_a_module_that_is_imported_already_counts_as_it_was_imported(folder, store):
    """A process that loads plugins twice keeps what the first load imported, whatever the file holds by now."""
    first = workload_of(loaded(folder))
    edited(folder / "small_helper.py", "1.0", "2.0")
    second = workload_of(loaded(folder, anew=False))
    assert second.training_key == first.training_key  # it runs the same code
    with pytest.raises(PluginError, match=r"small_helper\.py changed since it was loaded"):
        made(second, store)
    assert kinds(store) == []
    assert workload_of(loaded(folder)).training_key != first.training_key


def test_bytecode_that_outlived_an_edit_is_not_run(folder):
    """Python goes by size and second of the file."""
    path = folder / "small_plugin.py"
    before = path.stat()
    py_compile.compile(str(path))
    edited(path, "1.0 * sum", "2.0 * sum")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    few = loaded(folder).regularizers["few"]
    assert 2.0 in type(few).loss.__code__.co_consts
    assert not list((folder / "small_folder").rglob("*.pyc"))


def test_files_that_change_while_they_are_loaded_are_refused(folder):
    path = folder / "small_plugin.py"
    path.write_text(
        f"from pathlib import Path\nPath({str(folder / 'small_helper.py')!r}).write_text('FACTOR = 3.0')\n" + PLUGIN
    )
    forget()
    (problem,) = load_registry([path]).problems
    assert "small_helper.py changed while it was loaded; run it again" in str(problem)


def test_code_that_is_in_no_file_is_never_taken_for_other_code(store):
    def registry():
        space = {"__name__": "typed_in_a_notebook"}
        exec(
            "from bench_core import Regularizer\nclass Few(Regularizer):\n    name = 'few'\n    def loss(self, b): ...",
            space,
        )
        found = tiny_registry()
        found.regularizers["few"] = space["Few"]()
        return found

    spec = {**SPIKING, "dataset": "tiny-shapes", "model": "tiny-conv"}
    one, other = registry(), registry()
    assert workload_of(one, spec).training_key == workload_of(one, spec).training_key
    assert workload_of(one, spec).training_key != workload_of(other, spec).training_key


def test_a_registry_filled_by_hand_goes_by_the_classes_files():
    registry = Registry()
    registry.models["tiny-conv"] = tiny_registry().models["tiny-conv"]
    (code,) = registry.code_of("models", "tiny-conv")
    assert code.name == "tiny_plugin"


# --- nothing is kept of code that changed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "spec", "left"),
    [
        ("loss 1", SPIKING, []),
        ("loss 3", SPIKING, ["training"]),  # of the first epoch
        ("layers 1", SPIKING, []),
        ("encode 1", SPIKING, []),
        ("encode 5", SPIKING, ["networks"]),
        ("convert 1", CONVERTED, ["networks"]),
    ],
)
def test_a_stage_whose_code_was_edited_keeps_nothing(folder, store, moment, spec, left):
    workload = workload_of(loaded(folder), spec)
    (folder / "edit.txt").write_text(moment)
    with pytest.raises(
        PluginError, match=r"plugin small_plugin: .*small_helper\.py changed since it was loaded; .*again"
    ):
        made(workload, store)
    assert kinds(store) == left
    (folder / "edit.txt").unlink()
    (folder / "small_helper.py").write_text("FACTOR = 1.0\n")  # put back: it goes on
    made(workload, store)
    assert "traces" in kinds(store)


@pytest.mark.parametrize(("moment", "status", "left"), [("score 1", "ok", 1), ("fit 1", "failed: plugin", 0)])
def test_scores_and_policies_of_an_edited_strategy_are_not_kept(folder, store, tmp_path, capfd, moment, status, left):
    registry = loaded(folder)
    recorded_workload(workload_of(registry), store)
    (folder / "edit.txt").write_text(moment)
    rows = run_suite(SUITE(), registry=registry, output=tmp_path / "board", store=store).rows
    found = rows[rows["strategy"] == "learnt"]["status"]
    assert all(one.startswith(status) for one in found)
    said = capfd.readouterr().err
    assert "small_helper.py changed since it was loaded" in said
    assert kinds(store).count("policies") == left
    assert [entry.what for entry in entries(store, ["scores"])] == ["small fixed"] * kinds(store).count("scores")


def test_a_policy_that_other_code_learnt_is_named_and_learnt_again(folder, store, tmp_path, capfd):
    run = partial(run_suite, SUITE(), output=tmp_path / "board", store=store)
    run(registry=loaded(folder))
    assert kinds(store).count("policies") == 1
    edited(folder / "small_plugin.py", "torch.zeros(2)}", "torch.ones(2)}")
    capfd.readouterr()
    run(registry=loaded(folder))
    assert kinds(store).count("policies") == 2
    assert capfd.readouterr().err.count("networks") == 1


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_trace_of_other_data_is_named_and_recorded_again(folder, store, capfd):
    workload = workload_of(loaded(folder))
    weights, first = made(workload, store)
    (folder / "test.txt").write_text("0")
    changed = workload_of(loaded(folder))
    assert changed.training_key == workload.training_key
    assert not has_trace(changed, weights, "test", store)
    capfd.readouterr()
    again, trace = made(changed, store)
    said = capfd.readouterr().err
    assert again.digest == weights.digest
    assert trace.digest != first.digest
    key = recording_key(changed, weights, "test")
    (line,) = [line for line in said.splitlines() if "made again" in line]
    assert line.startswith(f"store: {store.path('traces', key)}: made from other data of small, split test (digest ")
    assert json.loads(trace.header["provenance"])["data"] == changed.dataset.split("test").digest
    made(workload_of(loaded(folder)), store)
    assert capfd.readouterr().err == ""


def test_weights_of_other_data_are_named_and_trained_again(folder, store, capfd):
    weights, _ = made(workload_of(loaded(folder)), store)
    (folder / "train.txt").write_text("0")
    changed = workload_of(loaded(folder))
    assert stored_weights(changed, store) is None
    capfd.readouterr()
    again, _ = made(changed, store)
    assert again.digest != weights.digest
    assert capfd.readouterr().err.count("made from other data of small, split train") == 1
    assert stored_weights(workload_of(loaded(folder)), store) is not None


def test_a_training_that_began_on_other_data_begins_again(folder, store, capfd):
    expected = trained_weights(workload_of(loaded(folder)), Store(store.root.with_name("whole"), zoo=None))
    (folder / "train.txt").write_text("0")
    workload = workload_of(loaded(folder))
    (folder / "edit.txt").write_text("loss 3")
    with pytest.raises(PluginError):
        trained_weights(workload, store)
    assert kinds(store) == ["training"]
    (folder / "edit.txt").unlink()
    (folder / "small_helper.py").write_text("FACTOR = 1.0\n")
    (folder / "train.txt").write_text("200")
    capfd.readouterr()
    assert trained_weights(workload_of(loaded(folder)), store).digest == expected.digest
    assert "begun on other data of small; it begins again" in capfd.readouterr().err


def test_parts_and_conversions_of_other_data_are_made_again(folder, store, capfd):
    workload = workload_of(loaded(folder), CONVERTED)
    weights = trained_weights(workload, store)
    record_shard(workload, weights, "test", 0, store, network=spiking_network(workload, weights, store))
    assert kinds(store) == ["converted", "networks", "trace-parts"]
    for split in ("calibration", "test"):
        (folder / f"{split}.txt").write_text("0")
    capfd.readouterr()
    changed = workload_of(loaded(folder), CONVERTED)
    trace = recorded_trace(changed, weights, "test", store)
    said = capfd.readouterr().err
    assert said.count("made from other data of small-converted") == 0
    assert said.count("made from other data of small, split calibration") == 1
    assert said.count("made from other data of small, split test") == 1
    alone = recorded_trace(changed, weights, "test", Store(store.root.with_name("alone"), zoo=None))
    assert trace.digest == alone.digest


def test_corrupted_splits_follow_their_data(folder, store, tmp_path):
    suite = SUITE(shift={"corruptions": ["contrast"], "severities": [3], "samples": 20})
    run = partial(run_suite, suite, output=tmp_path / "board", store=store)
    first = run(registry=loaded(folder)).manifest["workloads"]["small"]
    (folder / "test.txt").write_text("0")
    second = run(registry=loaded(folder)).manifest["workloads"]["small"]
    assert second["recording"] == first["recording"]
    assert second["shift"] != first["shift"]
    assert second["test_trace"] != first["test_trace"]
    assert second["calibration_trace"] == first["calibration_trace"]


def test_offline_other_data_are_refused_and_data_that_are_gone_are_not_asked(folder, store, capfd):
    workload = workload_of(loaded(folder))
    weights, trace = made(workload, store)
    offline = Store(store.root, zoo=None, offline=True)
    content = (folder / "test.txt").read_text()
    (folder / "test.txt").write_text("0")
    with pytest.raises(StoreError, match=r"made from other data of small, split test .* nothing is made offline"):
        made(workload_of(loaded(folder)), offline)
    (folder / "test.txt").unlink()
    for one in (offline, store):
        assert made(workload_of(loaded(folder)), one)[1].digest == trace.digest
    (folder / "test.txt").write_text(content)
    assert has_trace(workload_of(loaded(folder)), weights, "test", store)


# --- settings --------------------------------------------------------------------------------------------------------


def _flag(module, name, value):
    def change():
        before = getattr(module, name)
        setattr(module, name, value)
        return lambda: setattr(module, name, before)

    return change


def _call(function, value, default):
    def change():
        function(value)
        return lambda: function(default)

    return change


SETTINGS = {
    "default dtype": _call(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": _call(torch.set_default_device, "meta", None),
    "float32 matmul precision": _call(torch.set_float32_matmul_precision, "medium", "highest"),
    "mkldnn": _flag(torch.backends.mkldnn, "enabled", False),
    "mkldnn deterministic": _flag(torch.backends.mkldnn, "deterministic", True),
    "mkldnn convolution fp32 precision": _flag(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "mkldnn matmul fp32 precision": _flag(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "deterministic algorithms": _call(torch.use_deterministic_algorithms, True, False),
    "flush denormals": _call(torch.set_flush_denormal, True, False),
    "autocast": _call(partial(torch.set_autocast_enabled, "cpu"), True, False),
    "attention fast path": _call(torch.backends.mha.set_fastpath_enabled, False, True),
}


@pytest.fixture(scope="module")
def direct():
    registry = tiny_registry()
    return workload_of(registry, {**TINY, "recipe": {"epochs": 1}}), registry.strategies["seenn-i"]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_that_rounding_depends_on_is_in_every_key(direct, name):
    workload, strategy = direct
    weights = Artifact({}, {"content": "0" * 64}, {})
    points = [OperatingPoint.parse("budget:0.5")]

    def keys():
        return [
            workload.training_key,
            conversion_key(workload, weights),
            recording_key(workload, weights, "test"),
            scores_key(workload, weights, strategy, points),
        ]

    assert rounding_settings() == {}
    before, fingerprint = keys(), numerics_fingerprint()
    undo = SETTINGS[name]()
    try:
        assert name in rounding_settings()
        other = keys()
        assert keys() == other
    finally:
        undo()
    assert all(one != two for one, two in zip(before, other, strict=True))
    assert rounding_settings() == {}
    assert keys() == before
    assert numerics_fingerprint() == fingerprint


def test_what_was_made_with_other_settings_is_not_used_and_said_once(folder, store, capfd):
    workload = workload_of(loaded(folder))
    weights, _ = made(workload, store)
    torch.backends.mkldnn.deterministic = True
    try:
        capfd.readouterr()
        again, _ = made(workload, store)
        said = capfd.readouterr().err
        assert said.count("settings: mkldnn deterministic True: not PyTorch's default") == 1
        assert "other code" not in said
        assert again.metadata["key"] != weights.metadata["key"]
        made(workload, store)
        assert capfd.readouterr().err == ""
    finally:
        torch.backends.mkldnn.deterministic = False
    made(workload, store)
    assert capfd.readouterr().err == ""


def test_settings_that_change_while_a_network_is_trained_keep_nothing(folder, store):
    workload = workload_of(loaded(folder))
    few = workload.regularizer

    class Meddling(type(few)):
        def loss(self, batch):
            torch.set_float32_matmul_precision("medium")
            return super().loss(batch)

    try:
        with pytest.raises(UsageError, match=r"float32 matmul precision.* changed while they were in use"):
            trained_weights(replace(workload, regularizer=Meddling()), store)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert kinds(store) == []

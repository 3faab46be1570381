"""Training and recording elsewhere than on the processor, and training in pieces.

No GPU is needed: tensors without data have shapes, types and a device of their own, and refuse to meet others as those
on a GPU would.
"""

import contextlib

import pytest
import torch
from bench_plugins.qcfs import QCFS
from torch._subclasses.fake_tensor import FakeTensorMode

from bench_core import load_registry
from bench_core.data.base import ImageSplit
from bench_core.data.cifar import CIFAR10
from bench_core.errors import TrainingPausedError, UsageError
from bench_core.recording.ledger import OperationLedger
from bench_core.recording.record import Recording
from bench_core.run.artifacts import Workload, trained_weights
from bench_core.run.plan import plan
from bench_core.run.stages import Order, missing_stages, perform, read_answer, stage_request
from bench_core.snn.models.resnet import ResNet8
from bench_core.store.local import Store
from bench_core.training import Recipe, loop
from bench_core.training.regularizers import layer_records
from bench_core.util.device import CPU, VARIABLE, compute_device, device_name
from bench_core.util.digests import tensors_digest
from bench_core.util.environment import environment
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.suites import CONVERTED, DIRECT, TINY_PLUGIN, parsed_suite, tiny_registry, write_suite
from tests.helpers.tiny_plugin import TinyConv, TinyEvents, TinyShapes

ELSEWHERE = torch.device("meta")
T = 3


@pytest.fixture
def without_autocast(monkeypatch):
    """There is none for tensors without data."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def network_of(model, dataset, analog=False):
    with ELSEWHERE:
        if analog:
            return model.analog(dataset.input_shape, dataset.classes, QCFS().activation)
        constant = dataset.constant_input
        return model.spiking(dataset.input_shape, dataset.classes, constant_input=constant, timesteps=T)


def split_of(dataset, samples=8):
    if not isinstance(dataset, CIFAR10):
        whole = dataset.split("train")
        return ImageSplit("train", whole.images[:samples], whole.labels[:samples], whole.sample_ids[:samples])
    images = torch.zeros(samples, *dataset.input_shape, dtype=torch.uint8)
    return ImageSplit("train", images, torch.arange(samples) % dataset.classes, torch.arange(samples))


@pytest.mark.parametrize(
    ("model", "dataset", "analog", "more"),
    [
        (ResNet8(), CIFAR10(), False, {"loss": "tet", "shift": 4, "flip": True, "cutout": 8}),
        (ResNet8(), CIFAR10(), False, {"loss": "accumulated-prefix"}),
        (ResNet8(), CIFAR10(), True, {"shift": 4, "flip": True}),
        (ResNet8(), CIFAR10(), True, {"regularizer": {"name": "rcs-ann", "weight": 0.001}}),
        (ResNet8(), CIFAR10(), False, {"regularizer": {"name": "rcs-snn", "weight": 0.002}}),
        (TinyConv(), TinyShapes(), False, {"shift": 1}),
        (TinyConv(), TinyEvents(), False, {"flip": True}),
    ],
)
@pytest.mark.usefixtures("without_autocast")
def test_a_training_step_happens_where_the_network_is(model, dataset, analog, more):
    recipe = Recipe.model_validate({"epochs": 1, "batch_size": 4, **more})
    regularizer = None
    if recipe.regularizer is not None:
        regularizer = load_registry().find("regularizers", recipe.regularizer.name)
    network, split = network_of(model, dataset, analog), split_of(dataset)
    training = loop._Training(network, dataset, split, regularizer, timesteps=T, recipe=recipe, seed=0)
    generator = torch.Generator().manual_seed(0)
    with layer_records(network, wanted=regularizer is not None) as records:
        seen = training._step(torch.arange(4), 0, generator, records)
    assert seen.device == ELSEWHERE
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert {buffer.device for buffer in network.buffers()} == {ELSEWHERE}


@pytest.mark.parametrize("left_behind", ["labels", "images"])
@pytest.mark.usefixtures("without_autocast")
def test_a_step_that_mixed_devices_would_be_noticed(left_behind, monkeypatch):
    dataset, recipe = TinyShapes(), Recipe(epochs=1, batch_size=4)
    network, split = network_of(TinyConv(), dataset), split_of(dataset)
    training = loop._Training(network, dataset, split, None, timesteps=T, recipe=recipe, seed=0)
    if left_behind == "labels":
        training.labels = split.labels
    else:
        monkeypatch.setattr(training, "_inputs", lambda index, *_: dataset.encode(split.images[: len(index)], T))
    with pytest.raises(RuntimeError, match="device"):
        training._step(torch.arange(4), 0, torch.Generator().manual_seed(0), [])


@pytest.mark.parametrize("dataset", [TinyShapes(), TinyEvents()])
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_recording_comes_back_to_memory(monkeypatch, dataset, per_layer):
    constant, split = dataset.constant_input, split_of(dataset)
    network = TinyConv().spiking(dataset.input_shape, dataset.classes, constant_input=constant).prepare_for_inference()
    ledger = OperationLedger(network, dataset.input_shape, per_layer=per_layer)  # what it says is no shape
    monkeypatch.setattr(Recording, "_ledger", lambda _: ledger)
    recording = Recording(network.to(ELSEWHERE), dataset, split, T, per_layer=per_layer, device=ELSEWHERE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = recording.run(torch.arange(8), 4)
        assert {tensor.device for tensor in tensors.values()} == {CPU}
        assert tensors["logits"].shape == (8, T, dataset.classes)
        assert ("layer_acs" in tensors) == per_layer


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda", "finds none here"),
        ("cuda:7", "finds none here"),
        ("gpu", "no device"),
        ("cuda:x", "no device"),
        ("mps", "finds none"),
    ],
)
def test_a_device_that_is_not_here_is_one_line(monkeypatch, exitbench, tmp_path, name, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(UsageError, match=words):
        compute_device()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.chdir(tmp_path)
    for command in (["run"], ["train", "fashion-qcfs"], ["record", "fashion-qcfs"]):
        answer = exitbench(*command, "--device", name)
        assert answer.code == 2
        assert words in answer.err
    assert not list(tmp_path.glob("exitbench-results"))


def test_a_gpu_that_is_here_is_taken_and_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Example {device.index}")
    monkeypatch.setenv(VARIABLE, "cuda:1")
    device = compute_device()
    assert (device.type, device.index) == ("cuda", 1)
    assert environment(device)["device"] == device_name(device) == "Example 1"
    monkeypatch.setenv(VARIABLE, "cuda:2")
    with pytest.raises(UsageError, match="there are 2 here"):
        compute_device()
    monkeypatch.setenv(VARIABLE, "")
    assert compute_device() == CPU
    assert environment()["device"] == "cpu"


def workload_with(content, epochs):
    changed = {
        **content,
        "recipe": {**content["recipe"], "epochs": epochs, "trunk": {**content["recipe"], "epochs": 2}},
    }
    return Workload.resolve(parsed_suite(workloads=[changed]).workloads[0], tiny_registry())


@pytest.mark.parametrize("content", [DIRECT, CONVERTED])
def test_training_in_pieces_ends_with_the_same_weights(tmp_path, content):
    workload = workload_with(content, 3)
    whole = trained_weights(workload, Store(tmp_path / "whole", zoo=None))
    store, stops = Store(tmp_path / "pieces", zoo=None), []
    for _ in range(5):
        try:
            pieces = trained_weights(workload, store, until=0.0)  # time is up before it begins: an epoch at a time
        except TrainingPausedError as paused:
            stops.append(str(paused))
    assert [text.split(": ")[1].split(";")[0] for text in stops] == [
        "stopped after epoch 1 of 2",
        "stopped after epoch 1 of 3",
        "stopped after epoch 2 of 3",
    ]
    assert tensors_digest(pieces.tensors) == tensors_digest(whole.tensors)


def test_the_command_says_that_the_same_command_goes_on(tmp_path, exitbench):
    suite = write_suite(tmp_path / "own.toml", workloads=[{**DIRECT, "recipe": {**DIRECT["recipe"], "epochs": 2}}])
    command = ("train", "direct", "--suite", suite, "--plugin", TINY_PLUGIN, "--minutes", 0)
    answer = exitbench(*command)
    assert answer.code == 3
    assert "stopped after epoch 1 of 2; the same command goes on" in answer.out
    answer = exitbench(*command)
    assert answer.code == 0
    assert "weights sha256" in answer.out


@pytest.mark.parametrize(("device", "asked"), [("", {}), ("cpu", {}), ("cuda", {"GPU": 1.0}), ("cuda:1", {"GPU": 1.0})])
def test_only_what_trains_and_records_asks_workers_for_a_gpu(tmp_path, monkeypatch, device, asked):
    monkeypatch.setenv(VARIABLE, device)
    registry, store = tiny_registry(), Store(tmp_path, zoo=None)
    suite = parsed_suite(workloads=[DIRECT])
    stages, _ = missing_stages(plan(suite, registry), store, refit=True)  # the GPU is theirs: none is needed here
    resources = {stage.kind: dict(stage.resources) for stage in stages}
    assert resources == {"train": asked, "record": asked, "fit": {}}
    order = Order.of(suite, registry, store, refit=False)
    assert order.device == (device or "cpu")
    answer = read_answer(perform(stage_request(order, stages[0], 1)))
    if asked:
        assert "finds none here" in answer.problem
    else:
        assert answer.artifact[0] == "networks"

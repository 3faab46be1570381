"""Networks of one's own: module, factory and checkpoint to a trace; what doesn't fit is one line and writes nothing."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from bench_core import Dataset, ImageSplit, load_trace
from bench_core.errors import ExitBenchError, UsageError
from bench_core.recording.own_network import record_network
from tests.helpers import own_home  # noqa: F401  # switched on by being here
from tests.helpers.data import write_training_images
from tests.helpers.numerics import rounded
from tests.helpers.suites import TINY_PLUGIN, tiny_registry
from tests.helpers.tiny_plugin import TinyShapes

DOCS = (Path(__file__).parent.parent / "docs" / "networks.md").read_text(encoding="utf-8")
T = 3
NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels=1, classes=4):
        super().__init__()
        self.hidden, self.readout = nn.Linear(channels * 64, 12), nn.Linear(12, classes)

    def reset(self):
        self.potential = 0.0

    def step(self, x):
        self.potential = 0.5 * self.potential + self.hidden(x.flatten(1))
        spikes = (self.potential >= 0.25).to(x.dtype)
        self.potential = self.potential * (1 - spikes)
        return self.readout(spikes)


def events():
    return Net(channels=2)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with ``nets.py`` and its weights; what is imported from here is forgotten afterwards."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (place / "nets.py").write_text(NET)
    for channels, name in ((1, "net.pt"), (2, "events.pt")):
        torch.save(weights(channels), place / name)
    yield place
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(place)):
            del sys.modules[name]


@pytest.fixture
def record(exitbench, folder):
    """``exitbench record --model`` on the tiny images; further arguments replace or follow."""

    def call(*more, model="nets:Net", checkpoint="net.pt", dataset="tiny-shapes"):
        own = ("--model", model, "--checkpoint", checkpoint, "--dataset", dataset, "--timesteps", T)
        return exitbench("record", *own, "--plugin", TINY_PLUGIN, *more)

    return call


def weights(channels=1):
    """Weights of ``Net``, rounded so that it computes exactly on any CPU."""
    generator = torch.Generator().manual_seed(channels)
    shapes = {"hidden.weight": (12, channels * 64), "hidden.bias": (12,), "readout.weight": (4, 12)}
    tensors = {name: rounded(torch.randn(shape, generator=generator) / 4, bits=8) for name, shape in shapes.items()}
    return {**tensors, "readout.bias": torch.tensor([0.5, 0.0, -0.5, 0.25])}


def reference(tensors, frames):
    """o_t of ``Net`` on the frames [T, F] of one sample, in plain numpy, float64."""
    w = {name: value.double().numpy() for name, value in tensors.items()}
    potential, logits = np.zeros(12), []
    for frame in frames:
        potential = potential / 2 + w["hidden.weight"] @ frame + w["hidden.bias"]
        spikes = potential >= 0.25
        potential = np.where(spikes, 0.0, potential)
        logits.append(w["readout.weight"] @ spikes + w["readout.bias"])
    return np.stack(logits)


def refused(answer, *words):
    """Exit code 2 and one line with these words."""
    assert answer.code == 2, answer
    (line,) = [text for text in answer.err.splitlines() if text.startswith("exitbench: ")]
    assert "Traceback" not in answer.err
    assert [word for word in words if word not in line] == [], line


def no_trace(folder):
    return list(folder.rglob("*.safetensors")) == []


# --- what is recorded ------------------------------------------------------------------------------------------------


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("model", "dataset", "channels"), [("nets:Net", "tiny-shapes", 1), ("nets:events", "tiny-events", 2)]
)
def test_a_trace_holds_what_the_network_says_of_every_sample_at_every_timestep(
    record, folder, model, dataset, channels
):
    checkpoint = {1: "net.pt", 2: "events.pt"}[channels]
    answer = record("--batch", 64, "--name", "mine", model=model, dataset=dataset, checkpoint=checkpoint)
    assert answer.code == 0, answer.err
    trace = load_trace(folder / "mine-test.safetensors")

    data = tiny_registry().find("datasets", dataset)
    split = data.split("test")
    assert torch.equal(trace.labels, split.labels)
    assert torch.equal(trace.sample_ids, split.sample_ids)
    encoded = data.encode(split.images, T)
    frames = encoded.expand(T, *encoded.shape) if data.constant_input else encoded
    frames = frames.flatten(2).double().numpy()  # [T, N, F]
    expected = np.stack([reference(weights(channels), frames[:, i]) for i in range(len(split))])
    assert (trace.logits.numpy() == expected).all()
    assert expected.std(axis=1).max() > 0.1

    assert trace.counts == {} and trace.macs_once is None
    assert "not counted; energies will be n/a" in answer.err
    assert trace.header["workload"] == "mine"
    variant, provenance = json.loads(trace.header["variant"]), json.loads(trace.header["provenance"])
    assert (variant["batch"], variant["dtype"]) == (64, "float32")
    assert provenance["model"] == model
    assert provenance["dataset"] == dataset
    assert provenance["data"] == split.digest
    assert provenance["timesteps"] == T
    assert len(provenance["weights"]) == len(provenance["checkpoint"]) == 64
    right = (trace.logits.double().sum(1).argmax(1) == trace.labels).double().mean()
    assert f"{100 * right:.2f} % after T = {T}" in answer.out


@pytest.mark.numerics
def test_every_form_of_a_checkpoint_gives_the_same_trace(record, folder):
    forms = {
        "plain.pt": weights(),
        "entry.pt": {"epoch": 3, "net": weights(), "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        "parallel.pt": {f"module.{name}": value for name, value in weights().items()},
    }
    for name, content in forms.items():
        torch.save(content, folder / name)
    torch.save(weights(), folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights(), folder / "weights.bin")  # told by its content, not its name
    found = set()
    for name in [*forms, "old.pt", "weights.bin"]:
        assert record(checkpoint=name).code == 0, name
        trace = load_trace(folder / "Net-test.safetensors")
        found.add((trace.digest, json.loads(trace.header["provenance"])["weights"]))
    assert len(found) == 1


@pytest.mark.parametrize("strategy", [("seenn-i",), ("seenn-ii", "--set", "epochs=1")])
def test_two_traces_can_be_replayed_by_strategies_that_look_at_inputs_too(record, exitbench, strategy):
    assert [record("--split", split).code for split in ("calibration", "test")] == [0, 0]
    traces = ("--calibration", "Net-calibration.safetensors", "--test", "Net-test.safetensors")
    answer = exitbench("replay", *traces, "--strategy", *strategy, "--plugin", TINY_PLUGIN, "--json", "scores.json")
    assert answer.code == 0, answer.err
    assert 0 < json.loads(Path("scores.json").read_text())["accuracy"] < 1


class Small(Dataset):
    """Thirteen samples of two numbers."""

    name, classes, input_shape, constant_input = "small", 2, (1, 1, 2), True
    licence = reference = "the tests"
    identity = {"name": "small"}

    def split(self, name):
        images = torch.arange(26, dtype=torch.uint8).reshape(13, 1, 1, 2)
        return ImageSplit(name, images, torch.arange(13) % 2, torch.arange(13) + 100)

    def encode(self, images, timesteps, frames=None):
        return images.float()


class InPlace(nn.Module):
    """Adds its input to what it has said so far, in place, and spoils the frame that it was given."""

    def reset(self):
        self.total = None

    def step(self, x):
        flat = x.flatten(1)
        self.total = flat.clone() if self.total is None else self.total.add_(flat)
        x.zero_()
        return self.total


@pytest.mark.numerics
@given(batch=st.integers(1, 15), timesteps=st.integers(1, 5))
def test_neither_batches_nor_work_in_place_change_what_is_recorded(batch, timesteps):
    trace = record_network(InPlace(), Small(), "test", timesteps, name="in place", batch=batch)
    image = torch.arange(26.0).reshape(13, 1, 2)
    assert torch.equal(trace.logits, image * torch.arange(1, timesteps + 1)[:, None])
    assert trace.sample_ids.tolist() == list(range(100, 113))


class Says(nn.Module):
    """Says what a function of (frame, t) says."""

    def __init__(self, say):
        super().__init__()
        self.say = say

    def reset(self):
        self.t = 0

    def step(self, x):
        self.t += 1
        return self.say(x.flatten(1), self.t)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.int64])
def test_logits_keep_their_type_and_spikes_become_numbers(dtype):
    trace = record_network(Says(lambda x, t: (x > 3 * t).to(dtype)), Small(), "test", T, name="spikes")
    kept = dtype if dtype.is_floating_point else torch.float32
    assert trace.logits.dtype == kept
    assert json.loads(trace.header["variant"])["dtype"] == str(kept).removeprefix("torch.")
    image = torch.arange(26.0).reshape(13, 1, 2)
    assert torch.equal(trace.logits.float(), (image > 3 * torch.arange(1, T + 1)[:, None]).float())


def test_a_network_in_half_precision_is_shown_frames_of_its_type():
    module = Says(lambda x, t: module.layer(x) * t)
    module.layer = nn.Linear(2, 2).half()
    assert record_network(module, Small(), "test", T, name="half").logits.dtype == torch.float16


def test_it_runs_in_evaluation_mode():
    module = Says(lambda x, t: module.drop(x) * t)
    module.drop = nn.Dropout(0.5)
    trace = record_network(module.train(), Small(), "test", T, name="dropout")
    assert torch.equal(trace.logits[:, 0], torch.arange(26.0).reshape(13, 2))


def test_what_needs_too_much_memory_is_recorded_in_smaller_batches(capfd):
    def say(x, t):
        if len(x) > 11:
            raise MemoryError
        return x * t

    trace = record_network(Says(say), Small(), "test", T, name="large", batch=13)
    assert torch.equal(trace.logits[:, 0], torch.arange(26.0).reshape(13, 2))
    assert json.loads(trace.header["variant"])["batch"] == 6
    assert "out of memory at batch 13" in capfd.readouterr().err


def test_a_reset_that_resets_nothing_is_warned_of(capfd):
    class Leaves(InPlace):
        total = None

        def reset(self):
            pass

        def step(self, x):
            self.total = x.flatten(1) + (self.total.mean() if self.total is not None else 0)
            return self.total

    record_network(Leaves(), Small(), "test", T, name="leaves")
    assert "warning: leaves: the same batch gave other logits after reset()" in capfd.readouterr().err


def test_a_network_without_memory_is_warned_of_and_a_sound_one_is_not(capfd):
    record_network(Says(lambda x, t: x), Small(), "test", T, name="flat")
    assert "warning: flat: the logits are the same at every timestep" in capfd.readouterr().err
    record_network(Says(lambda x, t: x * t), Small(), "test", T, name="sound")
    assert "warning" not in capfd.readouterr().err


def test_a_sample_with_nan_is_named():
    def say(x, t):
        return torch.where((x == 22) & (t == 2), torch.nan, x * t)

    with pytest.raises(UsageError, match=r"^late: logit 0 of timestep 2 is nan for sample 111 of small test; "):
        record_network(Says(say), Small(), "test", T, name="late", batch=1)


# --- checkpoints that are none ---------------------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("form", ["zip", "old", "pickle 0", "pickle 2", "pickle 4", "inside"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(record, folder, form, name):
    trap, place = folder / "trap", folder / "bombs" / name
    place.parent.mkdir()
    content = {**weights(), "more": Bomb(trap)} if form == "inside" else Bomb(trap)
    if form.startswith("pickle"):
        place.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, place, _use_new_zipfile_serialization=form != "old")
    answer = record("--output", "trace.st", checkpoint=place)
    refused(answer, str(place), "could run code", "not loaded", "state_dict() alone")
    assert len(answer.err.splitlines()) == 1
    assert not trap.exists()
    assert not (folder / "trace.st").exists()
    assert "nets" not in sys.modules  # refused before anything is imported
    if form.startswith("pickle"):  # and it was a bomb
        pickle.loads(place.read_bytes())
    else:
        with place.open("rb") as stream:
            torch.load(stream, weights_only=False)
    assert trap.is_dir()


def test_a_checkpoint_with_code_is_refused_though_torch_was_told_to_trust(record, folder, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Bomb(folder / "trap"), folder / "bomb.pt")
    refused(record(checkpoint="bomb.pt"), "posix.mkdir")
    assert not (folder / "trap").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def changed(**changes):
    return {name: value for name, value in {**weights(), **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["No such file"]),
        (lambda path: path.mkdir(), ["Is a directory"]),
        (lambda path: path.write_bytes(b""), ["neither safetensors nor what torch.save writes"]),
        (lambda path: path.write_text("weights, of course\n"), ["can't be read as plain tensors"]),
        (lambda path: (torch.save(weights(), path), cut(path)), ["neither safetensors nor what torch.save writes"]),
        (lambda path: (save_file(weights(), path), cut(path)), ["not a whole safetensors file"]),
        (lambda path: torch.save(nn.Linear(2, 2), path), ["torch.nn.modules.linear.Linear", "state_dict() alone"]),
        (lambda path: torch.save({"epoch": 3}, path), ["holds no state_dict"]),
        (lambda path: torch.save([1, 2], path), ["holds no state_dict"]),
        (lambda path: torch.save({"net": weights(), "ema": weights()}, path), ["several state_dicts (net, ema)"]),
        (lambda path: torch.save(changed(**{"readout.bias": None}), path), ["1 missing: readout.bias"]),
        (lambda path: torch.save(changed(extra=torch.ones(1)), path), ["1 unexpected: extra", "saved from"]),
        (
            lambda path: torch.save({f"net.{name}": value for name, value in weights().items()}, path),
            ["4 missing: hidden.weight, hidden.bias, readout.weight …", "4 unexpected: net.hidden.weight"],
        ),
        (
            lambda path: torch.save(changed(**{"hidden.bias": torch.ones(7)}), path),
            ["size mismatch for hidden.bias", "[7]", "[12]"],
        ),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line(record, folder, make, words):
    make(folder / "bad.pt")
    refused(record("--output", "trace.st", checkpoint="bad.pt"), "--checkpoint bad.pt: ", *words)
    assert not (folder / "trace.st").exists()


# --- modules, factories and networks that are none -------------------------------------------------------------------

FAULTS = {
    "broken": ("def f(:\n", ["SyntaxError", "broken.py, line 1"]),
    "raises": ("x = 1\nraise OSError('no disk')\n", ["importing it raised OSError: no disk (raises.py, line 2)"]),
    "leaves": ("import sys\nsys.exit(3)\n", ["SystemExit: 3"]),
    "needs": ("import not_here_at_all\n", ["it needs 'not_here_at_all', which isn't installed here"]),
    "wants": ("def make(classes): ...\n", ["called without arguments", "'classes'"]),
    "fails": ("def make():\n    return 1 / 0\n", ["ZeroDivisionError", "(fails.py, line 2)"]),
    "number": ("make = lambda: 7\n", ["gave a int", "torch.nn.Module"]),
    "other": ("from nets import Net\nmaker = Net\n", ["other.py has no 'make' (did you mean 'maker'?)"]),
}
STEPS = {
    "too few classes": ("return self.readout(x.flatten(1)[:, :12])[:, :3]", ["gave 3 classes, the data set has 4"]),
    "all timesteps": ("return torch.zeros(5, len(x), 4)", ["gave [5, 10, 4], expected [10, 4]"]),
    "no batch": ("return torch.zeros(4)", ["gave [4], expected [10, 4]"]),
    "one sample less": ("return torch.zeros(len(x) - 1, 4)", ["gave [9, 4], expected [10, 4]"]),
    "nothing": ("pass", ["gave NoneType, expected [10, 4]"]),
    "a tuple": ("return torch.zeros(len(x), 4), 1", ["gave tuple"]),
    "complex": ("return torch.zeros(len(x), 4, dtype=torch.complex64)", ["gave torch.complex64"]),
    "nan": ("return torch.full((len(x), 4), float('nan'))", ["logit 0 of timestep 1 is nan for sample 600"]),
    "inf": ("return torch.full((len(x), 4), float('inf'))", ["logit 0 of timestep 1 is inf for sample 600"]),
    "an error": ("return self.readout(x)", ["its step on a frame [10, 1, 8, 8] raised RuntimeError", "line 6"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_module_or_factory_that_fails_is_one_line_that_says_where(record, folder, name):
    source, words = FAULTS[name]
    (folder / f"{name}.py").write_text(source)
    refused(record(model=f"{name}:make"), f"--model {name}:make: ", *words)
    assert no_trace(folder)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_gives_no_logits_is_one_line_that_says_what_it_gave(record, folder, name):
    body, words = STEPS[name]
    source = f"import torch\nfrom nets import Net\n\nclass Other(Net):\n    def step(self, x):\n        {body}\n"
    (folder / "odd.py").write_text(source)
    refused(record(model="odd:Other"), "Other: ", *words)
    assert no_trace(folder)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("step = None", ["can't be run step by step", "reset() and step(x_t) -> o_t [B, K]", "docs/networks.md"]),
        ("reset = None", ["has step but no reset"]),
        ("def reset(self, batch): pass", ["its reset raised TypeError"]),
        ("def step(self, x, t): pass", ["its step on a frame", "raised TypeError"]),
    ],
)
def test_a_network_without_the_protocol_is_told_what_it_is(record, folder, body, words):
    (folder / "odd.py").write_text(f"from nets import Net\n\nclass Other(Net):\n    {body}\n")
    refused(record(model="odd:Other"), "Other: ", *words)
    assert no_trace(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["a workload of the suite or --model", "neither"]),
        (["fashion-direct", "--model", "nets:Net"], ["both: fashion-direct and --model nets:Net"]),
        (["fashion-direct", "--timesteps", "4"], ["--timesteps: goes with --model"]),
        (["fashion-direct", "--checkpoint", "net.pt"], ["--checkpoint: goes with --model"]),
        (["--model", "nets:Net", "--dataset", "digits", "--timesteps", "4"], ["needs --checkpoint too"]),
        (["--model", "nets:Net", "--checkpoint", "net.pt", "--timesteps", "4"], ["needs --dataset too"]),
        (["--model", "nets:Net", "--checkpoint", "net.pt", "--dataset", "digits"], ["needs --timesteps too"]),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(exitbench, folder, arguments, words):
    refused(exitbench("record", *arguments), *words)
    assert no_trace(folder)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--dropout", "0.1"], ["--dropout: goes with a workload"]),
        (["--per-layer"], ["--per-layer: goes with a workload"]),
        (["--suite", "cifar10"], ["--suite: goes with a workload"]),
        (["--split", "validation"], ["--split validation: it is train, calibration or test"]),
        (["--timesteps", "0"], ["'--timesteps'"]),
        (["--batch", "0"], ["'--batch'"]),
        (["--output", "not/there.safetensors"], ["its folder doesn't exist"]),
        (["--output", "."], ["is a folder; name a file"]),
        (["--dataset", "tiny-shape"], ["unknown data set 'tiny-shape'", "tiny-shapes"]),
        (["--model", "nets"], ["write package.module:factory"]),
        (["--model", "nets.py:Net"], ["no module named 'nets.py'", "current folder"]),
        (["--model", "not-a-name:Net"], ["write package.module:factory"]),
        (["--model", "nothing.here:Net"], ["no module named 'nothing'"]),
    ],
)
def test_a_flag_that_can_not_be_is_one_line(record, folder, more, words):
    refused(record(*more), *words)
    assert no_trace(folder)


# --- as people use it ------------------------------------------------------------------------------------------------


def test_a_process_finds_a_package_in_the_current_folder(folder):
    (folder / "package").mkdir()
    (folder / "package" / "deep.py").write_text("import nets\n\nclass Maker:\n    build = nets.Net\n")
    model = ("--model", "package.deep:Maker.build", "--checkpoint", "net.pt", "--dataset", "tiny-shapes")
    command = [sys.executable, "-P", "-m", "bench_core", "record", *model, "--timesteps", "2", "--plugin", TINY_PLUGIN]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(load_trace(folder / "Maker.build-test.safetensors")) == 300
    assert "record Maker.build test: 300/300 samples" in done.stderr


def test_the_example_of_the_documents_runs_as_it_stands(folder, exitbench, monkeypatch, tmp_path):
    write_training_images(tmp_path / "data", monkeypatch)  # of which it reads the first hundred
    python = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    (net,) = [block for block in python if "class LifNet" in block]
    (frames,) = [block for block in python if "load_registry" in block]
    (folder / "lif_net.py").write_text(net)
    monkeypatch.syspath_prepend(folder)
    torch.manual_seed(0)
    import lif_net

    (saving,) = re.findall(r"`(torch\.save\(.*?\))`\.", DOCS)
    exec(saving, {"torch": torch, "net": lif_net.LifNet()})
    shown = {}
    exec(frames, shown)
    assert shown["x"].shape == (100, 1, 28, 28)
    assert shown["y"].shape == (100,)

    (console,) = re.findall(r"```console\n(.*?)```", DOCS, flags=re.DOTALL)
    commands = [shlex.split(line) for line in console.replace("\\\n", " ").splitlines()]
    assert [command[:2] for command in commands] == [["exitbench", "record"]] * 2 + [["exitbench", "replay"]]
    for command in commands:
        answer = exitbench(*command[1:])
        assert answer.code == 0, answer.err
    assert "average exit timestep" in answer.out
    assert len(load_trace(folder / "LifNet-test.safetensors")) == 10_000


# --- a network is foreign code ---------------------------------------------------------------------------------------


class Unruly(nn.Module):
    """Changes the process whenever it is stepped."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 4)

    def reset(self):
        torch.set_default_dtype(torch.float64)

    def step(self, x):
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.manual_seed(0)
        os.environ["UNRULY"] = "1"
        return self.linear(x.flatten(1).float())


def test_a_network_leaves_the_process_as_it_was(capfd):
    network = Unruly()
    before = torch.get_rng_state(), torch.get_num_threads()
    trace = record_network(network, TinyShapes(), "test", 3, name="unruly")
    assert trace.logits.dtype == torch.float32
    assert (torch.get_default_dtype(), "UNRULY" in os.environ) == (torch.float32, False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert "network unruly changed PyTorch's default dtype" in capfd.readouterr().err


class Leaving(Unruly):
    """Ends the process when it is stepped."""

    def step(self, x):
        raise SystemExit(0)


def test_a_network_that_leaves_is_one_line():
    with pytest.raises(ExitBenchError, match=r"SystemExit|called sys\.exit\(0\)"):
        record_network(Leaving(), TinyShapes(), "test", 3, name="leaving")

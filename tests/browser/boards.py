"""Small boards for pages and reports, with traces and images, and with names that want escaping."""

import copy

import torch
from bench_plugins.baselines import Fixed, Stability
from bench_plugins.seenn_i import SeennI

from bench_core import Dataset, ImageSplit, Trace
from bench_core.board.board import Board
from bench_core.board.over_seeds import seed_table
from bench_core.board.tables import board_tables
from bench_core.board.under_shift import CLEAN, Condition, shift_table
from bench_core.costs.cmos45 import Cmos45
from bench_core.costs.memory import Memory
from bench_core.scoring.operating_points import OperatingPoint
from bench_core.scoring.scores import Contest, Entry, Recorded, WorkloadScores, halve, score_strategy
from bench_core.trace.files import save_trace
from tests.helpers.boards import write_board

POINTS = ("iso-accuracy:0.5", "budget:0.5")
SCRIPT = "<script>alert(1)</script>"
HOSTILE = 'a&b"</title>_$x%#{~^\\'
CLASSES, SIDE = 4, 6


class Squares(Dataset):
    """Grey images that say nothing; their licence lets them be shown."""

    name = "squares"
    classes = CLASSES
    input_shape = (1, SIDE, SIDE)
    constant_input = True
    licence = "MIT"
    reference = "computed by the tests"
    identity = {"name": "squares"}

    def split(self, name):
        first, count = {"calibration": (0, 200), "test": (200, 160)}[name]
        ids = torch.arange(first, first + count)
        images = (ids[:, None, None, None] * 37 % 256).to(torch.uint8).expand(-1, 1, SIDE, SIDE).contiguous()
        return ImageSplit(name, images, ids % CLASSES, ids)

    def encode(self, images, timesteps, frames=None):
        return images.float()


def recorded(split, timesteps, seed):
    """A trace that gets surer with time."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(split), timesteps, CLASSES)
    logits = torch.randn(shape, generator=draw, dtype=torch.float64).float()
    logits[torch.arange(len(split)), :, split.labels] += torch.rand(len(split), 1, generator=draw) * 2.0
    counts = {
        name: torch.randint(50, 90, shape[:2], generator=draw) for name in ("macs", "acs", "neuron_updates", "spikes")
    }
    return Trace(logits, split.labels, split.sample_ids, counts)


def corrupted(test, timesteps, seed):
    """The same samples as they are, and under two corruptions that leave more or less of the logits."""
    yield Condition(CLEAN, 0, Recorded(test))
    for number, (corruption, severity) in enumerate((c, s) for c in ("noise", "blur") for s in (1, 5)):
        other = recorded(Squares().split("test"), timesteps, 1000 * (seed + 1) + number)
        logits = test.logits + severity * other.logits * (0.5 if corruption == "blur" else 0.1)
        yield Condition(corruption, severity, Recorded(Trace(logits, test.labels, test.sample_ids)))


def make_board(*, suite="tiny", strategy="seenn-i", workload="first", seed=0, folder=None, whole=False):
    """A board of two workloads and four strategies; one of them failed on the second workload.

    Args:
        strategy, workload: names, to be any text.
        whole: with everything that only some boards have: the first workload from another seed, and corruption.
        folder: where to write it, traces included.
    """
    renamed = copy.copy(SeennI())
    renamed.name = strategy
    strategies = [Fixed(), Stability(), renamed, SeennI().with_parameters({"accumulate": "mean"})]
    points = [OperatingPoint.parse(point) for point in POINTS]
    scores, facts, specs, conditions = [], {}, [], {}
    networks = [(workload, 6, 0), ("second", 3, 0), *([(f"{workload} again", 6, 1)] if whole else [])]
    for number, (name, timesteps, trained_from) in enumerate(networks):
        calibration, test = (
            recorded(Squares().split(split), timesteps, 10 * seed + 2 * number + side)
            for side, split in enumerate(("calibration", "test"))
        )
        contest = Contest(*halve(Recorded(calibration)), Recorded(test))
        entries = [Entry(s.label, s.family_knob.name, score_strategy(s, contest, points)) for s in strategies]
        if number == 1:
            entries[1] = Entry("stability", "k", None, f"failed: ValueError: {SCRIPT}")
        digests = {"weights": "ab" * 32, "calibration_trace": calibration.digest, "test_trace": test.digest}
        scores.append(WorkloadScores(name, entries, test, digests))
        data = {split: Squares().split(split).digest for split in ("calibration", "test")}
        facts[name] = {**digests, "data": data, "licence": "MIT", "simulated": False}
        specs.append(
            {"name": name, "dataset": "squares", "model": "tiny", "timesteps": timesteps, "seed": trained_from}
        )
        if whole:
            conditions[name] = list(corrupted(test, timesteps, number))
            facts[name]["shift"] = {c.name: c.recorded.trace.digest for c in conditions[name] if c.severity}
        if folder is not None:
            (folder / "traces").mkdir(parents=True, exist_ok=True)
            for split, trace in (("calibration", calibration), ("test", test)):
                save_trace(trace, folder / "traces" / f"{name}-{split}.safetensors")
    tables = board_tables(suite, scores, points, [Cmos45(), Memory()], resamples=200, seed=0)
    manifest = {
        "schema": "exitbench.rows/1",
        "command": "exitbench run somewhere/on/a/disk.toml",
        "environment": {"exitbench": "0", "torch": "2", "python": "3"},
        "plugins": [{"name": "mine", "distribution": SCRIPT, "version": "1"}],
        "suite": {
            "name": suite,
            "title": f"Two networks {HOSTILE}",
            "latency": {"batch": 64},
            "seed": 0,
            "resamples": 200,
            "first_layer": "once",
            "operating_points": list(POINTS),
            "workloads": specs,
        },
        "workloads": facts,
    }
    board = Board(**tables, measurements=None, manifest=manifest)
    if whole:
        manifest["suite"]["shift"] = {"corruptions": ["noise", "blur"], "severities": [1, 5], "samples": 160}
        board.shift = shift_table(scores, conditions, resamples=200, seed=0)
        board.seeds = seed_table(tables["rows"], {workload: [workload, f"{workload} again"]})
    if folder is not None:
        write_board(board, folder)
    return board

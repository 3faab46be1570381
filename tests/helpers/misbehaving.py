"""Strategies that misbehave, each as the source of a plugin of its own, and what their rows are to say."""

from dataclasses import dataclass

from tests.helpers.suites import write_plugin

SOURCE = """
import contextlib, os, random, signal, sys, time, warnings
{imports}

class Misbehaving(ScoreStrategy):
    name = {name!r}
    reference = "test"
    family_knob = Knob("threshold", low=-1e9, high=1e9)

    def learn(self, calibration):
        {learn}
        return self

    def score(self, evidence):
        {score}
        return evidence.total.amax(1)

@hookimpl
def bench_exit_strategies():
    return [Misbehaving()]
"""


@dataclass(frozen=True)
class Case:
    """What a plugin does at its import, when it learns and when it scores.

    Attributes:
        status: what the status of its row begins with.
        said: what stderr says.
    """

    imports: str = ""
    learn: str = "pass"
    score: str = "pass"
    status: str = "ok"
    said: str = ""


_WRITES = "failed: writes into the calibration trace"
CASES = {
    # writes
    "writes-logits": Case(learn="calibration.trace.logits.sub_(1.0)", status=f"{_WRITES} (logits)"),
    "writes-with-numpy": Case(learn="calibration.trace.logits.numpy()[...] = 0.5", status=f"{_WRITES} (logits)"),
    "writes-labels": Case(learn="calibration.trace.labels.fill_(0)", status=f"{_WRITES} (labels)"),
    "writes-ids": Case(learn="calibration.trace.sample_ids.numpy()[:] = 7", status=f"{_WRITES} (sample_ids)"),
    "writes-counts": Case(learn="calibration.trace.counts['acs'].zero_()", status=f"{_WRITES} (acs)"),
    "writes-header": Case(learn="calibration.trace.header['split'] = 'test'", status=f"{_WRITES} (header)"),
    "writes-pieces": Case(learn="[piece.zero_() for _, piece in calibration.trace.pieces()]"),
    "writes-predictions": Case(learn="calibration.trace.correct.fill_(True); calibration.trace.predictions.zero_()"),
    "writes-evidence": Case(score="evidence.total.zero_(); evidence.step_logits.zero_(); evidence.mean.zero_()"),
    # the state of the process
    "sets-dtype": Case(learn="torch.set_default_dtype(torch.float64)", said="PyTorch's default dtype"),
    "sets-device": Case(score="torch.set_default_device('meta')", status="failed", said="function modes"),
    "sets-precision": Case("torch.set_float32_matmul_precision('medium')", said="PyTorch's float32 precision"),
    "sets-new-precision": Case(
        "torch.backends.mkldnn.conv.fp32_precision = 'bf16'", said="PyTorch's float32 precision"
    ),
    "turns-mkldnn-off": Case("torch.backends.mkldnn.enabled = False", said="mkldnn's flags"),
    "sets-threads": Case(learn="torch.set_num_threads(3)", said="PyTorch's number of threads"),
    "enters-inference-mode": Case("mode = torch.inference_mode()", learn="mode.__enter__()", said="inference mode"),
    "turns-grad-off": Case("torch.set_grad_enabled(False)", said="PyTorch's grad mode"),
    "wants-determinism": Case("torch.use_deterministic_algorithms(True)", said="deterministic algorithms"),
    "flushes-denormals": Case("torch.set_flush_denormal(True)", said="denormal"),
    "enters-autocast": Case(learn="torch.autocast('cpu').__enter__()", said="autocast"),
    "pushes-a-mode": Case(
        "from torch.overrides import TorchFunctionMode\nclass Half(TorchFunctionMode):\n    def __torch_function__"
        "(self, function, types, args=(), kwargs=None):\n        return function(*args, **(kwargs or {}))",
        learn="Half().__enter__()",
        said="function modes",
    ),
    "pushes-a-dispatch-mode": Case(
        "from torch.utils._python_dispatch import TorchDispatchMode\nclass Same(TorchDispatchMode):\n    def "
        "__torch_dispatch__(self, function, types, args=(), kwargs=None):"
        "\n        return function(*args, **(kwargs or dict()))",
        learn="Same().__enter__()",
        said="function modes",
    ),
    "seeds": Case("torch.manual_seed(0); np.random.seed(0); random.seed(0)", learn="torch.manual_seed(1)"),
    "numpy-raises": Case(learn="np.seterr(all='raise'); np.set_printoptions(precision=1)", said="NumPy's error state"),
    "changes-directory": Case(learn="os.chdir('/')", said="the working directory"),
    "changes-environment": Case("os.environ['OMP_NUM_THREADS'] = '7'; os.environ['TZ'] = 'Mars'", said="environment"),
    "ignores-signals": Case(
        "[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]",
        said="signal handlers",
    ),
    "warns-as-errors": Case("warnings.simplefilter('error')"),
    "shadows-modules": Case("sys.path.insert(0, '/nowhere')"),
    "replaces-print": Case("import builtins; builtins.print = lambda *_, **__: None", said="built-in functions"),
    # output
    "prints": Case("print('at import')", learn="print('learning\\x1b[2J')", score="sys.stdout.write('while scoring')"),
    "closes-stdout": Case(learn="sys.stdout.close(); sys.stderr.close(); os.close(1)", said="stdout"),
    "closes-the-first-stdout": Case(learn="sys.__stdout__.close()"),
    "redirects-stderr": Case(learn="os.dup2(os.open(os.devnull, os.O_WRONLY), 2)", said="stdout or stderr"),
    # leaving
    "exits": Case(score="sys.exit(0)", status="failed: called sys.exit(0)"),
    "exits-at-once": Case(learn="os._exit(0)", status="failed: called sys.exit(0)"),
    "quits": Case(learn="raise SystemExit", status="failed: called sys.exit(None)"),
    "interrupts": Case(score="raise KeyboardInterrupt", status="failed: raised KeyboardInterrupt"),
    "leaves-a-generator": Case(score="raise GeneratorExit('x')", status="failed: raised GeneratorExit: x"),
    "raises-its-own": Case(
        "class Own(BaseException): ...", learn="raise Own('two\\nlines')", status="failed: raised Own: two?lines"
    ),
    "borrows-an-error": Case(
        "from bench_core.errors import StoreError",
        score="raise StoreError('the disk is full')",
        status="failed: the disk",
    ),
    "forks": Case(learn="os.fork()"),
    "forks-while-scoring": Case(score="os.fork() if evidence.t == 1 else None"),
    # hanging and exhausting
    "sleeps": Case(score="time.sleep(1e6)", status="failed: didn't end within the limit of 0.04 minutes"),
    "spins-and-catches": Case(
        learn="exec('while True:\\n    with contextlib.suppress(Exception): time.sleep(0.001)', globals())",
        status="failed: didn't end within the limit",
    ),
    "wants-all-memory": Case(learn="torch.empty(1 << 52)", status="failed: RuntimeError"),
    "recurses": Case(score="self.score(evidence)", status="failed: RecursionError"),
    # wrong answers
    "draws": Case(
        score="return torch.rand(evidence.batch, dtype=torch.float64)", status="failed: its decisions differ"
    ),
    "draws-with-numpy": Case(
        score="return torch.from_numpy(np.random.default_rng().random(evidence.batch))",
        status="failed: its decisions differ",
    ),
    "gives-nan": Case(
        score="return evidence.total.amax(1) * float('nan')", status="failed: plugin gives-nan: score is NaN"
    ),
    "gives-a-shape": Case(score="return evidence.total", status="failed: plugin gives-a-shape: score must be a tensor"),
    "is-infinite": Case(score="return evidence.total.amax(1) * float('inf')"),
}


CRASHES = Case("import ctypes", score="ctypes.string_at(0)", status="failed: its worker died")  # with its process


def write_misbehaving(folder, cases):
    """Write a plugin file for every case, by name, and return their paths."""
    return [
        write_plugin(folder / f"{name.replace('-', '_')}.py", SOURCE.format(name=name, **_sources(case)))
        for name, case in cases.items()
    ]


def _sources(case):
    return {"imports": case.imports, "learn": case.learn, "score": case.score}

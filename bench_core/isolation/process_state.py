"""Process settings that foreign code may change and that results, output or later code depend on.

``restore`` compares the process with a snapshot, restores what differs, and names it. It covers PyTorch's settings of
precision, threads, modes and random numbers, NumPy's settings, and those of Python and the operating system.
"""

import _signal  # type: ignore[import-not-found]  # the C module, whose functions are many times faster than signal's
import builtins
import contextlib
import decimal
import gc
import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

__all__ = ["Snapshot", "restore", "snapshot"]


@dataclass(frozen=True)
class _Setting:
    """One setting.

    Attributes:
        name: as messages show it.
        read: returns its value, which supports ``==``.
        write: sets it to a value that ``read`` returned.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


@dataclass(frozen=True)
class Snapshot:
    """The settings of a process at one moment."""

    values: Mapping[str, Any]
    streams: tuple[TextIO, TextIO, TextIO]
    descriptors: Mapping[int, int]  # duplicates of the descriptors of stdout and stderr
    modes: tuple[int, int]


def snapshot() -> Snapshot:
    """Read all settings. Pass the result to ``restore`` exactly once, which closes the descriptors it holds."""
    descriptors = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed
            descriptors[number] = os.dup(number)
    streams = sys.stdin, sys.stdout, sys.stderr
    return Snapshot({one.name: one.read() for one in _SETTINGS}, streams, descriptors, _modes())


def restore(before: Snapshot) -> list[str]:
    """Restore every setting that differs from a snapshot, and return the names of those that did.

    Settings that libraries change on import, and random states, are restored as well but not named.
    """
    changed = _restore_streams(before)
    if _modes() != before.modes:
        _pop_modes(before.modes)
        changed.append("PyTorch's function modes")
    for setting in _SETTINGS:
        value = before.values[setting.name]
        if setting.read() != value:
            try:
                setting.write(value)
            except (RuntimeError, ValueError, OSError, locale.Error):
                changed.append(f"{setting.name} (can't be put back)")
                continue
            if setting.name not in _UNNAMED:
                changed.append(setting.name)
    return changed


# --- PyTorch ---------------------------------------------------------------------------------------------------------

_PRECISIONS = tuple(
    (backend, operation)
    for backend, operations in (
        ("generic", ("all",)),
        ("mkldnn", ("all", "matmul", "conv", "rnn")),
        ("cuda", ("all", "matmul", "conv", "rnn")),
    )
    for operation in operations
)
_SMALLEST = torch.tensor([2.0**-149])


def _read_precision() -> tuple[str, ...]:
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the new API, which the old one can't express
        old = ""
    get = torch._C._get_fp32_precision_getter
    return (old, *(get(*place) for place in _PRECISIONS))


def _write_precision(value: tuple[str, ...]) -> None:
    old, *precisions = value
    assign = torch._C._set_fp32_precision_setter
    for place in _PRECISIONS:
        assign(*place, "none")
    if old:
        torch.set_float32_matmul_precision(old)
    for place, precision in zip(_PRECISIONS, precisions, strict=True):
        assign(*place, precision)


def _read_mkldnn() -> tuple[bool, ...]:
    backend = torch._C
    return (
        backend._get_mkldnn_enabled(),
        backend._get_mkldnn_deterministic(),
        backend._get_onednn_allow_tf32(),
    )


def _write_mkldnn(value: tuple[bool, ...]) -> None:
    backend, now = torch._C, _read_mkldnn()
    setters = (backend._set_mkldnn_enabled, backend._set_mkldnn_deterministic, backend._set_onednn_allow_tf32)
    for setter, wanted, found in zip(setters, value, now, strict=True):
        if wanted != found:  # some processors refuse TF32 even if nothing changes
            setter(wanted)


_CUDNN = ("enabled", "benchmark", "deterministic", "allow_tf32")


def _read_cudnn() -> tuple[bool, ...]:
    return tuple(_quietly(getattr, torch.backends.cudnn, name) for name in _CUDNN)


def _write_cudnn(value: tuple[bool, ...]) -> None:
    for name, flag in zip(_CUDNN, value, strict=True):
        _quietly(setattr, torch.backends.cudnn, name, flag)


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call, or return None if PyTorch refuses because old and new precision settings were mixed."""
    try:
        return call(*arguments)
    except RuntimeError:
        return None


def _read_determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _write_determinism(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _read_autocast() -> tuple[Any, ...]:
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cuda")


def _write_autocast(value: tuple[Any, ...]) -> None:
    torch.set_autocast_enabled("cpu", value[0])
    torch.set_autocast_dtype("cpu", value[1])
    torch.set_autocast_enabled("cuda", value[2])


_switches: list[torch.inference_mode] = []


def _write_inference(value: bool) -> None:
    switch = torch.inference_mode(value)  # the only way to switch it outside a block
    switch.__enter__()
    _switches.append(switch)  # garbage collection would switch it back


def _write_device(value: torch.device) -> None:
    torch.set_default_device(None if value.type == "cpu" else value)


def _flushes_denormals() -> bool:
    return bool((_SMALLEST * 1.0).item() == 0.0)


def _read_print_options() -> dict[str, Any]:
    return dict(vars(torch._tensor_str.PRINT_OPTS))


def _write_print_options(value: dict[str, Any]) -> None:
    for name, option in value.items():
        setattr(torch._tensor_str.PRINT_OPTS, name, option)


def _modes() -> tuple[int, int]:
    """Return the number of active function modes and dispatch modes."""
    core = torch._C
    return core._len_torch_function_stack(), core._len_torch_dispatch_stack()


def _pop_modes(before: tuple[int, int]) -> None:
    core = torch._C
    while core._len_torch_function_stack() > before[0]:
        core._pop_torch_function_stack()
    while core._len_torch_dispatch_stack() > before[1]:
        core._pop_torch_dispatch_stack(None)


_TORCH = (
    _Setting("PyTorch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("PyTorch's default device", torch.get_default_device, _write_device),
    _Setting("PyTorch's float32 precision", _read_precision, _write_precision),
    _Setting("mkldnn's flags", _read_mkldnn, _write_mkldnn),
    _Setting("cudnn's flags", _read_cudnn, _write_cudnn),
    _Setting("PyTorch's number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("PyTorch's number of interop threads", torch.get_num_interop_threads, torch.set_num_interop_threads),
    _Setting("PyTorch's inference mode", torch.is_inference_mode_enabled, _write_inference),
    _Setting("PyTorch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting("PyTorch's autocast", _read_autocast, _write_autocast),
    _Setting("PyTorch's deterministic algorithms", _read_determinism, _write_determinism),
    _Setting("PyTorch's anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    _Setting("flushing of denormal numbers", _flushes_denormals, torch.set_flush_denormal),
    _Setting("PyTorch's print options", _read_print_options, _write_print_options),
    _Setting(
        "PyTorch's random state",
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda value: torch.set_rng_state(torch.frombuffer(bytearray(value), dtype=torch.uint8)),
    ),
)

# --- NumPy -----------------------------------------------------------------------------------------------------------


def _read_numpy_random() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  # for code that still uses the legacy state
    return (name, np.asarray(keys).tobytes(), *rest)


def _write_numpy_random(value: tuple[Any, ...]) -> None:
    name, keys, *rest = value
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))  # noqa: NPY002


_NUMPY = (
    _Setting("NumPy's error state", np.geterr, lambda value: np.seterr(**value)),
    _Setting("NumPy's error handler", np.geterrcall, np.seterrcall),
    _Setting("NumPy's print options", np.get_printoptions, lambda value: np.set_printoptions(**value)),
    _Setting("NumPy's random state", _read_numpy_random, _write_numpy_random),
)

# --- Python and the operating system ---------------------------------------------------------------------------------

_SIGNALS = tuple(sorted(map(int, signal.valid_signals())))


def _read_cwd() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # removed
        return None


def _write_cwd(value: str | None) -> None:
    if value is not None:
        os.chdir(value)


def _read_environment() -> dict[bytes, bytes]:
    return dict(os.environb._data)  # type: ignore[attr-defined]  # faster than encoding entry by entry


def _write_environment(value: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - value.keys():
        del os.environb[name]
    for name, text in value.items():
        if os.environb.get(name) != text:
            os.environb[name] = text


def _read_handlers() -> tuple[Any, ...]:
    return tuple(map(_signal.getsignal, _SIGNALS))


def _write_handlers(value: tuple[Any, ...]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread can have changed them
    for number, handler in zip(_SIGNALS, value, strict=True):
        if handler is not None and _signal.getsignal(number) != handler:
            _signal.signal(number, handler)


def _is_timer_set() -> bool:
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _write_timer(value: bool) -> None:
    if not value:  # an earlier timer keeps running; its remaining time can't be derived from the code's duration
        signal.setitimer(signal.ITIMER_REAL, 0)


def _write_path(value: list[str]) -> None:
    """Restore the order of the import path; additions come last, since their modules may be imported later."""
    sys.path[:] = [*value, *(entry for entry in sys.path if entry not in value)]


def _read_path() -> list[str]:
    return list(sys.path)


def _write_warnings(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _read_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _read_affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _write_affinity(value: set[int]) -> None:
    os.sched_setaffinity(0, value)


def _read_decimal() -> tuple[int, str]:
    context = decimal.getcontext()
    return context.prec, context.rounding


def _write_decimal(value: tuple[int, str]) -> None:
    context = decimal.getcontext()
    context.prec, context.rounding = value


def _read_collector() -> tuple[bool, tuple[int, int, int]]:
    return gc.isenabled(), gc.get_threshold()


def _write_collector(value: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


_HOOKS = ("excepthook", "unraisablehook", "displayhook", "breakpointhook")
_BUILTINS = (
    "print",
    "open",
    "input",
    "exit",
    "quit",
    "sum",
    "min",
    "max",
    "round",
    "sorted",
    "float",
    "int",
    "__import__",
)


def _read_hooks() -> tuple[Any, ...]:
    hooks = (getattr(sys, name) for name in _HOOKS)
    return (*hooks, threading.excepthook, *(getattr(builtins, name, None) for name in _BUILTINS))


def _write_hooks(value: tuple[Any, ...]) -> None:
    for name, hook in zip(_HOOKS, value, strict=False):
        setattr(sys, name, hook)
    threading.excepthook = value[len(_HOOKS)]
    for name, function in zip(_BUILTINS, value[len(_HOOKS) + 1 :], strict=True):
        if function is not None:
            setattr(builtins, name, function)


_PYTHON = (
    _Setting("Python's random state", random.getstate, random.setstate),
    _Setting("the working directory", _read_cwd, _write_cwd),
    _Setting("environment variables", _read_environment, _write_environment),
    _Setting("signal handlers", _read_handlers, _write_handlers),
    _Setting("the alarm timer", _is_timer_set, _write_timer),
    _Setting("warning filters", lambda: list(warnings.filters), _write_warnings),
    _Setting("the order of sys.path", _read_path, _write_path),
    _Setting(
        "the locale", lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)
    ),
    _Setting("the decimal context", _read_decimal, _write_decimal),
    _Setting("the garbage collector", _read_collector, _write_collector),
    _Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting("the umask", _read_umask, os.umask),
    _Setting("the processors it may use", _read_affinity, _write_affinity),
    _Setting("hooks and built-in functions", _read_hooks, _write_hooks),
)

_SETTINGS = (*_TORCH, *_NUMPY, *_PYTHON)
_UNNAMED = {  # libraries change them on import, and all code draws random numbers
    "PyTorch's random state",
    "NumPy's random state",
    "Python's random state",
    "the order of sys.path",
    "warning filters",
}


def _restore_streams(before: Snapshot) -> list[str]:
    """Restore stdin, stdout and stderr, both the objects and the files that their descriptors refer to."""
    changed = set()
    for number, kept in before.descriptors.items():
        try:
            same = os.path.sameopenfile(number, kept)
        except OSError:  # closed
            same = False
        if not same:
            os.dup2(kept, number)
            changed.add("stdout or stderr")
        os.close(kept)
    for name, stream in zip(("stdin", "stdout", "stderr"), before.streams, strict=True):
        if getattr(sys, name) is not stream:
            setattr(sys, name, stream)
            changed.add(name)
    return sorted(changed)

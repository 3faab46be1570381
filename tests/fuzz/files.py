"""Damaged and hostile files, a great many: trace loader, suite parser and bundle unpacker take them or refuse them.

    python -m tests.fuzz.files [--cases 100000] [--seed 0]

Valid files are mutated, half of them by bytes and half by their meaning (headers with other shapes, offsets and names,
TOML values, tar fields, with the checksums put right so that the next check is reached). Each case is either accepted
or refused with the documented error, in one line. What else can happen is a failure: another exception, more than five
seconds, memory (the whole process is limited), a file opened for writing, made, renamed or removed outside the store,
and code executed, loaded or started (Python's audit events tell).
"""

import argparse
import copy
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from bench_core.errors import ExitBenchError, StoreError, SuiteError, TraceError
from bench_core.run.suite import SHIPPED, load_suite
from bench_core.store.inventory import describe, entries, verify
from bench_core.store.local import Store
from bench_core.trace.bundles import export_bundle, import_bundle
from bench_core.trace.files import load_trace
from bench_core.trace.trace import SCHEMA
from bench_core.util.digests import json_digest

SECONDS_PER_CASE = 5.0
MEMORY = 2 << 30  # bytes that may be claimed beside what the libraries take
NUMBERS = (0, 1, 2, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32, 10**12, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63))
WORDS = (
    "",
    "0",
    "-1",
    "1e999",
    "NaN",
    "null",
    "true",
    "[]",
    "{}",
    "../../escaped",
    "/tmp/escaped",
    "\x00",
    "\n",
    "é",
    "💥",
    "\ud800",
    "\x1b[2J",
)
WRITING = {  # events, and which of their arguments is the folder that a path is relative to
    "os.mkdir": 2,
    "os.rename": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.chmod": 2,
    "os.truncate": 0,
}
EXECUTING = {
    "compile",
    "ctypes.dlopen",
    "exec",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "subprocess.Popen",
}


class HangError(Exception):
    """A case took too long."""


@dataclass
class Target:
    """What is given damaged files.

    Attributes:
        name: as printed.
        seeds: valid files.
        suffix: of the file that a case is written to.
        mutate: a mutation by meaning.
        take: reads the file.
        errors: those that it is documented to raise.
    """

    name: str
    seeds: list[bytes]
    suffix: str
    mutate: Callable[[bytes, random.Random], bytes]
    take: Callable[[Path], object]
    errors: tuple[type[ExitBenchError], ...]
    counts: Counter[str] = field(default_factory=Counter)


class Watch:
    """Tells, by Python's audit events, what a case did that it has no business to do."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = str(allowed)
        self.active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "exec" and Path(arguments[0].co_filename).is_relative_to(sys.base_prefix):
            return  # the standard library imports a module of its own when first needed
        if event in EXECUTING:
            self.seen.append(f"{event}{arguments!r:.200}")
        elif event in WRITING or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3):
            base = Path.cwd()
            if WRITING.get(event) and arguments[WRITING[event]] >= 0:  # relative to an open folder
                base = Path(f"/proc/self/fd/{arguments[WRITING[event]]}").resolve()
            for path in arguments[: 2 if event == "os.rename" else 1]:
                if isinstance(path, str | bytes | os.PathLike):
                    place = os.path.realpath(base / os.fsdecode(path))
                    if not place.startswith(self.allowed):
                        self.seen.append(f"{event} {place:.80}")


# --- mutations -------------------------------------------------------------------------------------------------------


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, doubled, moved or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 600) + 1)
        length = rng.choice((1, 1, 2, 8, 64, 512))
        match rng.randrange(7):
            case 0:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                data[place:place] = rng.randbytes(length)
            case 4:
                data[place : place + 8] = struct.pack("<Q", rng.choice(NUMBERS) % 2**64)
            case 5:
                text = rng.choice((str(rng.choice(NUMBERS)), rng.choice(WORDS))).encode()
                data[place : place + len(text)] = text
            case 6:
                del data[place:]
    return bytes(data)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with something in it changed: a leaf, a name, a list's length."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        changed = dict(value)
        name = rng.choice(sorted(changed))
        match rng.randrange(8):
            case 0:
                del changed[name]
            case 1:
                changed[rng.choice(WORDS)] = changed.pop(name)
            case 2:
                changed[name] = changed[rng.choice(sorted(changed))]
            case _:
                changed[name] = mutate_value(changed[name], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        changed_list = list(value)
        place = rng.randrange(len(changed_list))
        match rng.randrange(6):
            case 0:
                del changed_list[place]
            case 1:
                changed_list.insert(place, copy.deepcopy(changed_list[place]))
            case _:
                changed_list[place] = mutate_value(changed_list[place], rng)
        return changed_list
    choices: list[Any] = [
        rng.choice(NUMBERS),
        rng.choice(WORDS),
        None,
        True,
        [],
        {},
        1.5,
        float("nan"),
        [value],
        {"a": value},
    ]
    if isinstance(value, str):
        choices += [value[:-1], value + "0", value.upper(), value * 50, _nested(rng)]
        with suppress(ValueError, RecursionError):
            choices.append(json.dumps(mutate_value(json.loads(value), rng)) if value[:1] in "[{" else value)
    if isinstance(value, int):
        choices += [value + 1, value - 1, -value, value * 2, float(value)]
    return rng.choice(choices)


def _nested(rng: random.Random) -> str:
    return rng.choice(("[", '{"a":')) * rng.choice((50, 900, 1000, 1100, 5000, 100_000))


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_safetensors(header: dict[str, Any], data: bytes) -> bytes:
    """A file with this header, whether it holds together or not."""
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A trace or artifact with another header, or other data of the right size."""
    header, data = split_safetensors(content)
    tensors = [name for name in header if name != "__metadata__"]
    name = rng.choice(tensors)
    entry = dict(header[name])
    match rng.randrange(8):
        case 0:  # another type, or shape of the same size
            entry["dtype"] = rng.choice(
                ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X9")
            )
        case 1:
            shape = list(entry["shape"])
            rng.shuffle(shape)
            entry["shape"] = shape + [1] * rng.randrange(3)
        case 2:  # claims
            entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
        case 3:
            entry["data_offsets"] = [rng.choice((*entry["data_offsets"], *NUMBERS)) for _ in range(2)]
        case 4:  # nothing there, however many samples it claims
            entry |= {"shape": [rng.choice(NUMBERS), 0, 4], "data_offsets": [0, 0]}
        case 5:
            values = bytearray(data)
            for _ in range(rng.randrange(1, 9)):
                place = rng.randrange(len(values) // 8) * 8 if len(values) >= 8 else 0
                values[place : place + 8] = rng.choice((b"\xff" * 8, b"\x00\x00\xc0\x7f" * 2, struct.pack("<q", -1)))
            data = bytes(values[: len(data)])
        case 6 if "__metadata__" in header:
            header["__metadata__"] = mutate_value(header["__metadata__"], rng)
        case _:
            return join_safetensors(mutate_value(header, rng), data)
    return join_safetensors({**header, name: entry}, data)


def mutate_toml(content: bytes, rng: random.Random) -> bytes:
    """A suite with another value, a line lost or doubled, or brackets that never end."""
    lines = content.decode().splitlines()
    place = rng.randrange(len(lines))
    key = lines[place].partition("=")[0]
    values = [line.partition("=")[2].strip() for line in lines if "=" in line]
    match rng.randrange(7):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[place])
        case 2:
            lines[place] = f"{key}= {rng.choice(values)}"
        case 3:
            lines[place] = f"{key}= {rng.choice((*map(str, NUMBERS), 'nan', 'inf', '-0.0', '1979-05-27', '[]', '{}'))}"
        case 4:
            lines[place] = f"{key}= {json.dumps(rng.choice(WORDS))}"
        case 5:
            lines[place] = f"{key}= {rng.choice(('[', '{ a = '))}".ljust(rng.choice((50, 900, 3000)), "[")
        case 6:
            parsed = tomllib.loads(content.decode())
            lines = [f"{name} = {_toml(item)}" for name, item in mutate_value(parsed, rng).items() if item is not None]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)


def mutate_bundle(content: bytes, rng: random.Random) -> bytes:
    """A bundle with hostile members, other sizes, or other content under digests that are right again."""
    with tarfile.open(fileobj=io.BytesIO(content)) as bundle:
        members = [(member, bundle.extractfile(member).read()) for member in bundle]  # type: ignore[union-attr]
    manifest = json.loads(members[0][1])
    place = rng.randrange(len(members))
    member, data = members[place]
    match rng.randrange(8):
        case 0:
            member.name = rng.choice(("../../escaped", "/tmp/escaped", "traces/../../x", *WORDS, member.name + "x"))
        case 1:
            member.type = rng.choice(
                (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
            )
            member.linkname = rng.choice(("/etc/passwd", "../../x", member.name))
        case 2:
            member.type = rng.choice((tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"?"))
        case 3:  # claims
            head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
            head[124:136] = rng.choice(
                (b"77777777777\0", b"\x80" + b"\0" * 6 + b"\x10" + b"\0" * 4, b"\xff" * 12, b"0\0" * 6)
            )
            head[148:156] = b"%06o\0 " % (sum(head[:148]) + 256 + sum(head[156:512]))
            start = content.index(member.name.encode())
            return content[:start] + bytes(head) + content[start + 512 :]
        case 4:
            members[0] = (members[0][0], json.dumps(mutate_value(manifest, rng)).encode())
        case 5 if place:  # another artifact, sealed and listed as if it were the one
            data = mutate_safetensors(data, rng)
            if rng.random() < 0.7:
                data = reseal(data)
            record = manifest["artifacts"][place - 1]
            record |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            members[0] = (members[0][0], json.dumps(manifest).encode())
            members[place] = (member, data)
        case 6:
            rng.shuffle(members)
        case _:
            members[place] = (member, mutate_bytes(data, rng))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as bundle:
        for info, body in members:
            info.size = len(body)
            with suppress(ValueError):  # a name that no tar can hold
                bundle.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def reseal(content: bytes) -> bytes:
    """An artifact whose digests are those of its content again, so that what lies behind them is reached."""
    from safetensors.torch import load

    from bench_core.util.digests import tensors_digest

    try:
        header, data = split_safetensors(content)
        strings = dict(header["__metadata__"])
        record = json.loads(strings.pop("artifact"))
        record["content"] = tensors_digest(load(content))
        facts = {name: value for name, value in record.items() if name != "seal"}
        record["seal"] = json_digest({"record": facts, "header": strings})
        header["__metadata__"] = {**strings, "artifact": json.dumps(record)}
        return join_safetensors(header, data)
    except Exception:  # too broken to be sealed
        return content


# --- valid files -----------------------------------------------------------------------------------------------------


def trace_seeds() -> list[bytes]:
    """Traces of all kinds: the least there can be, with every count, with layers, in half precision."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 3, 4, generator=generator), torch.tensor([0, 3, 1, 2, 0])
    counts = {name: torch.arange(15).reshape(5, 3) for name in ("macs", "acs", "neuron_updates", "spikes")}
    layers = {
        "layer_acs": torch.ones(5, 3, 2, dtype=torch.int64),
        "layer_spikes": torch.ones(5, 3, 2, dtype=torch.int64),
    }
    header = {
        "schema": SCHEMA,
        "workload": "w",
        "split": "test",
        "variant": '{"batch": 100}',
        "provenance": '{"a": [1]}',
    }
    told = {**header, "layers": '[{"name": "a", "size": 3}, {"name": "b", "size": 5}]'}
    every = {"logits": logits, "labels": labels, "sample_ids": torch.arange(5), "macs_once": torch.arange(5), **counts}
    return [
        save({"logits": logits, "labels": labels}),
        save(every, header),
        save({**every, **layers}, told),
        save({"logits": logits.half(), "labels": labels.to(torch.uint8)}, header),
    ]


def suite_seeds() -> list[bytes]:
    """The shipped suites."""
    return [path.read_bytes() for path in sorted(SHIPPED.glob("*.toml"))]


def bundle_seeds(folder: Path) -> list[bytes]:
    """A bundle with an artifact of every kind."""
    store = Store(folder / "seed-store", zoo=None)
    generator = torch.Generator().manual_seed(0)
    spec = {"workload": {"name": "w", "seed": 0}, "history": []}
    store.put("networks", json_digest("n"), {"weight": torch.randn(3, 2, generator=generator)}, spec)
    trace = {"logits": torch.randn(5, 3, 4, generator=generator), "labels": torch.tensor([0, 3, 1, 2, 0])}
    header = {"schema": SCHEMA, "workload": "w", "split": "test", "variant": "{}"}
    store.put("traces", json_digest("t"), trace, header=header)
    record = {"calibration": {"trace": json_digest("t")}, "made_from": {"strategy": "s"}}
    store.put("policies", json_digest("p"), {"bias": torch.zeros(2)}, record)
    export_bundle(entries(store), folder / "seed.tar")
    return [(folder / "seed.tar").read_bytes()]


def targets(folder: Path) -> list[Target]:
    """Trace loader, suite parser and bundle unpacker; the last works in a store below ``folder``."""
    store = Store(folder / "store", zoo=None)

    def unpack(path: Path) -> None:
        shutil.rmtree(store.root, ignore_errors=True)
        refused: StoreError | None = None
        try:
            import_bundle(path, store)
        except StoreError as error:
            refused = error
        if refused is not None:
            assert not [p for p in store.root.rglob("*") if p.is_file()], "refused, and yet something is there"
            raise refused
        assert verify(store)[1] == [], "accepted, and yet damaged"
        for entry in entries(store):
            with suppress(StoreError):
                json.dumps(describe(entry)).encode()
            entry.what.encode()

    return [
        Target("trace loader", trace_seeds(), ".safetensors", mutate_safetensors, load_trace, (TraceError,)),
        Target("suite parser", suite_seeds(), ".toml", mutate_toml, lambda path: load_suite(str(path)), (SuiteError,)),
        Target("bundle unpacker", bundle_seeds(folder), ".tar", mutate_bundle, unpack, (StoreError,)),
    ]


# --- the loop --------------------------------------------------------------------------------------------------------


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise HangError in what takes more of the processor's time, or twenty times as long by the clock."""

    def stop(_signal: int, _frame: object) -> None:
        raise HangError(f"more than {seconds} s")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 20 * seconds)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def try_case(target: Target, content: bytes, path: Path, watch: Watch | None = None) -> str:
    """What becomes of one file: "accepted", "refused", or what went wrong."""
    path.write_bytes(content)
    outcome = "accepted"
    try:
        with time_limit(SECONDS_PER_CASE):
            if watch is not None:
                watch.seen.clear()
                watch.active = True
            try:
                target.take(path)
            finally:
                if watch is not None:
                    watch.active = False
    except target.errors as error:
        line = str(error)
        outcome = "refused"
        if not line or not line.isprintable() or len(line) > 2000:
            outcome = f"a message that is no plain line: {line!r:.300}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = f"{type(error).__name__}: {error!s:.300}"
    if watch is not None and watch.seen:
        outcome = f"did what it mustn't: {watch.seen[0]}"
    return outcome


def fuzz(
    folder: Path, cases: int, seed: int, report: Callable[[str], None] = print, *, watched: bool = True
) -> dict[str, Counter[str]]:
    """Give each target its share of ``cases``; "accepted", "refused" and failures by target."""
    found = {}
    watch = Watch(folder) if watched else None
    for number, target in enumerate(targets(folder)):
        rng = random.Random(f"{seed} {number}")
        start = time.perf_counter()
        for content in target.seeds:
            assert try_case(target, content, folder / f"case{target.suffix}") == "accepted", target.name
        for case in range(cases // 3 + (number < cases % 3)):
            content = rng.choice(target.seeds)
            for _ in range(rng.choice((1, 1, 1, 2))):
                with suppress(Exception):  # what is broken already may be too broken for another change by meaning
                    content = (target.mutate if rng.random() < 0.5 else mutate_bytes)(content, rng)
            outcome = try_case(target, content, folder / f"case{target.suffix}", watch)
            if outcome not in ("accepted", "refused"):
                report(f"{target.name}, case {case}: {outcome}")
                kept = folder / f"failed-{number}-{case}{target.suffix}"
                kept.write_bytes(content)
                outcome = "failed"
            target.counts[outcome] += 1
        counts = target.counts
        report(
            f"{target.name:16s} {sum(counts.values()):7d} cases: {counts['refused']} documented errors, "
            f"{counts['accepted']} accepted, {counts['failed']} failures, {time.perf_counter() - start:.0f} s"
        )
        found[target.name] = counts
    return found


def limit_memory(beside: int = MEMORY) -> None:
    """Let this process claim no more than ``beside`` bytes in addition to what it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + beside
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="copy files that failed into this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limit_memory()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        folder = Path(scratch).resolve()
        found = fuzz(folder, arguments.cases, arguments.seed)
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("failed-*"):
                shutil.copy(path, arguments.keep)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    total = sum(found.values(), Counter())
    print(
        f"all: {sum(total.values())} cases, seed {arguments.seed}: {total['refused']} documented errors, "
        f"{total['accepted']} accepted, {total['failed']} failures; peak memory {peak:.0f} MiB"
    )
    sys.exit(bool(total["failed"]))


if __name__ == "__main__":
    main()

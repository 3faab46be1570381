"""Changes by meaning: other values in JSON and csv, other members in archives, other claims in headers."""

import io
import json
import random
import tarfile
import zipfile
from contextlib import suppress

from tests.fuzz.files import NUMBERS, mutate_bytes, mutate_value

__all__ = ["mutate_csv", "mutate_json", "mutate_npy", "mutate_numbers", "mutate_tar", "mutate_zip"]

CELLS = ("", "nan", "NA", "inf", "-inf", "1e999", "-1", "0", "0x10", "True", "1,2", "[]", "{}", "null", "[1e400]")
CELLS += ('"', "'", "'=1", "=cmd|' /C calc'!A0", "@x", "\t", "\r", "\x00", "\x1b[2J", "\u202e", "é", "9" * 400)
CELLS += (
    "x" * 300,
    "[[]]",
    "[null]",
    '["a"]',
    '{"a": 1}',
    "[0, 0]",
    "1e308",
    "-1e308",
    "5e-324",
    "9223372036854775808",
)
NAMES = ("../up", "/etc/passwd", "a\\b", "x" * 300, "\x1b[2J", "a\nb", "\u202e", "é", "", ".", "a/b/c", "CON")
HEADERS = ("path", "size", "mtime", "GNU.sparse.map", "hdrcharset")


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file with another value in it, or in brackets that never end."""
    if rng.random() < 0.02:
        return b'{"files":' * rng.choice((100, 5_000, 100_000))
    return json.dumps(mutate_value(json.loads(content), rng)).encode()


def mutate_csv(content: bytes, rng: random.Random) -> bytes:
    """A table with other cells, columns or rows."""
    lines = content.decode("utf-8", "replace").split("\n")
    place = rng.randrange(len(lines))
    cells = lines[place].split(",")
    cell = rng.randrange(len(cells))
    match rng.randrange(9):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[place])
        case 2:
            del cells[cell]
            lines[place] = ",".join(cells)
        case 3:
            cells[cell] = str(rng.choice(NUMBERS))
            lines[place] = ",".join(cells)
        case 4:
            other = rng.choice(lines).split(",")
            cells[cell] = rng.choice(other)
            lines[place] = ",".join(cells)
        case 5:
            lines[place] += ",1"
        case 6:
            rng.shuffle(lines)
        case _:
            cells[cell] = rng.choice(CELLS)
            lines[place] = ",".join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_tar(content: bytes, rng: random.Random) -> bytes:
    """A tar archive with members of other names, kinds and claims."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    member, data = members[rng.randrange(len(members))]
    match rng.randrange(5):
        case 0:
            member.name = rng.choice((*NAMES, "a\udcff.bin", member.name))
        case 1:
            member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"?", b"S"))
            member.linkname = "/etc/passwd"
        case 2:
            member.pax_headers = {rng.choice(HEADERS): rng.choice(CELLS)}
        case 3:
            members *= 2
        case 4:
            data = mutate_bytes(data, rng)
    stream = io.BytesIO()
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=stream, mode=rng.choice(("w", "w:gz", "w:xz")), format=form) as archive:
        for info, body in members:
            info.size = len(body)
            with suppress(ValueError, KeyError):
                archive.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def mutate_zip(content: bytes, rng: random.Random) -> bytes:
    """A zip archive with members of other names and attributes, or a name that is no UTF-8."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    info, data = members[rng.randrange(len(members))]
    match rng.randrange(4):
        case 0:
            info.filename = rng.choice(NAMES)
        case 1:
            info.external_attr = rng.choice((0o120777, 0o010644, 0o040755)) << 16
        case 2:
            return content.replace("é".encode(), rng.choice((b"\xff\xfe", b"\xc3(", b"\x00\x00", b"\x1b[")))
        case 3:
            data = mutate_bytes(data, rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, body in members:
            archive.writestr(member, data if member is info else body)
    return stream.getvalue()


def mutate_numbers(content: bytes, rng: random.Random) -> bytes:
    """A file whose first bytes, its header, hold other numbers."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 3))):
        place = rng.randrange(min(len(data), 24))
        size = rng.choice((1, 2, 4))
        data[place : place + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(("big", "little")))
    return bytes(data)


def mutate_npy(content: bytes, rng: random.Random) -> bytes:
    """A .npy file whose header claims another type, order or shape, or is another Python text."""
    start = content.index(b"{")
    end = content.index(b"\n", start)
    header = {"descr": rng.choice(("<i8", "<f8", "|O", "|S5", "<c16", "|V3", ">u2", "<M8[s]", "x", [("a", "<i4")]))}
    header["fortran_order"] = rng.choice((True, False, None, 7))
    header["shape"] = rng.choice(((6, 4), (4, 6), (24,), (), (10**12, 4), (-1, 4), (0, 4), "x", (2.5, 4)))
    text = repr(header) if rng.random() < 0.8 else rng.choice(("{", "[" * 900, "{'descr'", "__import__('os')", ""))
    return content[:start] + text.encode().ljust(end - start)[: end - start] + content[end:]

"""Standard output and error that take any text: on an ASCII terminal, closed, full, or with a reader that went away.

What can't be encoded is replaced, control characters are shown as ``?``, and a stream that can't be written to is
noticed once and never raises: the work goes on, and the exit code says what became of it.
"""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from bench_core.errors import printable

__all__ = ["Printable", "reader_left", "standard_streams"]

# Signs of our own tables, each as wide as what stands for it.
_ASCII = str.maketrans("Δ±·×−–—…→█µτ°≤≥’“”", 'd+*x---~>#utd<>\'""')


class Printable:
    """A text stream around another one; also what rich writes to, which may use control characters.

    Attributes:
        failure: why the stream can't be written to any more, else None.
    """

    def __init__(self, stream: TextIO, failure: list[OSError | ValueError] | None = None, *, raw: bool = False) -> None:
        self._stream = stream
        self._failures = [] if failure is None else failure
        self._raw = raw

    @property
    def failure(self) -> OSError | ValueError | None:
        return self._failures[0] if self._failures else None

    @property
    def rich_proxied_file(self) -> "Printable":
        """Return the same stream without the filter: the name under which rich looks for it."""
        return Printable(self._stream, self._failures, raw=True)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self._failures:
            try:
                self._stream.write(_encodable(text if self._raw else printable(text), self._stream.encoding))
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self._fail(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._failures:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def _fail(self, error: OSError | ValueError) -> None:
        """Note the first failure, and let what is still buffered go nowhere, or the interpreter's last flush fails."""
        self._failures.append(error)
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def standard_streams() -> Iterator[tuple[Printable, Printable]]:
    """Put ``Printable`` streams in the place of standard output and error; yield both."""
    before = sys.stdout, sys.stderr
    _occupy_descriptors()
    opened = [open(os.devnull, "w", encoding="utf-8") for stream in before if stream is None]  # noqa: SIM115, PTH123
    left = iter(opened)
    output, errors = (Printable(stream if stream is not None else next(left)) for stream in before)
    sys.stdout, sys.stderr = cast("TextIO", output), cast("TextIO", errors)
    try:
        yield output, errors
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
        for stream in opened:
            stream.close()


def reader_left(error: OSError | ValueError) -> bool:
    """Return whether a stream failed because nobody reads it any more, which is nobody's mistake."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _occupy_descriptors() -> None:
    """Open what was closed of descriptors 0 to 2, so that no file of ours is mistaken for a standard stream."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _encodable(text: str, encoding: str | None) -> str:
    """Return the text with stand-ins for what the stream's encoding lacks."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(_stand_in(letter, encoding or "utf-8") for letter in text)
    except LookupError:
        return text
    return text


def _stand_in(letter: str, encoding: str) -> str:
    with suppress(UnicodeEncodeError):
        letter.encode(encoding)
        return letter
    return letter.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")

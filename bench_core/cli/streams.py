"""Standard output and error that accept any text: on an ASCII terminal, closed, full, or with a reader that left.

Characters that cannot be encoded are replaced, control characters are shown as ``?``, and a stream that cannot be
written to is recorded once and never raises: work continues, and the exit code reports it.
"""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from bench_core.errors import printable

__all__ = ["Printable", "reader_left", "standard_streams"]

# Symbols in our own tables, each with a replacement of the same width.
_ASCII = str.maketrans("Δ±·×−–—…→█µτ°≤≥’“”", 'd+*x---~>#utd<>\'""')


class Printable:
    """A text stream that wraps another one; rich writes to it too, and may use control characters.

    Attributes:
        failure: why the stream can no longer be written to, otherwise None.
    """

    def __init__(self, stream: TextIO, failure: list[OSError | ValueError] | None = None, *, raw: bool = False) -> None:
        """Wrap a stream; ``raw`` disables the filter of control characters."""
        self._stream = stream
        self._failures = [] if failure is None else failure
        self._raw = raw

    @property
    def failure(self) -> OSError | ValueError | None:
        """Why the stream can no longer be written to, otherwise None."""
        return self._failures[0] if self._failures else None

    @property
    def rich_proxied_file(self) -> "Printable":
        """The same stream without the filter, under the name that rich looks for."""
        return Printable(self._stream, self._failures, raw=True)

    def write(self, text: str) -> int:
        """Write text as far as the stream allows; return its length."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self._failures:
            try:
                self._stream.write(_encodable(text if self._raw else printable(text), self._stream.encoding))
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._fail(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream, recording a failure."""
        if not self._failures:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def _fail(self, error: OSError | ValueError) -> None:
        """Record the first failure, and redirect buffered output to nowhere, or the interpreter's last flush fails."""
        self._failures.append(error)
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        """Return other attributes of the wrapped stream."""
        return getattr(self._stream, name)


@contextmanager
def standard_streams() -> Iterator[tuple[Printable, Printable]]:
    """Replace standard output and error by ``Printable`` streams; yield both."""
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
    """Return whether a stream failed because its reader left, which is not an error."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _occupy_descriptors() -> None:
    """Open those of descriptors 0 to 2 that are closed, so that no file of ours becomes a standard stream."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _encodable(text: str, encoding: str | None) -> str:
    """Return the text with replacements for characters that the stream's encoding lacks."""
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

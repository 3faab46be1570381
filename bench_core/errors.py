"""Errors that users can cause; each is one line that names the thing, the place and the remedy."""

from pathlib import Path

__all__ = [
    "ClusterError",
    "DataError",
    "ExitBenchError",
    "ForeignCodeError",
    "NoHomeError",
    "PluginError",
    "RecordingError",
    "StoreError",
    "SuiteError",
    "TraceError",
    "TrainingPausedError",
    "UsageError",
    "one_line",
    "printable",
    "visible",
]


def one_line(text: str) -> str:
    """Return the text as one line that is safe to print on a terminal: text from names and files is untrusted."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def printable(text: str) -> str:
    """Return text of several lines that is safe to print on a terminal."""
    return text if text.isprintable() else "\n".join(map(one_line, text.replace("\t", " ").split("\n")))


def visible(text: str) -> str:
    """Return a name with non-printable characters escaped, so that different names stay different."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class ExitBenchError(Exception):
    """Base of every error that the command line prints as one line, without a traceback (exit code 2).

    Its text is one line without control characters, even if it contains untrusted names and messages.
    """

    def __str__(self) -> str:
        """Return the message as one line without control characters."""
        return one_line(" ".join(super().__str__().expandtabs(1).splitlines())).strip()


class UsageError(ExitBenchError):
    """An invalid flag, name or knob: unknown, out of range, or in conflict with another."""


class NoHomeError(UsageError):
    """No folder for the store: neither EXITBENCH_HOME nor the user's home gives a location."""


class SuiteError(ExitBenchError):
    """A suite file that can't be read or is inconsistent."""


class TraceError(ExitBenchError):
    """A trace file that can't be read, or whose tensors disagree."""


class DataError(ExitBenchError):
    """A data set that is missing, truncated or altered."""


class TrainingPausedError(ExitBenchError):
    """A training run that has used up its time budget; its progress is saved, and the same command continues it."""


class RecordingError(ExitBenchError):
    """A network that can't be run over a split."""


class StoreError(ExitBenchError):
    """An artifact that can't be written or, if remaking is not allowed, can't be trusted."""

    @classmethod
    def unwritable(cls, path: Path, error: Exception) -> "StoreError":
        """Return the error for a file at ``path`` that can't be written because of ``error``."""
        return cls(f"{path}: can't be written ({error}); free space or choose another place")


class ClusterError(ExitBenchError):
    """Worker processes or a scheduler that can't be reached or started, or that were lost."""


class ForeignCodeError(ExitBenchError):
    """Plugin or user code that ends the process, doesn't end, or writes into data that others read."""

    def __init__(self, who: str, message: str) -> None:
        """Build the message from the code's owner ``who`` and what it did."""
        super().__init__(one_line(f"{who}: {message}"))
        self.message = one_line(message)


class PluginError(ExitBenchError):
    """A plugin that fails to load, returns objects other than its hook requires, or uses a taken name."""

    def __init__(self, plugin: str, message: str) -> None:
        """Build the message from the plugin's name and the problem."""
        super().__init__(f"plugin {plugin}: {message}")
        self.plugin = plugin
        self.message = message

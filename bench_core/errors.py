"""The errors a user can cause, each one line that names the thing, the place and the remedy."""

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
    """Return the text as one line that does nothing to a terminal: what a file says of itself comes from anywhere."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def printable(text: str) -> str:
    """Return text of several lines that does nothing to a terminal but end its lines."""
    return text if text.isprintable() else "\n".join(map(one_line, text.replace("\t", " ").split("\n")))


def visible(text: str) -> str:
    """Return a name with an escape for each character that isn't printable, so that different names stay different."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class ExitBenchError(Exception):
    """Base of every error that the command line prints as one line, without a traceback (exit code 2).

    Its text is one line without control characters, whatever names and messages of others were put into it.
    """

    def __str__(self) -> str:
        return one_line(" ".join(super().__str__().expandtabs(1).splitlines())).strip()


class UsageError(ExitBenchError):
    """A flag, name or knob that can't be: unknown, out of range, or at odds with another."""


class NoHomeError(UsageError):
    """No folder for the store: neither EXITBENCH_HOME nor the user's own home says where it is."""


class SuiteError(ExitBenchError):
    """A suite file that can't be read or doesn't hold together."""


class TraceError(ExitBenchError):
    """A trace file that can't be read, or whose tensors disagree."""


class DataError(ExitBenchError):
    """A data set that is missing, truncated or altered."""


class TrainingPausedError(ExitBenchError):
    """A training whose time is up: what is trained is kept, and the same command goes on."""


class RecordingError(ExitBenchError):
    """A network that can't be run over a split."""


class StoreError(ExitBenchError):
    """An artifact that can't be written or, where rebuilding is not allowed, can't be trusted."""

    @classmethod
    def unwritable(cls, path: Path, error: Exception) -> "StoreError":
        """The file at ``path`` can't be written, because of ``error``."""
        return cls(f"{path}: can't be written ({error}); free space or choose another place")


class ClusterError(ExitBenchError):
    """Worker processes or a scheduler that can't be had, or that went away."""


class ForeignCodeError(ExitBenchError):
    """Code of a plugin or a user that ends the process, doesn't end, or writes into what others read."""

    def __init__(self, who: str, message: str) -> None:
        super().__init__(one_line(f"{who}: {message}"))
        self.message = one_line(message)


class PluginError(ExitBenchError):
    """A plugin that fails to load, returns something else than its hook promises, or takes a taken name."""

    def __init__(self, plugin: str, message: str) -> None:
        super().__init__(f"plugin {plugin}: {message}")
        self.plugin = plugin
        self.message = message

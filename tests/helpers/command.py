"""What a command of ``exitbench`` gave back; the fixture ``exitbench`` (conftest.py) calls one in this process."""

from typing import NamedTuple


class Answer(NamedTuple):
    """Exit code and output."""

    code: int
    out: str
    err: str

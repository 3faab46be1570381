"""A strategy whose score a test writes down where it needs it."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from bench_core import Evidence, ScoreStrategy


class Odd(ScoreStrategy):
    """A score of any making."""

    name: ClassVar[str] = "odd"
    reference: ClassVar[str] = "a test"

    def __init__(self, make: Callable[[Evidence], Any]) -> None:
        super().__init__()
        self.make = make

    def score(self, evidence: Evidence) -> torch.Tensor:
        return self.make(evidence)

"""How a network is trained, as a suite states it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Recipe"]


class Recipe(BaseModel):
    """Stochastic gradient descent with momentum, a cosine schedule to zero, a fixed number of epochs.

    Attributes:
        epochs, batch_size: the number of steps follows; an incomplete batch at the end of an epoch is dropped.
        learning_rate, momentum, weight_decay: of SGD; the rate falls along a half cosine, step by step.
        loss: see ``bench_core.training.losses``.
        shift, flip: augmentation of the raw images: shifts of up to so many pixels, random mirroring.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    loss: Literal["mean-cross-entropy", "tet"] = "mean-cross-entropy"
    shift: int = Field(0, ge=0, le=8)
    flip: bool = False

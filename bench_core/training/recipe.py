"""Training recipes: how a network is trained, as a suite specifies it."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Recipe", "RegularizerSpec", "Trunk"]

# Fields added after the first recipes: at their defaults they are not part of the identity.
_LATER = frozenset(
    {
        "autoaugment",
        "average",
        "border",
        "compile",
        "cutout",
        "decayed",
        "label_smoothing",
        "minutes",
        "nesterov",
        "neuron",
        "normalization",
        "precision",
        "regularizer",
        "schedule",
        "surrogate",
        "trunk",
        "warmup",
    }
)


class RegularizerSpec(BaseModel):
    """A regulariser that is added to the task's loss."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=64)
    """Name of a registered regulariser."""
    weight: float = Field(gt=0, allow_inf_nan=False)
    """Factor of its term in the loss."""
    parameters: dict[str, float | int | str] = {}
    """Its knobs."""


class Recipe(BaseModel):
    """Stochastic gradient descent with momentum and a learning rate that falls to zero, over epochs or by the clock."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    epochs: int = Field(ge=1)
    """Epochs of training."""
    minutes: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Time budget. The learning rate follows the used share of it, or the share of the steps if that is larger, so
    that training ends at rate zero when the time is up, and after `epochs` at the latest. Time accumulates over
    interrupted runs; the weights depend on the machine."""
    batch_size: int = Field(128, ge=2)
    """Batch size; an incomplete batch at the end of an epoch is dropped."""
    learning_rate: float = Field(0.1, gt=0)
    """Highest learning rate of SGD, reached after the warm-up."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay of SGD."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls, step by step: along half a cosine, or linearly."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the training in which the learning rate rises linearly from zero."""
    decayed: Literal["all", "weights"] = "all"
    """Parameters with weight decay: all, or only weights of convolutions and linear layers (not normalisation,
    biases, thresholds)."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which is then the result, with batch-norm
    statistics estimated anew; 0 for none."""
    loss: Literal["mean-cross-entropy", "tet", "accumulated-prefix"] = "mean-cross-entropy"
    """Loss over timesteps (docs/methods.md)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes."""
    shift: int = Field(0, ge=0, le=8)
    """Augmentation: shifts of up to this many pixels."""
    flip: bool | Literal["alternating"] = False
    """Augmentation: random mirroring; `alternating` mirrors an image in every other epoch, and half of the images in
    the first."""
    border: Literal["zeros", "reflection"] = "zeros"
    """What a shift moves in: zeros, or the image's reflection."""
    autoaugment: bool = False
    """Augmentation: AutoAugment's policy for CIFAR."""
    cutout: int = Field(0, ge=0, le=128)
    """Augmentation: side in pixels of an erased square; 0 for none."""
    normalization: Literal["bn", "tdbn", "tebn"] = "bn"
    """Normalisation between synapses and neurons."""
    neuron: Literal["lif", "if"] = "lif"
    """Neuron of a directly trained network."""
    surrogate: Literal["triangle", "rectangle", "arctan", "dspike"] = "triangle"
    """Surrogate gradient of a directly trained network."""
    regularizer: RegularizerSpec | None = None
    """Regulariser added to the loss."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass, bfloat16 wherever torch's autocast allows it; weights,
    normalisation statistics, losses and regularisers stay float32."""
    compile: bool = False
    """Whether to speed up the training of an ANN for conversion with `torch.compile`; compiling takes about a
    minute."""
    trunk: "Trunk | None" = None
    """A recipe to train first; training continues from its weights. Recipes with the same trunk share it."""

    @model_validator(mode="after")
    def _has_momentum_for_nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @model_validator(mode="after")
    def _fits_its_trunk(self) -> Self:
        for name in ("normalization", "neuron") if self.trunk is not None else ():
            ours, theirs = getattr(self, name), getattr(self.trunk, name)
            if ours != theirs:
                raise ValueError(f"{name} = {ours}, but its trunk has {theirs}; they must agree")
        if self.normalization == "tebn" and self.trunk is not None and self.trunk.timesteps is not None:
            raise ValueError("tebn learns a scale for every timestep, so its trunk has as many; leave out timesteps")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """Return the fields that the trained weights depend on."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(exclude={"timesteps"}).items()
            if name not in _LATER or value != fields[name].default
        }


class Trunk(Recipe):
    """A recipe whose weights another recipe continues from."""

    timesteps: int | None = Field(None, ge=1)
    """T of this training (default: T of the workload); fewer timesteps make an epoch that much cheaper (time
    inheritance training, Deng et al., ICLR 2022)."""


Recipe.model_rebuild()

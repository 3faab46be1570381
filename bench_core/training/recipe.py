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
    """A regulariser that is added to the task's loss.

    Attributes:
        name: of a registered regulariser.
        weight: factor of its term.
        parameters: its knobs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=64)
    weight: float = Field(gt=0, allow_inf_nan=False)
    parameters: dict[str, float | int | str] = {}


class Recipe(BaseModel):
    """Stochastic gradient descent with momentum and a learning rate that falls to zero, over epochs or by the clock.

    Attributes:
        epochs, batch_size: determine the number of steps; an incomplete batch at the end of an epoch is dropped.
        minutes: time budget. The learning rate follows the used share of it, or the share of the steps if that is
            larger, so that training ends at rate zero when the time is up, in the middle of an epoch if necessary, and
            after ``epochs`` at the latest. Time accumulates over interrupted runs; weights depend on the machine.
        learning_rate, momentum, weight_decay: of SGD; the rate is highest after the warm-up.
        nesterov: whether the momentum is Nesterov's.
        schedule: how the rate falls, step by step: along half a ``cosine`` or ``linear``.
        warmup: share of the training in which the rate rises linearly from zero.
        decayed: which parameters have weight decay: ``all``, or ``weights`` of convolutions and linear layers only (not
            normalisation, biases, thresholds).
        average: decay per step of an exponential moving average of the weights, which is the result of training, with
            re-estimated batch-norm statistics; 0 for none.
        loss: see ``bench_core.training.losses``.
        label_smoothing: share of the target that is spread evenly over all classes.
        shift, flip: augmentation of the raw images: shifts of up to ``shift`` pixels, random mirroring; ``alternating``
            mirrors an image in every other epoch, and half of the images in the first.
        border: content that a shift moves in: ``zeros``, or the image's ``reflection``.
        autoaugment, cutout: further augmentation: AutoAugment's policy for CIFAR, an erased square of this side in
            pixels.
        normalization: between synapses and neurons: ``bn``, ``tdbn`` or ``tebn`` (``bench_core.snn.normalization``).
        neuron: of a directly trained network: ``lif`` or ``if`` (``bench_core.snn.neurons.NEURONS``).
        surrogate: its gradient: ``triangle``, ``rectangle``, ``arctan`` or ``dspike`` (``bench_core.snn.surrogate``).
        regularizer: added to the loss, or None.
        precision: of the network's forward and backward pass: ``float32``, or ``bfloat16`` in operations for which
            torch's autocast allows it. Weights, normalisation statistics, losses and regularisers stay float32 either
            way.
        compile: whether ``torch.compile`` speeds up the pass of an ANN that is to be converted, after about a minute of
            compilation.
        trunk: a recipe that is trained first; this one continues from its weights. Branches of one trunk share it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    epochs: int = Field(ge=1)
    minutes: float | None = Field(None, gt=0, allow_inf_nan=False)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = False
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1)
    decayed: Literal["all", "weights"] = "all"
    average: float = Field(0.0, ge=0, lt=1)
    loss: Literal["mean-cross-entropy", "tet", "accumulated-prefix"] = "mean-cross-entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    shift: int = Field(0, ge=0, le=8)
    flip: bool | Literal["alternating"] = False
    border: Literal["zeros", "reflection"] = "zeros"
    autoaugment: bool = False
    cutout: int = Field(0, ge=0, le=128)
    normalization: Literal["bn", "tdbn", "tebn"] = "bn"
    neuron: Literal["lif", "if"] = "lif"
    surrogate: Literal["triangle", "rectangle", "arctan", "dspike"] = "triangle"
    regularizer: RegularizerSpec | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    trunk: "Trunk | None" = None

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
    """A recipe whose weights another recipe continues from.

    Attributes:
        timesteps: T that it is trained with; default that of the recipe that continues from it. Fewer timesteps make an
            epoch proportionally cheaper: time inheritance training, Deng et al., ICLR 2022 (TET).
    """

    timesteps: int | None = Field(None, ge=1)


Recipe.model_rebuild()

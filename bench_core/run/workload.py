"""Workloads of a suite with their names resolved, and the keys of their trained networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench_core.conversion import Converter
from bench_core.data import Dataset
from bench_core.errors import DataError
from bench_core.isolation.foreign_code import is_ours
from bench_core.isolation.plugin_code import LoadedCode
from bench_core.plugins import Registry
from bench_core.run.reuse import MadeWith
from bench_core.run.suite import WorkloadSpec
from bench_core.snn import AnalogNetwork, SpikingNetwork
from bench_core.snn.models import Model
from bench_core.training import Regularizer
from bench_core.util.digests import json_digest

__all__ = ["Workload"]

TRAINING_VERSION = 1


@dataclass(frozen=True)
class Workload:
    """A workload with its data set, model, converter and regulariser.

    Attributes:
        spec: its specification in the suite.
        dataset: the data set.
        model: the model.
        converter: from ANN to spiking network, if any.
        regularizer: of its training, if any.
        trunk: the workload from which its training continues.
        code: of the plugins that provide these, by kind; empty for shipped ones.
        split_digests: of splits, as first read.
    """

    spec: WorkloadSpec
    dataset: Dataset
    model: Model
    converter: Converter | None
    regularizer: Regularizer | None = None
    trunk: "Workload | None" = None
    code: Mapping[str, Sequence[LoadedCode]] = field(default_factory=dict, repr=False, compare=False)
    split_digests: dict[str, str | None] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def resolve(cls, spec: WorkloadSpec, registry: Registry) -> "Workload":
        """Resolve the names in a specification; raise UsageError for an unknown name or knob."""
        dataset = registry.find("datasets", spec.dataset)
        model = registry.find("models", spec.model)
        converter = None
        if spec.conversion is not None:
            converter = registry.find("converters", spec.conversion.converter)
            converter = converter.with_parameters(spec.conversion.parameters)
        regularizer = None
        if (wanted := spec.recipe.regularizer) is not None:
            regularizer = registry.find("regularizers", wanted.name).with_parameters(wanted.parameters)
        trunk = None
        if (before := spec.recipe.trunk) is not None:
            earlier = {"recipe": before, "timesteps": before.timesteps or spec.timesteps}
            trunk = cls.resolve(spec.model_copy(update=earlier), registry)
        named = {"datasets": spec.dataset, "models": spec.model}
        if spec.conversion is not None:
            named["converters"] = spec.conversion.converter
        if wanted is not None:
            named["regularizers"] = wanted.name
        code = {kind: found for kind, name in named.items() if (found := registry.code_of(kind, name))}
        return cls(spec, dataset, model, converter, regularizer, trunk, code)

    @property
    def is_ours(self) -> bool:
        """Whether all code that it needs comes with this package."""
        made = (self.dataset, self.model, self.converter, self.regularizer)
        return all(one is None or is_ours(one) for one in made) and (self.trunk is None or self.trunk.is_ours)

    @property
    def made_with(self) -> MadeWith:
        """The plugins' code and the PyTorch settings that its artifacts depend on."""
        return MadeWith(self.code)

    @property
    def training_key(self) -> str:
        """Digest of everything that the trained weights depend on."""
        return json_digest(
            {**self._declared(None if self.trunk is None else self.trunk.training_key), **self.made_with.identity}
        )

    @property
    def declared_training(self) -> str:
        """Digest of the same, without plugins' code and settings."""
        return json_digest(self._declared(None if self.trunk is None else self.trunk.declared_training))

    def _declared(self, trunk: str | None) -> dict[str, Any]:
        conversion = None
        if self.converter is not None:
            conversion = {"name": self.converter.name, "parameters": self.converter.parameters}
        recipe = self.spec.recipe.identity
        if self.regularizer is not None:
            recipe["regularizer"] = {**recipe["regularizer"], "parameters": self.regularizer.parameters}
        if trunk is not None:
            recipe["trunk"] = trunk
        return {
            "stage": "train",
            "version": TRAINING_VERSION,
            "data": self.dataset.identity,
            "model": self.model.name,
            "timesteps": 1 if conversion else self.spec.timesteps,
            "seed": self.spec.seed,
            "recipe": recipe,
            "conversion": conversion,
        }

    def split_digest(self, name: str) -> str | None:
        """Return the digest of a split's current data, read once; None if it cannot be read."""
        if name not in self.split_digests:
            try:
                self.split_digests[name] = self.dataset.split(name).digest
            except (DataError, OSError):
                self.split_digests[name] = None
        return self.split_digests[name]

    def fresh_network(self) -> SpikingNetwork | AnalogNetwork:
        """Return the untrained network, initialised from the workload's seed."""
        torch.manual_seed(self.spec.seed)
        shape, classes = self.dataset.input_shape, self.dataset.classes
        if self.converter is not None:
            return self.model.analog(shape, classes, self.converter.activation)
        return self.model.spiking(
            shape,
            classes,
            constant_input=self.dataset.constant_input,
            normalization=self.spec.recipe.normalization,
            timesteps=self.spec.timesteps,
            neuron=self.spec.recipe.neuron,
            surrogate=self.spec.recipe.surrogate,
        )

"""Suites: the TOML files that define the networks, methods and operating points of a board."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from bench_core.costs.operations import FirstLayer
from bench_core.errors import SuiteError, one_line
from bench_core.knobs import nearest
from bench_core.training.recipe import Recipe

__all__ = [
    "ConversionSpec",
    "CostModelSpec",
    "LatencySpec",
    "ShiftSpec",
    "StrategySpec",
    "Suite",
    "WorkloadSpec",
    "load_suite",
    "parse_suite",
    "seed_groups",
]

SHIPPED = Path(__file__).parent.parent / "suites"
EVERY_STRATEGY = "*"
LONGEST_NAME = 64

Name = Annotated[str, StringConstraints(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}$")]
Corruption = Literal["noise", "blur", "contrast", "drop"]  # as in data/corruption.py
PluginName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class ConversionSpec(_Spec):
    """The converter from the ANN to the spiking network, with its knobs."""

    converter: PluginName
    """Name of a registered converter."""
    parameters: dict[str, float | int | str] = {}
    """Its knobs."""


class WorkloadSpec(_Spec):
    """One network under test: data set x model x recipe x (conversion) x T x seed.

    With ``seeds`` it represents several, named NAME-seed1 and so on; in a validated suite each of them has its own
    entry with a ``seed``.
    """

    name: Name
    """Name of the workload on the board."""
    dataset: PluginName
    """Name of a registered data set."""
    model: PluginName
    """Name of a registered model."""
    timesteps: int = Field(ge=1, le=4096)
    """T, the number of timesteps."""
    seed: int = Field(0, ge=0)
    """Seed of training; part of the identity of the network."""
    seeds: list[Annotated[int, Field(ge=0)]] | None = None
    """Two or more seeds instead of one: a workload NAME-seed1 and so on for each."""
    recipe: Recipe
    """How the network is trained."""
    conversion: ConversionSpec | None = None
    """How a trained ANN becomes the spiking network; omit it to train the spiking network directly."""

    @property
    def base_name(self) -> str:
        """The name without the suffix added by ``seeds``."""
        return self.name.removesuffix(f"-seed{self.seed}")

    @property
    def apart_from_seed(self) -> dict[str, Any]:
        """Everything except name and seed."""
        return self.model_dump(exclude={"name", "seed", "seeds"})

    @model_serializer(mode="wrap")
    def _without_seeds(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name != "seeds" or value is not None}

    @model_validator(mode="after")
    def _seeds_are_several(self) -> Self:
        if self.seeds is not None:
            if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
                raise ValueError(f"seeds of {self.name} must be two or more, all different; one stands in `seed`")
            if "seed" in self.model_fields_set:
                raise ValueError(f"{self.name} has both seed and seeds; leave one out")
            if len(longest := f"{self.name}-seed{max(self.seeds)}") > LONGEST_NAME:
                raise ValueError(f"{longest} is longer than {LONGEST_NAME} characters; choose a shorter name")
        return self

    @model_validator(mode="after")
    def _neurons_are_the_converters(self) -> Self:
        if self.conversion is not None and (self.recipe.neuron, self.recipe.surrogate) != ("lif", "triangle"):
            raise ValueError("neuron and surrogate are of networks trained directly; a conversion brings its neurons")
        if self.conversion is not None and self.recipe.trunk is not None and self.recipe.trunk.timesteps is not None:
            raise ValueError("timesteps of a trunk are of networks trained directly; a conversion trains an ANN")
        return self


class StrategySpec(_Spec):
    """A registered strategy (``*``: all of them, with their defaults), with knobs set."""

    name: PluginName
    """Name of a registered strategy, or `*` for all of them with their defaults."""
    parameters: dict[str, float | int | str] = {}
    """Its knobs; listed in brackets on the board."""


class CostModelSpec(_Spec):
    """A registered cost model with knobs set; in a suite, a name alone means its defaults."""

    name: PluginName
    """Name of a registered cost model."""
    parameters: dict[str, float | int | str] = {}
    """Its knobs."""


class LatencySpec(_Spec):
    """How wall clock is measured.

    Each time is taken ``repetitions`` times after a warm-up, at batch 1 on ``samples`` test samples, and as throughput
    of ``batch_samples`` of them at ``batch`` with refill (0 disables it).

    One thread by default: at batch 1 a second thread costs a small network more than it gains.
    """

    samples: int = Field(default=50, ge=1)
    """Test samples timed at batch 1."""
    batch: int = Field(default=64, ge=2)
    """Batch size of the throughput measurement."""
    batch_samples: int = Field(default=128, ge=0)
    """Test samples of the throughput measurement; 0 disables it."""
    repetitions: int = Field(default=1, ge=1)
    """How often each time is taken after a warm-up."""
    threads: int = Field(default=1, ge=1)
    """Threads of the measurements."""


class ShiftSpec(_Spec):
    """The corruptions of test data under which policies are replayed, and the number of test samples, drawn by hash.

    A corruption that does not apply to a workload's data (``drop`` for images) is skipped there.
    """

    corruptions: list[Corruption] = Field(["noise", "blur", "contrast", "drop"], min_length=1)
    """Corruptions of the test data; one that does not apply to the data (`drop` for images) is skipped."""
    severities: list[Annotated[int, Field(ge=1, le=5)]] = Field([1, 2, 3, 4, 5], min_length=1)
    """From 1 (mild) to 5."""
    samples: int = Field(default=2000, ge=1)
    """Number of test samples, chosen by hash."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("corruptions", "severities"):
            listed = getattr(self, name)
            if len(set(listed)) < len(listed):
                raise ValueError(f"{name}: each of them once")
        return self


def _one_per_seed(workloads: list[WorkloadSpec]) -> list[WorkloadSpec]:
    found = []
    for workload in workloads:
        changes = [{"name": f"{workload.name}-seed{seed}", "seed": seed} for seed in workload.seeds or ()]
        found += [workload.model_copy(update={**change, "seeds": None}) for change in changes] or [workload]
    return found


class Suite(_Spec):
    """The specification of a board."""

    schema_: Literal["exitbench.suite/1"] = Field(alias="schema")
    """Version of this format."""
    name: Name
    """Name of the board."""
    title: str = ""
    """One line for people."""
    seed: int = Field(0, ge=0)
    """Seed of bootstrap draws and of the random baseline."""
    operating_points: list[str] = Field(min_length=1)
    """Rules that choose thresholds on calibration data: `iso-accuracy:POINTS`, `budget:SHARE`, `risk:POINTS,LEVEL`."""
    cost_models: list[PluginName | CostModelSpec] = ["cmos45", "imc", "memory"]
    """Cost models, by name or as a table with knobs."""
    first_layer: FirstLayer = "once"
    """When a first layer under constant input is charged: at t = 1, or at every timestep up to the exit."""
    resamples: int = Field(10_000, ge=100, le=100_000)
    """Bootstrap draws of intervals and ranks."""
    latency: LatencySpec = LatencySpec()
    """How wall clock is measured."""
    limit_minutes: float | None = Field(default=None, gt=0)
    """Time limit for a stage and for a strategy on a workload; by default 1440 and 60."""
    workloads: Annotated[list[WorkloadSpec], Field(min_length=1), AfterValidator(_one_per_seed)]
    """The networks."""
    strategies: list[StrategySpec] = Field(min_length=1)
    """The exit strategies."""
    shift: ShiftSpec | None = None
    """Corruptions of the test data under which the chosen policies are replayed; omit it for none."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        optional = ("shift", "limit_minutes")
        return {name: value for name, value in handler(self).items() if name not in optional or value is not None}

    @model_validator(mode="after")
    def _unique_workloads(self) -> Self:
        names = [workload.name for workload in self.workloads]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"workload names must be unique: {', '.join(sorted(twice))}")
        return self

    def only(self, names: list[str]) -> "Suite":
        """Return the suite reduced to some workloads and strategies; names that are not workloads are strategies."""
        workloads = [workload for workload in self.workloads if {workload.name, workload.base_name} & set(names)]
        named = {name for workload in workloads for name in (workload.name, workload.base_name)}
        strategies = [name for name in names if name not in named]
        changes: dict[str, Any] = {}
        if workloads:
            changes["workloads"] = workloads
        if strategies:
            kept = [spec for spec in self.strategies if spec.name in strategies]
            listed = {spec.name for spec in kept}
            kept += [StrategySpec(name=name) for name in strategies if name not in listed]
            changes["strategies"] = kept
        return self.model_copy(update=changes)


def load_suite(name_or_path: str) -> Suite:
    """Load a shipped suite by name or a TOML file by path; raise SuiteError with file, field and remedy in one line."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = SHIPPED / f"{name_or_path}.toml"
        if not path.is_file():
            shipped = sorted(p.stem for p in SHIPPED.glob("*.toml"))
            raise SuiteError(
                f"no suite called {name_or_path!r}{nearest(name_or_path, shipped)}; shipped: {', '.join(shipped)}, "
                "or give the path of a .toml file"
            )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"suite {path}: can't be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SuiteError(f"suite {path}: not TOML ({error})") from error
    return parse_suite(content, str(path))


def parse_suite(content: Mapping[str, Any], place: str) -> Suite:
    """Validate a suite from parsed TOML; ``place`` names it in errors."""
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the suite"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SuiteError(one_line(f"suite {place}: {field}: {first['msg']}{more}")) from error


def seed_groups(suite: Suite) -> dict[str, list[str]]:
    """Return the names of workloads that differ only in their seed, in groups of two or more, by the group's name.

    That is their common name before ``-seedN``, otherwise the name of the first.
    """
    alike: list[list[WorkloadSpec]] = []
    for workload in suite.workloads:
        same = [group for group in alike if group[0].apart_from_seed == workload.apart_from_seed]
        if not same:
            alike.append([workload])
        elif workload.seed not in {other.seed for other in same[0]}:
            same[0].append(workload)
    groups = {}
    for group in alike:
        if len(group) > 1:
            names, bases = [workload.name for workload in group], {workload.base_name for workload in group}
            base = bases.pop()
            groups[names[0] if bases or base in groups else base] = names
    return groups

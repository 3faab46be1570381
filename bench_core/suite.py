"""Suites: the TOML file that says which networks, methods and operating points make a board."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from bench_core.costs.operations import FirstLayer
from bench_core.errors import SuiteError, one_line
from bench_core.knobs import nearest
from bench_core.training.recipe import Recipe

__all__ = ["ConversionSpec", "CostModelSpec", "LatencySpec", "StrategySpec", "Suite", "WorkloadSpec", "load_suite"]

SHIPPED = Path(__file__).parent / "suites"
EVERY_STRATEGY = "*"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
PluginName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ConversionSpec(_Spec):
    """Which converter turns the ANN into the spiking network, and its knobs."""

    converter: PluginName
    parameters: dict[str, float | int | str] = {}


class WorkloadSpec(_Spec):
    """One network under test: data set x model x recipe x (conversion) x T x seed."""

    name: Name
    dataset: PluginName
    model: PluginName
    timesteps: int = Field(ge=1, le=4096)
    seed: int = Field(0, ge=0)
    recipe: Recipe
    conversion: ConversionSpec | None = None

    @model_validator(mode="after")
    def _neurons_are_the_converters(self) -> Self:
        if self.conversion is not None and (self.recipe.neuron, self.recipe.surrogate) != ("lif", "triangle"):
            raise ValueError("neuron and surrogate are of networks trained directly; a conversion brings its neurons")
        return self


class StrategySpec(_Spec):
    """One line of competitors: a registered strategy (``*``: every one, with its defaults), with knobs set."""

    name: PluginName
    parameters: dict[str, float | int | str] = {}


class CostModelSpec(_Spec):
    """A registered cost model with knobs set; a name alone takes its defaults."""

    name: PluginName
    parameters: dict[str, float | int | str] = {}


class LatencySpec(_Spec):
    """How wall clock is measured: ``repetitions`` times after a warm-up, at batch 1 on ``samples`` test samples, and as
    throughput of ``batch_samples`` of them at ``batch`` with refill (0 leaves that out).

    One thread by default: at batch 1 a small network waits for a second one longer than it gains.
    """

    samples: int = Field(default=50, ge=1)
    batch: int = Field(default=64, ge=2)
    batch_samples: int = Field(default=128, ge=0)
    repetitions: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)


class Suite(_Spec):
    """A board to be made."""

    schema_: Literal["exitbench.suite/1"] = Field(alias="schema")
    name: Name
    title: str = ""
    seed: int = Field(0, ge=0)
    operating_points: list[str] = Field(min_length=1)
    cost_models: list[PluginName | CostModelSpec] = ["cmos45", "imc", "memory"]
    first_layer: FirstLayer = "once"  # under constant input: charged at t = 1, or at every timestep up to the exit
    resamples: int = Field(10_000, ge=100, le=100_000)
    latency: LatencySpec = LatencySpec()
    workloads: list[WorkloadSpec] = Field(min_length=1)
    strategies: list[StrategySpec] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_workloads(self) -> Self:
        names = [workload.name for workload in self.workloads]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"workload names must be unique: {', '.join(sorted(twice))}")
        return self

    def only(self, names: list[str]) -> "Suite":
        """The suite reduced to some workloads and strategies. Raises SuiteError for a name that is neither."""
        workloads = [workload for workload in self.workloads if workload.name in names]
        strategies = [name for name in names if name not in {workload.name for workload in workloads}]
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
    """A shipped suite by name, or a TOML file by path. Raises SuiteError: one line with file, field and remedy."""
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
    """A validated suite from parsed TOML; ``place`` names it in errors."""
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the suite"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SuiteError(one_line(f"suite {place}: {field}: {first['msg']}{more}")) from error

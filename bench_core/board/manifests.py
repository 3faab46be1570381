"""Validation of a board's manifest.json, so that code that shows the board can rely on it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench_core.errors import UsageError

__all__ = ["check_manifest"]


class _Part(BaseModel):
    """A part of a manifest: the fields named here are validated, others may hold anything."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Plugin(_Part):
    name: str
    distribution: str
    version: str


class _Workload(_Part):
    name: str
    dataset: str
    seed: int = 0


class _Latency(_Part):
    batch: int = 2


class _Shift(_Part):
    samples: Annotated[int, Field(ge=1)]


class _Suite(_Part):
    name: str
    title: str
    first_layer: Literal["once", "every-step"]
    latency: _Latency
    workloads: list[_Workload]
    shift: _Shift | None = None


class _Facts(_Part):
    """Facts recorded about one workload; empty if it failed."""

    weights: str | None = None
    calibration_trace: str | None = None
    test_trace: str | None = None
    licence: str | None = None
    simulated: bool | None = None
    data: dict[str, str | None] = {}
    recording: dict[str, str | None] = {}
    shift: dict[str, str] = {}


class _Manifest(_Part):
    suite: _Suite
    environment: dict[str, Any]
    plugins: list[_Plugin]
    workloads: dict[str, _Facts]


def check_manifest(manifest: Any, place: str) -> None:
    """Validate a manifest; ``place`` names the board in errors.

    Raises:
        UsageError: one line with the first part that is missing or wrong.
    """
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        part = ".".join(str(name) for name in first["loc"]) or "it"
        what = "lacks" if first["type"] == "missing" else "has a wrong"
        raise UsageError(
            f"{place}: manifest.json {what} {part:.80} ({first['msg']:.120}); run the suite again"
        ) from error

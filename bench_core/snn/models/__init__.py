"""Model families, one file each."""

from bench_core.snn.models.base import Model, Parts

__all__ = ["Model", "Parts"]

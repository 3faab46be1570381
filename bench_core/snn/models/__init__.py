"""Model families, one file each."""

from bench_core.snn.models.base import Model

__all__ = ["Model"]

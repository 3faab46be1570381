"""Execution of a run's stages on Dask workers."""

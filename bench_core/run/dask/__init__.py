"""Stages of a run on Dask workers."""
